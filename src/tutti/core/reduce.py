"""Reducers: folds over updates, one at a time as they arrive, in memory that does not grow with their number."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tutti.core.errors import UserError
from tutti.core.fixedpoint import (
    Blocks,
    FixedPoint,
    Sums,
    accumulate,
    all_within,
    blocks_of,
    divide_in_place,
    fixed_point,
)
from tutti.core.params import Layout, Params, Role, Vector
from tutti.core.registry import Registry

MAX_FLOAT = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """What one node sends back: `delta = local - global` and its integer weight (examples, or 1).

    `node` is who sent it, for reducers that can say how much of whose update they took.
    """

    delta: Params
    weight: int
    node: str = ""


class BadUpdate(UserError):
    """An update that cannot be folded in; the accumulator is as it was before."""


class TooFewUpdates(UserError):
    """Fewer updates than the reducer's assumptions need."""


class Add(Protocol):
    def __call__(self, acc: Any, /, *updates: Update) -> None: ...


def _by_weight(acc: Any) -> Mapping[str, float]:
    return {}


@dataclass(frozen=True, slots=True)
class Reducer:
    """A commutative monoid over updates.

    Attributes:
        zero: (layout, max_updates, max_weight) -> accumulator; raises UserError for what cannot be summed safely.
        check: (accumulator, update) -> why the update cannot be admitted, or None.
        add: Fold one or more updates in, in place and all or nothing; several at once take fewer passes over
            memory. Raises BadUpdate for what `check` refuses.
        merge: (accumulator, other) folds another accumulator in, in place.
        finish: accumulator -> the folded delta; the accumulator is used up.
        linear: Whether the result is linear in the deltas, so that they may be masked or pre-summed.
        min_updates: How many updates it takes for the result to mean what it should.
        rooted: The server's own update of the round -> the reducer that compares with it, whose `finish` takes the same
            accumulators; None for reducers that need no such update.
        shares: Finished accumulator -> each node's share of the result, where the reducer weighed whole updates: they
            add up to 1, and 0 is who was left out. Empty where weights alone decide, or each value is judged by itself.
    """

    zero: Callable[[Layout, int, int], Any]
    check: Callable[[Any, Update], str | None]
    add: Add
    merge: Callable[[Any, Any], None]
    finish: Callable[[Any], Params]
    linear: bool
    min_updates: int = 1
    rooted: "Callable[[Params], Reducer] | None" = None
    shares: Callable[[Any], Mapping[str, float]] = _by_weight


reducers: Registry[Reducer] = Registry("reducer", "tutti.core.robust")


def fold(reducer: Reducer, updates: Sequence[Update], layout: Layout, max_weight: int) -> Params:
    """All updates at once: zero, add, finish."""
    acc = reducer.zero(layout, len(updates), max_weight)
    reducer.add(acc, *updates)
    return reducer.finish(acc)


@reducers.register("mean")
def weighted_mean() -> Reducer:
    """sum(weight * delta) / sum(weight), bitwise equal in any order of arrival and any tree of merges.

    Weights and buffers are averaged in fixed point, counters take the maximum (see Role). An update is refused
    if it holds NaN, an infinity, or a value beyond the limit of the fixed point format.
    """
    return Reducer(_zero, _check, _add, _merge, _finish, linear=True)


@dataclass(slots=True, eq=False)
class Mean:
    """The accumulator of `mean`: two models large.

    `sums` is 0 at the counters, whose indices `counters` holds; it is written with the first update, and means nothing
    while `count` is 0: to fill a large one with zeros before takes as long as to add an update.
    """

    layout: Layout
    max_updates: int
    max_weight: int
    point: FixedPoint
    blocks: Blocks
    counters: NDArray[np.int64]
    sums: Sums
    maxima: Vector
    count: int = 0
    weight: int = 0
    finished: bool = False


def _zero(layout: Layout, max_updates: int, max_weight: int) -> Mean:
    point = fixed_point(max_updates, max_weight)
    averaged = sorted(layout.spans_of(Role.WEIGHT) + layout.spans_of(Role.BUFFER), key=lambda span: span.start)
    ranges = [np.arange(span.start, span.stop) for span in layout.spans_of(Role.COUNTER)]
    counters = np.concatenate([np.zeros(0, np.int64), *ranges])
    return Mean(
        layout,
        max_updates,
        max_weight,
        point,
        blocks_of(averaged),
        counters,
        np.empty(layout.size, np.int64),
        np.full(counters.size, -np.inf, np.float32),
    )


