"""What the model files share: a trainer for a torch module, and refusals of data that cannot fit."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeAlias

from tutti.adapters._imports import extra
from tutti.core.errors import UserError
from tutti.domain.spec import DataSchema
from tutti.ports.training import Trainer

if TYPE_CHECKING:
    from torch import nn

Activation: TypeAlias = Literal["relu", "tanh", "gelu"]


class UnsuitableData(UserError):
    """This model cannot take data of this kind."""


def torch_trainer(build: Callable[[], "nn.Module"], data: DataSchema) -> Trainer:
    """A trainer of the module that `build` makes; torch is imported here, not before."""
    with extra("torch", "this model"):
        from tutti.adapters.trainers.torch import TorchTrainer
    return TorchTrainer(build, data)


def image_shape(model: str, data: DataSchema, smallest: int) -> tuple[int, int, int]:
    """(channels, height, width) of the data; raises UnsuitableData if it is no image, or one too small."""
    if len(data.shape) != 3 or min(data.shape[1:]) < smallest:
        raise UnsuitableData(
            f"model {model!r} takes images of shape (channels, height, width), at least {smallest}x{smallest}; "
            f"this data has shape {data.shape}"
        )
    channels, height, width = data.shape
    return channels, height, width


def activation(name: Activation) -> "nn.Module":
    from torch import nn

    kinds: dict[Activation, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}
    return kinds[name]()
