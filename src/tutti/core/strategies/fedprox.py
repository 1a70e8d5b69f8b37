"""FedProx: Li et al. 2020, https://arxiv.org/abs/1812.06127, Algorithm 2.

Node k approximately minimises  h_k(w; w_t) = F_k(w) + (mu / 2) ||w - w_t||^2 ; the server averages as in FedAvg.
mu = 0 is FedAvg. With `adaptive` (section 5.3.2), mu grows by 0.1 in a round whose loss sum_k (n_k / n) F_k(w_t) is
above that of the round before, and shrinks by 0.1 when the loss has fallen for five rounds in a row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated

from msgspec import Meta

from tutti.core.local import Correction, Handed, Local, Plan, Request, Trained
from tutti.core.reduce import weighted_mean
from tutti.core.strategies._server import add, start
from tutti.core.strategy import Strategy, strategies

STEP = 0.1
PATIENCE = 5
LOSSES = (0.0, 1e30)


@strategies.register("fedprox")
def fedprox(mu: Annotated[float, Meta(ge=0, le=1e3)] = 0.01, adaptive: bool = False) -> Strategy:
    """FedAvg whose nodes are held near the global model; the paper tries mu in {0.001, 0.01, 0.1, 1}."""
    if not adaptive:
        local = Local(plan=_pulled)
        return Strategy(start, lambda state: {"mu": mu}, weighted_mean(), add, local)
    return Strategy(
        init=lambda params: replace(start(params), scalars={"mu": mu, "falls": 0.0}),
        configure=lambda state: {"mu": state.scalars["mu"]},
        reducer=weighted_mean(),
        finish=lambda state, update: replace(add(state, update), scalars=adapted(state.scalars, update.facts["loss"])),
        local=Local(plan=_pulled, report=_with_loss, loss_first=True, facts={"loss": LOSSES}),
    )


def adapted(scalars: Mapping[str, float], loss: float) -> Mapping[str, float]:
    """mu, the loss and for how many rounds it has fallen, after a round whose model had this loss."""
    mu, falls, before = scalars["mu"], scalars["falls"], scalars.get("loss", loss)
    if loss > before:
        return {"mu": mu + STEP, "falls": 0.0, "loss": loss}
    falls = falls + 1 if loss < before else 0.0
    if falls < PATIENCE:
        return {"mu": mu, "falls": falls, "loss": loss}
    return {"mu": max(0.0, mu - STEP), "falls": 0.0, "loss": loss}


def _pulled(request: Request) -> tuple[Plan, ...]:
    return (Plan(request.model, Correction(pull=request.settings["mu"])),)


def _with_loss(request: Request, trained: Sequence[Trained]) -> Handed:
    return Handed(trained[0].delta, facts={"loss": request.loss})