def _check(acc: Mean, update: Update) -> str | None:
    if reason := misfit(update, acc.layout, acc.max_weight):
        return reason
    return None if _sound(acc, update.delta) else fault(update.delta, acc.point.limit)


def misfit(update: Update, layout: Layout, max_weight: int) -> str | None:
    """Why an update is not one of this layout and weight, or None."""
    if difference := layout.difference(update.delta.layout):
        return f"wrong layout: {difference}"
    if type(update.weight) is not int or not 1 <= update.weight <= max_weight:
        return f"the weight should be a whole number from 1 to {max_weight}, came {update.weight!r}"
    return None


def _sound(acc: Mean, delta: Params) -> bool:
    return all_within(delta.buffer, acc.blocks, acc.point.limit) and _finite_counters(acc, delta)


def _finite_counters(acc: Mean, delta: Params) -> bool:
    return bool(np.isfinite(delta.buffer[acc.counters]).all())


def fault(delta: Params, limit: float) -> str:
    """Names the first value of an unsound update that is not finite, or beyond the limit (for all but counters)."""
    for entry, values in delta.items():
        wrong = ~(np.abs(values) <= (MAX_FLOAT if entry.role is Role.COUNTER else limit))
        if not wrong.any():
            continue
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        place = f"{entry.name!r} holds {values[at]} at {list(at)}"
        if not np.isfinite(values[at]):
            return f"{place}: an update must be finite; the training diverged, lower the learning rate"
        return f"{place}: a value may change by at most {limit:g} in one round; scale the data or the learning rate"
    raise AssertionError("an unsound update has a fault")


def _add(acc: Mean, /, *updates: Update) -> None:
    _require_open(acc)
    if acc.count + len(updates) > acc.max_updates:
        raise BadUpdate(f"expected at most {acc.max_updates} updates, came {acc.count + len(updates)}")
    for update in updates:
        if reason := misfit(update, acc.layout, acc.max_weight):
            raise BadUpdate(reason)
    deltas = [update.delta.buffer for update in updates]
    scales = [acc.point.scale(update.weight) for update in updates]
    if first := acc.count == 0:
        acc.sums[acc.counters] = 0
    clean = accumulate(acc.sums, deltas, scales, acc.blocks, acc.point.limit, first)
    if not (clean and all(_finite_counters(acc, update.delta) for update in updates)):
        if not first:
            accumulate(acc.sums, deltas, [-scale for scale in scales], acc.blocks, acc.point.limit)
        raise BadUpdate(next(filter(None, (_check(acc, update) for update in updates))))
    for delta in deltas:
        np.maximum(acc.maxima, delta[acc.counters] + np.float32(0), out=acc.maxima)  # + 0: there is one zero only
    acc.count += len(updates)
    acc.weight += sum(update.weight for update in updates)


def _merge(acc: Mean, other: Mean) -> None:
    _require_open(acc)
    _require_open(other)
    if acc is other or acc.layout != other.layout or acc.point != other.point:
        raise ValueError("only two accumulators of one layout and one fixed point format can be merged")
    if acc.count + other.count > acc.max_updates:
        raise BadUpdate(f"expected at most {acc.max_updates} updates, came {acc.count + other.count}")
    if acc.count and other.count:
        acc.sums += other.sums
    elif other.count:
        acc.sums[:] = other.sums
    np.maximum(acc.maxima, other.maxima, out=acc.maxima)
    acc.count += other.count
    acc.weight += other.weight


def _finish(acc: Mean) -> Params:
    _require_open(acc)
    if acc.count == 0:
        raise ValueError("there is no mean of no updates")
    acc.finished = True
    mean = divide_in_place(acc.sums, acc.weight, acc.point.fraction_bits)
    mean[acc.counters] = acc.maxima
    return Params(acc.layout, mean)


def _require_open(acc: Mean) -> None:
    if acc.finished:
        raise ValueError("this accumulator is finished; start with a new zero")
