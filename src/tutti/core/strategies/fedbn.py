"""FedBN: Li et al. 2021, https://arxiv.org/abs/2102.07623, Algorithm 1.

    w_l <- 1/K sum_k w_l,k    for every layer l that is no BatchNorm; those stay at home, weights and statistics

For nodes whose features differ (scanners, cameras, dialects). Each node measures the model with its own layers.
"""

from collections.abc import Sequence

from tutti.core.errors import UserError
from tutti.core.params import Layout, Params
from tutti.core.reduce import weighted_mean
from tutti.core.strategies._personal import keeping, layer_of
from tutti.core.strategies._server import add, start
from tutti.core.strategy import ServerState, Strategy, strategies


@strategies.register("fedbn")
def fedbn() -> Strategy:
    """FedAvg of all but the BatchNorm layers, which each node keeps to itself."""
    return Strategy(_init, lambda state: {}, weighted_mean(), add, keeping(batch_norm))


def batch_norm(layout: Layout) -> Sequence[str]:
    """The entries of BatchNorm layers: of those that keep a running mean."""
    layers = {layer_of(entry.name) for entry in layout.entries if entry.name.endswith("running_mean")}
    return [entry.name for entry in layout.entries if layer_of(entry.name) in layers]


def _init(params: Params) -> ServerState:
    if not batch_norm(params.layout):
        raise UserError("fedbn keeps BatchNorm layers on the nodes, and this model has none: use fedavg or fedper")
    return start(params)
