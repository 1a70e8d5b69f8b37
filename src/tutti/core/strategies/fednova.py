"""FedNova: Wang et al. 2020, https://arxiv.org/abs/2007.07481, equations 6 to 8 and section 4.

    d_i = -dw_i / |a_i|_1                                    the normalised gradient of node i, after tau_i steps
    tau_eff = sum_i p_i |a_i|_1 ;  w <- w - tau_eff sum_i p_i d_i

|a_i|_1 is tau_i for plain SGD, and (tau_i - rho (1 - rho^tau_i) / (1 - rho)) / (1 - rho) with local momentum rho.
Nodes that take more steps then no longer pull the model towards their own optimum.
"""

from collections.abc import Sequence

from tutti.core.local import Handed, Local, Request, Trained, weights_scaled
from tutti.core.reduce import weighted_mean
from tutti.core.strategies._server import optimise, start
from tutti.core.strategy import Folded, ServerState, Strategy, strategies

MOST_STEPS = 1e9


@strategies.register("fednova")
def fednova() -> Strategy:
    """FedAvg for nodes that take different numbers of local steps: directions are averaged, not distances."""
    return Strategy(
        init=start,
        configure=lambda state: {},
        reducer=weighted_mean(),
        finish=_finish,
        local=Local(report=_report, facts={"a": (1.0, MOST_STEPS)}, optimizer="sgd"),
    )


def norm_of_a(tau: int, rho: float) -> float:
    """|a_i|_1: what tau steps of one constant gradient add up to, in gradients."""
    return (tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho)


def _report(request: Request, trained: Sequence[Trained]) -> Handed:
    (dw,) = trained
    a = norm_of_a(dw.steps, request.momentum)
    return Handed(weights_scaled(dw.delta, 1 / a), facts={"a": a})


def _finish(state: ServerState, update: Folded) -> ServerState:
    tau_eff = update.facts["a"]
    return optimise(state, update, lambda d, _: (tau_eff * d, {}))
