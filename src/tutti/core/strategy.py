"""A strategy is a record of pure functions; this module says which, and what state they pass along."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from tutti.core.params import Params, Vector
from tutti.core.reduce import Reducer, reducers
from tutti.core.registry import Choice, Registry


@dataclass(frozen=True, slots=True, eq=False)
class ServerState:
    """Everything the server carries from round to round; saving it is the checkpoint.

    Attributes:
        params: The global model.
        slots: Vectors of the server optimiser (momentum, second moment), each as long as the model.
        steps: How many rounds have been folded in.
    """

    params: Params
    slots: Mapping[str, Vector] = field(default_factory=dict)
    steps: int = 0


@dataclass(frozen=True, slots=True)
class Strategy:
    """What the server does with a round, free of I/O, clocks and hidden state.

    Attributes:
        init: The state before round 1, from the initial model.
        configure: Trainer settings that every node of the cohort is told (such as FedProx's mu).
        reducer: How the cohort's updates are folded into one.
        finish: The next state, from the state and the folded delta.
    """

    init: Callable[[Params], ServerState]
    configure: Callable[[ServerState], Mapping[str, float]]
    reducer: Reducer
    finish: Callable[[ServerState, Params], ServerState]


strategies: Registry[Strategy] = Registry("strategy", "tutti.core.strategies")


def compose(strategy: Choice, reducer: Choice) -> Strategy:
    """The named strategy, which finishes what the named reducer folds; raises UnknownName and BadOption."""
    return replace(strategies.build(strategy), reducer=reducers.build(reducer))
