"""FederatedAveraging: McMahan et al. 2017, https://arxiv.org/abs/1602.05629, Algorithm 1.

    w_{t+1} = sum_k (n_k / n) w^k_{t+1}  =  w_t + sum_k (n_k / n) (w^k_{t+1} - w_t)

FedSGD is the same with one local step over all local data.
"""

from tutti.core.reduce import weighted_mean
from tutti.core.strategies._server import add, start
from tutti.core.strategy import Strategy, strategies


@strategies.register("fedavg")
def fedavg() -> Strategy:
    """The weighted average of the local models."""
    return Strategy(init=start, configure=lambda state: {}, reducer=weighted_mean(), finish=add)
