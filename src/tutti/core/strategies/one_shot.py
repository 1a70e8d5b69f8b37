"""One-shot averaging: Guha, Talwalkar and Smith 2019, https://arxiv.org/abs/1902.11175; Zhang et al. 2012,
https://arxiv.org/abs/1209.4129.

    w = sum_k (n_k / n) w_k    where each node trains to the end, and models are exchanged once

A baseline: what the further rounds of the other strategies are for. Give nodes the epochs of a whole job.
"""

from tutti.core.reduce import weighted_mean
from tutti.core.strategies._server import add, start
from tutti.core.strategy import Strategy, strategies


@strategies.register("one-shot")
def one_shot() -> Strategy:
    """The average of models that were trained alone, exchanged once; a baseline."""
    return Strategy(init=start, configure=lambda state: {}, reducer=weighted_mean(), finish=add, rounds=1)
