"""The CNN of McMahan et al. 2017 (https://arxiv.org/abs/1602.05629)."""

from typing import TYPE_CHECKING

from tutti.adapters.models._build import image_shape, torch_trainer
from tutti.domain.spec import DataSchema
from tutti.ports.training import Trainer, models

if TYPE_CHECKING:
    from torch import nn


@models.register("cnn")
def cnn(*, data: DataSchema) -> Trainer:
    """CNN of McMahan et al. 2017: two 5x5 convolutions and 512 units; 1,663,370 parameters on 1x28x28."""
    channels, height, width = image_shape("cnn", data, smallest=4)

    def build() -> "nn.Module":
        from torch import nn

        return nn.Sequential(
            nn.Conv2d(channels, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * (height // 4) * (width // 4), 512),
            nn.ReLU(),
            nn.Linear(512, data.outputs),
        )

    return torch_trainer(build, data)
