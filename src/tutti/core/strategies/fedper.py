"""FedPer: Arivazhagan et al. 2019, https://arxiv.org/abs/1912.00818, Algorithms 1 and 2.

    (W_B, W_Pk) <- SGD_k(W_B, W_Pk) ;  W_B <- sum_k gamma_k W_B,k    with gamma_k = n_k / n

The base layers W_B are averaged; the last `layers` layers W_P are personal and never leave their node, which measures
the model with its own.
"""

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

from tutti.core.errors import UserError
from tutti.core.params import Layout, Params, Role
from tutti.core.reduce import weighted_mean
from tutti.core.strategies._personal import keeping, layer_of
from tutti.core.strategies._server import add, start
from tutti.core.strategy import ServerState, Strategy, strategies


@strategies.register("fedper")
def fedper(layers: Annotated[int, Meta(ge=1, le=1000)] = 1) -> Strategy:
    """FedAvg of the first layers; each node keeps its own last ones."""

    def personal(layout: Layout) -> Sequence[str]:
        last = _layers(layout)[-layers:]
        return [entry.name for entry in layout.entries if layer_of(entry.name) in last]

    def init(params: Params) -> ServerState:
        if (there := len(_layers(params.layout))) <= layers:
            raise UserError(f"fedper would keep {layers} layers on the nodes, the model has {there}: nothing to share")
        return start(params)

    return Strategy(init, lambda state: {}, weighted_mean(), add, keeping(personal))


def _layers(layout: Layout) -> list[str]:
    """The layers that have weights, in the model's order."""
    return list(dict.fromkeys(layer_of(entry.name) for entry in layout.entries if entry.role is Role.WEIGHT))
