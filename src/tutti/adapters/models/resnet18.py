"""ResNet-18 (He et al. 2016, https://arxiv.org/abs/1512.03385, table 1) with GroupNorm in place of BatchNorm.

Batch statistics of nodes that see different classes do not fit together (Hsieh et al. 2020,
https://arxiv.org/abs/1910.00189, section 5); two groups as in Reddi et al. 2021, https://arxiv.org/abs/2003.00295.
"""

from typing import TYPE_CHECKING

from tutti.adapters.models._build import image_shape, torch_trainer
from tutti.core.registry import BadOption
from tutti.domain.spec import DataSchema, Positive
from tutti.ports.training import Trainer, models

if TYPE_CHECKING:
    from torch import nn

_SMALL = 64
_STAGES = (64, 128, 256, 512)


@models.register("resnet18-gn")
def resnet18_gn(groups: Positive = 2, *, data: DataSchema) -> Trainer:
    """ResNet-18 with GroupNorm; images under 64 pixels keep their size in the first layer, larger ones are quartered.

    11,173,962 parameters on 3x32x32 with 10 classes, 11,689,512 on 3x224x224 with 1000.
    """
    if _STAGES[0] % groups:
        raise BadOption(f"model 'resnet18-gn': 64 channels cannot be divided into {groups} groups; use 2, 32 or 64")
    channels, height, width = image_shape("resnet18-gn", data, smallest=8)
    return torch_trainer(lambda: _resnet(channels, min(height, width) < _SMALL, groups, data.outputs), data)


def _resnet(channels: int, small: bool, groups: int, outputs: int) -> "nn.Module":
    from torch import nn

    layers: list[nn.Module] = [
        nn.Conv2d(channels, 64, 3 if small else 7, stride=1 if small else 2, padding=1 if small else 3, bias=False),
        nn.GroupNorm(groups, 64),
        nn.ReLU(),
    ]
    layers += [] if small else [nn.MaxPool2d(3, stride=2, padding=1)]
    before = 64
    for stage, after in enumerate(_STAGES):
        layers += [_block(before, after, 2 if stage else 1, groups), _block(after, after, 1, groups)]
        before = after
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, outputs))
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return net


def _block(before: int, after: int, stride: int, groups: int) -> "nn.Module":
    """Two 3x3 convolutions; where the shape changes, a 1x1 convolution in the shortcut (option B of the paper)."""
    from torch import nn

    from tutti.adapters.trainers.blocks import Residual

    body = nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(groups, after),
        nn.ReLU(),
        nn.Conv2d(after, after, 3, padding=1, bias=False),
        nn.GroupNorm(groups, after),
    )
    if before == after:
        return Residual(body, nn.Identity())
    shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.GroupNorm(groups, after))
    return Residual(body, shortcut)
