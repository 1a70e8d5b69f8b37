"""DiLoCo: Douillard et al. 2023, https://arxiv.org/abs/2311.08105, Algorithm 1.

    D = 1/k sum_i (theta_{t-1} - theta_i)        after H local steps of each node (`training.max_steps`, with Adam)
    v <- momentum v + D ;  theta_t = theta_{t-1} - outer_lr (D + momentum v)                        (Nesterov)

The paper's inner optimiser is AdamW, whose moments stay with each worker. Here the inner optimiser begins anew in
each round, which the paper's many hundred steps a round make a small part of.
"""

from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta

from tutti.core.reduce import weighted_mean
from tutti.core.strategies._server import Block, optimise, start
from tutti.core.strategy import Strategy, strategies


@strategies.register("diloco")
def diloco(
    outer_lr: Annotated[float, Meta(gt=0, le=1e3)] = 0.7, momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9
) -> Strategy:
    """Many local steps, then an outer step of Nesterov momentum: for few, slow exchanges of large models."""

    def rule(delta: Block, slots: Mapping[str, Block]) -> tuple[Block, Mapping[str, Block]]:
        v = momentum * slots["v"] + delta
        return outer_lr * (delta + momentum * v), {"v": v}

    return Strategy(
        init=lambda params: start(params, v=0.0),
        configure=lambda state: {},
        reducer=weighted_mean(),
        finish=lambda state, update: optimise(state, update, rule),
    )
