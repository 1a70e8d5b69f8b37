"""Cyclic weight transfer: Chang et al. 2018, https://doi.org/10.1093/jamia/ocy017.

The model visits one node after another, in the order of their names, and again from the first: each trains it on
from where the one before left it.

    w_{t+1} = w^k_{t+1}    with k the node whose turn it is
"""

from tutti.core.reduce import weighted_mean
from tutti.core.strategies._server import add, start
from tutti.core.strategy import Strategy, strategies


@strategies.register("cyclic")
def cyclic() -> Strategy:
    """One node a round, in turn; each goes on from the model of the one before. Nothing is averaged."""
    return Strategy(init=start, configure=lambda state: {}, reducer=weighted_mean(), finish=add, in_turn=True)
