"""Ditto: Li et al. 2021, https://arxiv.org/abs/2012.04221, Algorithm 1.

    global:    w_k <- SGD_k from w_t ;  w_{t+1} <- w_t + sum_k (n_k / n) (w_k - w_t)            as in FedAvg
    personal:  v_k <- v_k - eta (grad F_k(v_k) + lambda (v_k - w_t))                             kept at home

lambda = 0 is local training, a large one the global model. The personal model does as many steps as the global one,
and is what each node measures.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from msgspec import Meta

from tutti.core.local import Correction, Demand, Handed, Local, Plan, Request, Trained
from tutti.core.params import Params
from tutti.core.reduce import weighted_mean
from tutti.core.strategies._server import add, start
from tutti.core.strategy import Strategy, strategies


@strategies.register("ditto")
def ditto(lam: Annotated[float, Meta(ge=0, le=1e3)] = 0.1) -> Strategy:
    """FedAvg, and beside it a personal model on each node, held near the global one; the paper tries 0.05 to 2."""

    def plan(request: Request) -> tuple[Plan, ...]:
        held = Correction(pull=lam, anchor=request.model.buffer)
        return Plan(request.model), Plan(_personal(request), held)

    return Strategy(
        init=start,
        configure=lambda state: {},
        reducer=weighted_mean(),
        finish=add,
        local=Local(plan, _report, personal=_personal, demand=Demand.ANY),
    )


def _personal(request: Request) -> Params:
    """v_k; the global model before the first round."""
    kept = request.memory.get("v")
    return request.model if kept is None else Params(request.model.layout, np.asarray(kept))


def _report(request: Request, trained: Sequence[Trained]) -> Handed:
    shared, own = trained
    return Handed(shared.delta, memory={"v": _personal(request).buffer + own.delta.buffer})
