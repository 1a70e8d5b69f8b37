"""Logistic or linear regression."""

from math import prod
from typing import TYPE_CHECKING

from tutti.adapters.models._build import torch_trainer
from tutti.domain.spec import DataSchema
from tutti.ports.training import Trainer, models

if TYPE_CHECKING:
    from torch import nn


@models.register("linear")
def linear(*, data: DataSchema) -> Trainer:
    """Multinomial logistic regression for classes, linear regression for targets."""

    def build() -> "nn.Module":
        from torch import nn

        layer = nn.Linear(prod(data.shape), data.outputs)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        return nn.Sequential(nn.Flatten(), layer)

    return torch_trainer(build, data)
