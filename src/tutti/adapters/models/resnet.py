"""Small residual networks (He et al. 2016, https://arxiv.org/abs/1512.03385, section 4.2)."""

from typing import TYPE_CHECKING

from tutti.adapters.models._build import image_shape, torch_trainer
from tutti.core.registry import BadOption
from tutti.domain.spec import DataSchema, Positive
from tutti.ports.training import Trainer, models

if TYPE_CHECKING:
    from torch import nn


@models.register("resnet")
def resnet(depth: Positive = 20, width: Positive = 16, *, data: DataSchema) -> Trainer:
    """ResNet-20 for small images, with BatchNorm; depth 8, 14, 20, 32, 44, 56 and so on (6n + 2)."""
    if depth < 8 or depth % 6 != 2:
        raise BadOption(f"model 'resnet': expected a depth of 6n + 2, such as 8, 14 or 20, came {depth}")
    channels, _, _ = image_shape("resnet", data, smallest=4)
    return torch_trainer(lambda: _resnet(channels, (depth - 2) // 6, width, data.outputs), data)


def _resnet(channels: int, blocks: int, width: int, outputs: int) -> "nn.Module":
    """Three stages of `blocks` residual blocks; each later stage halves the image and doubles the channels."""
    from torch import nn

    layers: list[nn.Module] = [_convolution(channels, width), nn.BatchNorm2d(width), nn.ReLU()]
    before = width
    for stage in range(3):
        after = width * 2**stage
        for block in range(blocks):
            layers.append(_block(before, after, stride=2 if stage and block == 0 else 1))
            before = after
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, outputs))
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return net


def _block(before: int, after: int, stride: int) -> "nn.Module":
    from torch import nn

    from tutti.adapters.trainers.blocks import PadShortcut, Residual

    body = nn.Sequential(
        _convolution(before, after, stride),
        nn.BatchNorm2d(after),
        nn.ReLU(),
        _convolution(after, after),
        nn.BatchNorm2d(after),
    )
    return Residual(body, PadShortcut(after, stride) if before != after else nn.Identity())


def _convolution(before: int, after: int, stride: int = 1) -> "nn.Module":
    from torch import nn

    return nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
