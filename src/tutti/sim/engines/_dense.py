"""Which models are plain dense networks, and how their parameters lie in the buffer."""

from dataclasses import dataclass
from typing import Any

from tutti.ports.training import Trainer
from tutti.sim.engines.port import CannotCompute


@dataclass(frozen=True, slots=True)
class Dense:
    """Linear layers of these widths, the input's first, with one activation between them.

    The parameters of each are its weights (outputs, inputs), then its bias.
    """

    widths: tuple[int, ...]
    activation: str


def dense_of(trainer: Trainer) -> Dense:
    """Raises CannotCompute for a model that is anything but Flatten, Linear, activation, Linear …"""
    layers = [layer for layer in _layers(trainer) if type(layer).__name__ != "Flatten"]
    kinds = [type(layer).__name__ for layer in layers]
    between = set(kinds[1::2])
    if set(kinds[::2]) != {"Linear"} or len(kinds) % 2 == 0 or len(between) > 1 or between - {"ReLU", "Tanh", "GELU"}:
        raise CannotCompute(f"the model is no plain dense network: it has {', '.join(sorted(set(kinds)))}")
    linear = layers[::2]
    if any(layer.bias is None for layer in linear) or any(getattr(a, "approximate", "none") != "none" for a in layers):
        raise CannotCompute("the model has layers without bias, or an approximate activation")
    if not all(parameter.requires_grad for layer in linear for parameter in layer.parameters()):
        raise CannotCompute("the model has frozen parameters")
    widths = (linear[0].in_features, *(layer.out_features for layer in linear))
    return Dense(widths, between.pop().lower() if between else "relu")


def _layers(trainer: Trainer) -> list[Any]:
    """The layers of a torch Sequential."""
    build = getattr(trainer, "module", None)
    if build is None:
        raise CannotCompute("the model is not made of torch layers")
    module = build()
    if type(module).__name__ != "Sequential":
        raise CannotCompute(f"the model is a {type(module).__name__}, not a plain sequence of layers")
    return list(module)
