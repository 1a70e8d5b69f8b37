"""A strategy is a record of pure functions, a half for the server and a half for the nodes, and the state they pass."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import fsum

from tutti.core.local import AS_FEDAVG, Local, weights_scaled
from tutti.core.params import Layout, Params, Vector
from tutti.core.reduce import Reducer, reducers
from tutti.core.registry import Choice, Registry


@dataclass(frozen=True, slots=True, eq=False)
class ServerState:
    """Everything the server carries from round to round; saving it is the checkpoint.

    Attributes:
        params: The global model.
        slots: Vectors of the server's half (momentum, control variate), each as long as the model.
        steps: How many rounds have been folded in.
        scalars: Finite numbers of the server's half.
        step: The code of the step that led to the model, where the job's models have a codec (see `core.steps`); no
            part of the checkpoint.
    """

    params: Params
    slots: Mapping[str, Vector] = field(default_factory=dict)
    steps: int = 0
    scalars: Mapping[str, float] = field(default_factory=dict)
    step: bytes = b""


@dataclass(frozen=True, slots=True, eq=False)
class Folded:
    """What the updates of a round came to; all means are weighted alike, and do not depend on any order.

    Attributes:
        delta: Mean of the deltas, role by role.
        vectors: Means of the extra vectors.
        facts: Means of the facts.
        share: How much of the nodes that could have taken part did: |S| / N.
    """

    delta: Params
    vectors: Mapping[str, Vector] = field(default_factory=dict)
    facts: Mapping[str, float] = field(default_factory=dict)
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Asynchrony:
    """The server steps with the first `buffer` updates; those who come later work on, into the next rounds.

    Attributes:
        weight: By what the weights of a delta are multiplied that began so many rounds ago.
    """

    buffer: int
    weight: Callable[[int], float]

    def discounted(self, delta: Params, staleness: int) -> Params:
        return weights_scaled(delta, self.weight(staleness)) if staleness else delta


@dataclass(frozen=True, slots=True)
class Strategy:
    """What server and nodes do with a round, free of I/O, clocks and hidden state.

    Attributes:
        init: The state before round 1, from the initial model; raises UserError for a model that does not fit.
        configure: Settings that every node of the cohort is told (such as FedProx's mu).
        reducer: How the cohort's updates are folded into one.
        finish: The next state, from the state and what was folded.
        local: The nodes' half.
        shares_slots: Whether nodes are sent the slots with the model.
        rounds: How many rounds a job must have; None for any number.
        in_turn: One node a round, in the order of their names, instead of a drawn cohort.
        asynchrony: How rounds overlap; None for rounds that halt whoever is late.
    """

    init: Callable[[Params], ServerState]
    configure: Callable[[ServerState], Mapping[str, float]]
    reducer: Reducer
    finish: Callable[[ServerState, Folded], ServerState]
    local: Local = AS_FEDAVG
    shares_slots: bool = False
    rounds: int | None = None
    in_turn: bool = False
    asynchrony: Asynchrony | None = None

    @property
    def only_deltas(self) -> bool:
        """Whether the cohort's deltas are all that the server's half needs, so that any reducer will do."""
        return not self.local.vectors and not self.local.facts


strategies: Registry[Strategy] = Registry("strategy", "tutti.core.strategies")


def compose(strategy: Choice, reducer: Choice) -> Strategy:
    """The named strategy, which finishes what the named reducer folds; raises UnknownName and BadOption."""
    return replace(strategies.build(strategy), reducer=reducers.build(reducer))


def folded(
    mean: Params, layout: Layout, local: Local, given: Iterable[tuple[int, Mapping[str, float]]], candidates: int
) -> Folded:
    """A reducer's result, with the layout `layout.with_vectors(local.vectors)`, in its parts.

    Args:
        given: Weight and facts of each update that was folded, in any order: their sums are correctly rounded.
        candidates: How many nodes could have taken part.
    """
    updates, n = list(given), layout.size
    if not local.vectors and not local.facts:
        return Folded(mean, share=len(updates) / max(candidates, len(updates)))
    total = sum(weight for weight, _ in updates)
    return Folded(
        Params(layout, mean.buffer[:n]),
        {name: mean.buffer[i * n : (i + 1) * n] for i, name in enumerate(local.vectors, start=1)},
        {name: fsum(weight * facts[name] for weight, facts in updates) / total for name in local.facts},
        len(updates) / max(candidates, len(updates)),
    )
