"""Rules that must see all updates at once, as reducers: updates are kept as they came, and looked at in the end.

What is kept are views, such as of mapped files: a rule reads them block by block and copies none as a whole.
Three decisions hold for every rule here.

- Updates count alike. A weight is a claim, and who would lie about values would lie about examples as well.
- Order leaves no trace: before a rule sees them, updates are sorted by their values, equal ones by who sent them.
- Buffers are treated like weights. Counters, whose maximum one node could set, take the upper median.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cmp_to_key
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tutti.core.fixedpoint import Blocks, all_within, blocks_of
from tutti.core.params import Layout, Params, Role, Vector
from tutti.core.reduce import MAX_FLOAT, BadUpdate, Reducer, TooFewUpdates, Update, fault, misfit

FIRST_LOOK, LONGEST_LOOK = 64, 2**18


@dataclass(frozen=True, slots=True, eq=False)
class Cohort:
    """All updates of a round: their values in a canonical order, and the blocks that a rule looks at."""

    columns: Sequence[Vector]
    blocks: Blocks

    def __len__(self) -> int:
        return len(self.columns)


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """What a rule makes of a cohort.

    Attributes:
        delta: A new float32 vector, of which the blocks count.
        coefficients: By what each update went into it, none below 0: float64 (n,). None where every value was judged by
            itself.
    """

    delta: Vector
    coefficients: NDArray[np.float64] | None = None


Rule: TypeAlias = Callable[[Cohort], Verdict]
"""Deterministic."""


def robust(rule: Rule, *, min_updates: int) -> Reducer:
    """A reducer that keeps all updates and applies a rule to them. Refuses NaN and infinities, nothing else."""

    def finish(acc: _Kept) -> Params:
        return _finish(acc, rule, min_updates)

    return Reducer(
        _zero, _check, _add, _merge, finish, linear=False, min_updates=min_updates, shares=lambda acc: acc.shares
    )


@dataclass(slots=True, eq=False)
class _Kept:
    layout: Layout
    max_updates: int
    max_weight: int
    everything: Blocks
    updates: list[Update] = field(default_factory=list)
    shares: Mapping[str, float] = field(default_factory=dict)
    finished: bool = False


def _zero(layout: Layout, max_updates: int, max_weight: int) -> _Kept:
    return _Kept(layout, max_updates, max_weight, blocks_of([slice(0, layout.size)]))


def _check(acc: _Kept, update: Update) -> str | None:
    if reason := misfit(update, acc.layout, acc.max_weight):
        return reason
    return None if all_within(update.delta.buffer, acc.everything, MAX_FLOAT) else fault(update.delta, MAX_FLOAT)


def _add(acc: _Kept, /, *updates: Update) -> None:
    _require_open(acc)
    _require_room(acc, len(updates))
    for update in updates:
        if reason := _check(acc, update):
            raise BadUpdate(reason)
    acc.updates.extend(updates)


def _merge(acc: _Kept, other: _Kept) -> None:
    _require_open(acc)
    _require_open(other)
    if acc is other or acc.layout != other.layout or acc.max_weight != other.max_weight:
        raise ValueError("only two accumulators of one layout and one largest weight can be merged")
    _require_room(acc, len(other.updates))
    acc.updates.extend(other.updates)


def _finish(acc: _Kept, rule: Rule, min_updates: int) -> Params:
    _require_open(acc)
    if len(acc.updates) < min_updates:
        raise TooFewUpdates(
            f"this reducer needs at least {min_updates} updates, came {len(acc.updates)}; ask more nodes, or allow "
            "for fewer bad ones"
        )
    acc.finished = True
    updates = sorted(acc.updates, key=cmp_to_key(_by_values))
    acc.updates, columns = [], [update.delta.buffer for update in updates]
    spans = acc.layout.spans_of(Role.WEIGHT) + acc.layout.spans_of(Role.BUFFER)
    verdict = rule(Cohort(columns, blocks_of(sorted(spans, key=lambda span: span.start))))
    acc.shares, result = _shares([update.node for update in updates], verdict.coefficients), verdict.delta
    for span in acc.layout.spans_of(Role.COUNTER):
        result[span] = np.sort([column[span] for column in columns], axis=0)[len(columns) // 2] + np.float32(0)
    return Params(acc.layout, result)


def _shares(nodes: Sequence[str], coefficients: NDArray[np.float64] | None) -> Mapping[str, float]:
    if coefficients is None:
        return {}
    total = coefficients.sum()
    shares = coefficients / total if total > 0 else np.zeros(len(nodes))
    return {node: share for node, share in sorted(zip(nodes, shares.tolist(), strict=True)) if node}


def _by_values(one: Update, other: Update) -> int:
    """Compare bit patterns from the start, of which two honest updates differ in the first few; then names."""
    a, b, start, look = one.delta.buffer, other.delta.buffer, 0, FIRST_LOOK
    while start < a.size:
        left, right = a[start : start + look].tobytes(), b[start : start + look].tobytes()
        if left != right:
            return -1 if left < right else 1
        start, look = start + look, min(look * 8, LONGEST_LOOK)
    return (one.node > other.node) - (one.node < other.node)


def _require_open(acc: _Kept) -> None:
    if acc.finished:
        raise ValueError("this accumulator is finished; start with a new zero")


def _require_room(acc: _Kept, more: int) -> None:
    if len(acc.updates) + more > acc.max_updates:
        raise BadUpdate(f"expected at most {acc.max_updates} updates, came {len(acc.updates) + more}")
