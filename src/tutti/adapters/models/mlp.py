"""Fully connected networks: SimpleDNN with any layers, and the 2NN of McMahan et al. 2017."""

from math import prod
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from tutti.adapters.models._build import Activation, activation, torch_trainer
from tutti.core.registry import BadOption
from tutti.domain.spec import DataSchema, Positive
from tutti.ports.training import Trainer, models

if TYPE_CHECKING:
    from torch import nn


@models.register("mlp")
def mlp(
    hidden: Positive | list[Positive] = 64,
    activation: Activation = "relu",
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0,
    *,
    data: DataSchema,
) -> Trainer:
    """SimpleDNN: fully connected layers of the given widths, such as hidden=64 or hidden=200x200."""
    widths = [hidden] if isinstance(hidden, int) else hidden
    if not widths:
        raise BadOption("model 'mlp': expected at least one hidden layer; for none, use model 'linear'")
    return torch_trainer(lambda: _dense(data, widths, activation, dropout), data)


@models.register("2nn")
def two_nn(*, data: DataSchema) -> Trainer:
    """2NN of McMahan et al. 2017 (https://arxiv.org/abs/1602.05629): two hidden layers of 200 ReLU units."""
    return torch_trainer(lambda: _dense(data, [200, 200], "relu", 0.0), data)


def _dense(data: DataSchema, widths: list[int], kind: Activation, dropout: float) -> "nn.Module":
    from torch import nn

    layers: list[nn.Module] = [nn.Flatten()]
    inputs = prod(data.shape)
    for width in widths:
        layers += [nn.Linear(inputs, width), activation(kind)]
        layers += [nn.Dropout(dropout)] if dropout else []
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, data.outputs))
