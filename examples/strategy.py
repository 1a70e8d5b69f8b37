"""A strategy of one's own, and a simulation with it: `python examples/strategy.py`.

Registered in a module that is imported first, as here, or by an entry point in the group `tutti.strategies`, it is a
choice like any other: its typed options are checked, and the catalog and the command line list them.
"""

from dataclasses import replace
from typing import Annotated

from msgspec import Meta

import tutti
from tutti.core.local import weights_scaled
from tutti.core.params import Params
from tutti.core.reduce import weighted_mean
from tutti.core.strategy import Folded, ServerState, Strategy, strategies


@strategies.register("cautious")
def cautious(share: Annotated[float, Meta(gt=0, le=1)] = 0.5) -> Strategy:
    """A part of the way to the average of the local models; statistics of BatchNorm go all of it."""

    def finish(state: ServerState, update: Folded) -> ServerState:
        step = weights_scaled(update.delta, share)
        moved = Params(state.params.layout, state.params.buffer + step.buffer)
        return replace(state, params=moved, steps=state.steps + 1)

    return Strategy(init=ServerState, configure=lambda state: {}, reducer=weighted_mean(), finish=finish)


if __name__ == "__main__":
    nodes = tutti.Federation.divide("digits", 10, "dirichlet:0.3")
    job = {
        "dataset": nodes.name,
        "model": "mlp",
        "strategy": "cautious:share=0.8",
        "rounds": 10,
        "cohort": {"min_nodes": 10, "size": 5},
    }
    history = tutti.simulate(job, nodes, watch=lambda record: print(record.round, record.evaluated))
    print(history.header.outcome, history.model)
