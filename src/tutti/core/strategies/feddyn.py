"""FedDyn: Acar et al. 2021, https://arxiv.org/abs/2111.04263, Algorithm 1.

    theta_k = argmin_theta  L_k(theta) - <g_k, theta> + alpha / 2 ||theta - theta_t||^2
    g_k <- g_k - alpha (theta_k - theta_t)                                      g_k = grad L_k(theta_k), kept at home
    h <- h - alpha / m sum_{k in P} (theta_k - theta_t)
    theta_{t+1} = 1 / |P| sum_{k in P} theta_k - h / alpha

m counts the nodes that could have been drawn; the means are weighted as the job says.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from msgspec import Meta

from tutti.core.local import Correction, Demand, Handed, Local, Plan, Request, Trained, at_weights, zeros_unless_kept
from tutti.core.reduce import weighted_mean
from tutti.core.strategies._server import Block, optimise, start
from tutti.core.strategy import Folded, ServerState, Strategy, strategies


@strategies.register("feddyn")
def feddyn(alpha: Annotated[float, Meta(gt=0, le=1e3)] = 0.01) -> Strategy:
    """Nodes' objectives are bent so that their optima agree with the global one; the paper tries alpha 0.001 to 0.1."""

    def plan(request: Request) -> tuple[Plan, ...]:
        return (Plan(request.model, Correction(offset=-zeros_unless_kept(request, "g"), pull=alpha)),)

    def report(request: Request, trained: Sequence[Trained]) -> Handed:
        change = at_weights(trained[0].delta)
        return Handed(trained[0].delta, memory={"g": zeros_unless_kept(request, "g") - np.float32(alpha) * change})

    def finish(state: ServerState, update: Folded) -> ServerState:
        def rule(delta: Block, slots: Mapping[str, Block]) -> tuple[Block, Mapping[str, Block]]:
            h = slots["h"] - alpha * update.share * delta
            return delta - h / alpha, {"h": h}

        return optimise(state, update, rule)

    return Strategy(
        init=lambda params: start(params, h=0.0),
        configure=lambda state: {},
        reducer=weighted_mean(),
        finish=finish,
        local=Local(plan, report, demand=Demand.OFFSET),
    )
