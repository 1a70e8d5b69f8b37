"""q-FedAvg: Li et al. 2020, https://arxiv.org/abs/1905.10497, Algorithm 2.

    dw_k = L (w_t - w_k) ;  D_k = F_k(w_t)^q dw_k ;  h_k = q F_k(w_t)^(q-1) ||dw_k||^2 + L F_k(w_t)^q
    w_{t+1} = w_t - sum_k D_k / sum_k h_k

with L = 1 / lr. Nodes with a larger loss count more, the more so the larger q; q = 0 is FedAvg. Both sums are divided
by L here, and weighted as the job says. The paper adds 1e-10 to the loss in its code, as is done here.

Both are also divided by F^q, with F the mean loss of the round before: it cancels, and keeps F_k^q D_k within what sums
in fixed point can hold. In the first round F is 1.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
from msgspec import Meta

from tutti.core.local import Handed, Local, Request, Trained, at_weights, weights_scaled
from tutti.core.reduce import weighted_mean
from tutti.core.strategies._server import optimise, start
from tutti.core.strategy import Folded, ServerState, Strategy, strategies

SMALLEST_LOSS = 1e-10


@strategies.register("qfedavg")
def qfedavg(q: Annotated[float, Meta(ge=0, le=20)] = 1.0) -> Strategy:
    """FedAvg that is fairer to nodes with a large loss; the paper tries q from 0.001 to 5."""

    def report(request: Request, trained: Sequence[Trained]) -> Handed:
        delta, loss = trained[0].delta, request.loss + SMALLEST_LOSS
        squared = float(np.sum(at_weights(delta).astype(np.float64) ** 2))
        share = (loss / request.settings["loss"]) ** q
        h = share * (1 + q * squared / (loss * request.lr))
        return Handed(weights_scaled(delta, share), facts={"h": h, "loss": loss})

    return Strategy(
        init=lambda params: replace(start(params), scalars={"loss": 1.0}),
        configure=lambda state: {"loss": state.scalars["loss"]},
        reducer=weighted_mean(),
        finish=_finish,
        local=Local(report=report, loss_first=True, facts={"h": (1e-250, 1e30), "loss": (SMALLEST_LOSS, 1e30)}),
    )


def _finish(state: ServerState, update: Folded) -> ServerState:
    h = update.facts["h"]
    moved = optimise(state, update, lambda d, _: (d / h, {}))
    return replace(moved, scalars={"loss": update.facts["loss"]})
