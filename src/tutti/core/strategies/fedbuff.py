"""FedBuff: Nguyen et al. 2022, https://arxiv.org/abs/2106.06639, Algorithm 1.

    w_{t+1} = w_t + eta_g / K sum_{i in buffer} s(t - tau_i) D_i       with s(t) = 1 / (1 + t)^(1/2)

The server steps as soon as K updates are in, whichever they are; nodes that are still at work go on, and their update
D_i = local - w_{tau_i}, of the older model that they began with, counts in a later round by s. A round here is one
step of the server, `cohort.size` (or `fraction`) the number of nodes at work at once, and a node has at most one
update in a step. Which updates are in a step depends on who is fast, and is in the log; what they make does not.
"""

from typing import Annotated

from msgspec import Meta

from tutti.core.reduce import weighted_mean
from tutti.core.strategies._server import optimise, start
from tutti.core.strategy import Asynchrony, Strategy, strategies


@strategies.register("fedbuff")
def fedbuff(
    buffer: Annotated[int, Meta(ge=1, le=4095)] = 10,
    server_lr: Annotated[float, Meta(gt=0, le=1e3)] = 1.0,
    exponent: Annotated[float, Meta(ge=0, le=10)] = 0.5,
) -> Strategy:
    """Asynchronous: the server steps with the first updates that come, stale ones count less, nobody waits."""
    return Strategy(
        init=start,
        configure=lambda state: {},
        reducer=weighted_mean(),
        finish=lambda state, update: optimise(state, update, lambda delta, _: (server_lr * delta, {})),
        asynchrony=Asynchrony(buffer, lambda staleness: (1 + staleness) ** -exponent),
    )
