"""FedProx: Li et al. 2020, https://arxiv.org/abs/1812.06127, Algorithm 2.

Node k approximately minimises  h_k(w; w_t) = F_k(w) + (mu / 2) ||w - w_t||^2 ; the server averages as in FedAvg.
Only the trainers act on it: they add mu (w - w_t) to each gradient. mu = 0 is FedAvg.
"""

from typing import Annotated

from msgspec import Meta

from tutti.core.reduce import weighted_mean
from tutti.core.strategies._server import add, start
from tutti.core.strategy import Strategy, strategies


@strategies.register("fedprox")
def fedprox(mu: Annotated[float, Meta(ge=0, le=1e3)] = 0.01) -> Strategy:
    """FedAvg whose nodes are held near the global model; the paper tries mu in {0.001, 0.01, 0.1, 1}."""
    return Strategy(
        init=start,
        configure=lambda state: {"proximal_mu": mu},
        reducer=weighted_mean(),
        finish=add,
    )
