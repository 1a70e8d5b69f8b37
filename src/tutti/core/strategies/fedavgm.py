"""FedAvgM, server momentum: Hsu et al. 2019, https://arxiv.org/abs/1909.06335.

    v <- beta v + dw ;  w <- w - v    with dw = sum_k (n_k / n) dw_k  and  dw_k = w_t - w^k

Here delta = -dw, hence the plus signs; `server_lr`, which is 1 in the paper, multiplies v in the second step.
"""

from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta

from tutti.core.reduce import weighted_mean
from tutti.core.strategies._server import Block, optimise, start
from tutti.core.strategy import Strategy, strategies


@strategies.register("fedavgm")
def fedavgm(
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9,
    server_lr: Annotated[float, Meta(gt=0, le=1e3)] = 1.0,
) -> Strategy:
    """FedAvg with momentum on the server."""

    def rule(delta: Block, slots: Mapping[str, Block]) -> tuple[Block, Mapping[str, Block]]:
        v = momentum * slots["v"] + delta
        return server_lr * v, {"v": v}

    return Strategy(
        init=lambda params: start(params, v=0.0),
        configure=lambda state: {},
        reducer=weighted_mean(),
        finish=lambda state, update: optimise(state, update, rule),
    )
