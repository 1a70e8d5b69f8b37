"""SCAFFOLD: Karimireddy et al. 2020, https://arxiv.org/abs/1910.06378, Algorithm 1, option II.

    y_i <- y_i - eta_l (g_i(y_i) + c - c_i)                          K times, from y_i = x
    c_i+ <- c_i - c + 1 / (K eta_l) (x - y_i)
    dy_i = y_i - x ;  dc_i = c_i+ - c_i
    x <- x + eta_g / |S| sum_i dy_i ;  c <- c + 1 / N sum_i dc_i

c_i stays on its node. The means are weighted as the job says: with `cohort.weighting = "equal"` they are the paper's,
with examples c estimates the gradient of the weighted objective. N counts the nodes that could have been drawn.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
from msgspec import Meta

from tutti.core.local import Correction, Demand, Handed, Local, Plan, Request, Trained, at_weights, zeros_unless_kept
from tutti.core.reduce import weighted_mean
from tutti.core.strategies._server import optimise, start
from tutti.core.strategy import Folded, ServerState, Strategy, strategies


@strategies.register("scaffold")
def scaffold(server_lr: Annotated[float, Meta(gt=0, le=1e3)] = 1.0) -> Strategy:
    """FedAvg without client drift: each node's steps are corrected by how its gradient differs from all nodes'."""

    def finish(state: ServerState, update: Folded) -> ServerState:
        moved = optimise(state, update, lambda delta, _: (server_lr * delta, {}))
        c = state.slots["c"] + update.share * update.vectors["dc"].astype(np.float64)
        return replace(moved, slots={"c": c.astype(np.float32)})

    return Strategy(
        init=lambda params: start(params, c=0.0),
        configure=lambda state: {},
        reducer=weighted_mean(),
        finish=finish,
        local=Local(_plan, _report, demand=Demand.OFFSET, vectors=("dc",), optimizer="plain sgd"),
        shares_slots=True,
    )


def _plan(request: Request) -> tuple[Plan, ...]:
    return (Plan(request.model, Correction(offset=request.slots["c"] - zeros_unless_kept(request, "c_i"))),)


def _report(request: Request, trained: Sequence[Trained]) -> Handed:
    (dy,) = trained
    dc = -request.slots["c"] - at_weights(dy.delta) / np.float32(dy.steps * request.lr)
    return Handed(dy.delta, vectors={"dc": dc}, memory={"c_i": zeros_unless_kept(request, "c_i") + dc})
