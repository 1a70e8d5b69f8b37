"""LeNet-5 (LeCun et al. 1998, http://yann.lecun.com/exdb/publis/pdf/lecun-01a.pdf)."""

from typing import TYPE_CHECKING

from tutti.adapters.models._build import image_shape, torch_trainer
from tutti.domain.spec import DataSchema
from tutti.ports.training import Trainer, models

if TYPE_CHECKING:
    from torch import nn


@models.register("lenet")
def lenet(*, data: DataSchema) -> Trainer:
    """LeNet-5: two 5x5 convolutions with average pooling, then 120 and 84 tanh units."""
    channels, height, width = image_shape("lenet", data, smallest=12)
    padding = 2 if min(height, width) < 32 else 0  # the paper pads 28x28 digits to 32x32

    def pooled(size: int) -> int:
        return ((size + 2 * padding - 4) // 2 - 4) // 2

    def build() -> "nn.Module":
        from torch import nn

        return nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=padding),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * pooled(height) * pooled(width), 120),
            nn.Tanh(),
            nn.Linear(120, 84),
            nn.Tanh(),
            nn.Linear(84, data.outputs),
        )

    return torch_trainer(build, data)
