"""Modules that the built-in models are made of and torch does not have."""

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """relu(body(x) + shortcut(x)) (He et al. 2016, https://arxiv.org/abs/1512.03385, equation 2)."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class PadShortcut(nn.Module):
    """Every `stride`-th pixel, with zeros for the new channels: He et al. 2016, option A, no parameters."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels = channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(x, (0, 0, 0, 0, 0, self.channels - x.shape[1]))
