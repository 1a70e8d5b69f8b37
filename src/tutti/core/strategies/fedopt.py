"""FedAdagrad, FedYogi and FedAdam: Reddi et al. 2021, https://arxiv.org/abs/2003.00295, Algorithm 2.

    m_t = beta1 m_{t-1} + (1 - beta1) delta_t
    v_t = v_{t-1} + delta_t^2                                          (FedAdagrad)
    v_t = v_{t-1} - (1 - beta2) delta_t^2 sign(v_{t-1} - delta_t^2)    (FedYogi)
    v_t = beta2 v_{t-1} + (1 - beta2) delta_t^2                        (FedAdam)
    x_{t+1} = x_t + eta m_t / (sqrt(v_t) + tau)

with m_{-1} = 0 and v_{-1} = tau^2, and no bias correction. `server_lr` is eta; beta1, beta2 and tau default to the
values of the paper's experiments (beta1 = 0 for FedAdagrad).
"""

from collections.abc import Callable, Mapping
from typing import Annotated, TypeAlias

import numpy as np
from msgspec import Meta

from tutti.core.reduce import weighted_mean
from tutti.core.strategies._server import Block, optimise, start
from tutti.core.strategy import Strategy, strategies

ServerLr: TypeAlias = Annotated[float, Meta(gt=0, le=1e3)]
Beta: TypeAlias = Annotated[float, Meta(ge=0, lt=1)]
Tau: TypeAlias = Annotated[float, Meta(gt=0, le=1e3)]

SecondMoment: TypeAlias = Callable[[Block, Block], Block]
"""(v_{t-1}, delta_t^2) -> v_t"""


@strategies.register("fedadagrad")
def fedadagrad(server_lr: ServerLr = 0.1, beta1: Beta = 0.0, tau: Tau = 1e-3) -> Strategy:
    """Server Adagrad: steps shrink with the sum of all squared deltas."""
    return _fedopt(server_lr, beta1, tau, lambda v, square: v + square)


@strategies.register("fedyogi")
def fedyogi(server_lr: ServerLr = 0.1, beta1: Beta = 0.9, beta2: Beta = 0.99, tau: Tau = 1e-3) -> Strategy:
    """Server Yogi: like Adam, but the second moment moves by no more than the squared delta."""
    return _fedopt(server_lr, beta1, tau, lambda v, square: v - (1 - beta2) * square * np.sign(v - square))


@strategies.register("fedadam")
def fedadam(server_lr: ServerLr = 0.1, beta1: Beta = 0.9, beta2: Beta = 0.99, tau: Tau = 1e-3) -> Strategy:
    """Server Adam: momentum, and steps scaled by a running mean of squared deltas."""
    return _fedopt(server_lr, beta1, tau, lambda v, square: beta2 * v + (1 - beta2) * square)


def _fedopt(server_lr: float, beta1: float, tau: float, second_moment: SecondMoment) -> Strategy:
    def rule(delta: Block, slots: Mapping[str, Block]) -> tuple[Block, Mapping[str, Block]]:
        m = beta1 * slots["m"] + (1 - beta1) * delta
        v = second_moment(slots["v"], delta * delta)
        return server_lr * m / (np.sqrt(v) + tau), {"m": m, "v": v}

    return Strategy(
        init=lambda params: start(params, m=0.0, v=tau * tau),
        configure=lambda state: {},
        reducer=weighted_mean(),
        finish=lambda state, update: optimise(state, update, rule),
    )
