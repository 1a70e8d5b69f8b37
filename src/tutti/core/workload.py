"""Compute jobs of the market: how a result is made, and how it is checked at a fraction of the cost.

A check costs a few passes over the data where the work costs many, and rests on a certificate, not on trust: each
module of `tutti.core.workloads` says which, with its tolerance and the reference. The seed of a check is drawn after
the result has been committed to, so that nobody can aim a wrong result past it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tutti.core.errors import UserError
from tutti.core.registry import Registry

LARGEST_RESULT = 64 << 20
"""Bytes of a result that are taken, with what is written around its numbers."""

Floats: TypeAlias = NDArray[np.float64]
Result: TypeAlias = Mapping[str, Floats]


class BadTable(UserError):
    """Data that a workload cannot use."""


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """The rows of a job: `x` float64 (n, d) and, where there is something to predict, `y` float64 (n,).

    `start`: numbers to go on from, such as the weights of a model.
    """

    x: Floats
    y: Floats | None = None
    start: Floats | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a result holds. `reason` says what does not; `measures` are what was looked at."""

    holds: bool
    reason: str = ""
    measures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Workload:
    """A kind of compute job.

    Attributes:
        admit: Raises BadTable, saying what is wrong, for data that it cannot be done on.
        solve: (table, seed) -> the result; the same inputs give the same result but for rounding.
        shapes: table -> the names and shapes of a result; -1 where any length up to `longest` will do.
        check: (table, result of these shapes and finite, seed of the job, seed of the check) -> the verdict.
        replay: (table, result, seed of the job) -> the verdict after all of the work was done again: what `check`
            finds with a chance, it finds for sure.
        work: (rows, columns) -> about how many floating-point operations it takes.
        detection: The least chance with which `check` finds a result that is wrong.
        longest: What a -1 in `shapes` is at most.
    """

    admit: Callable[[Table], None]
    solve: Callable[[Table, int], Result]
    shapes: Callable[[Table], Mapping[str, tuple[int, ...]]]
    check: Callable[[Table, Result, int, int], Verdict]
    replay: Callable[[Table, Result, int], Verdict]
    work: Callable[[int, int], float]
    detection: float = 1.0
    longest: int = 0

    def largest(self, table: Table) -> int:
        """Bytes that the numbers of a result may take."""
        shapes = self.shapes(table).values()
        return sum(8 * prod(self.longest if n == -1 else n for n in shape) for shape in shapes)


workloads: Registry[Workload] = Registry("workload", "tutti.core.workloads")


def verify(
    workload: Workload, table: Table, result: Mapping[str, object], seed: int, check_seed: int, *, replay: bool = False
) -> Verdict:
    """Check what somebody claims to be a result: anything at all may come, and nothing that comes is executed.

    `seed` is the job's, which its result depends on; `check_seed` is drawn afterwards. With `replay`, all of the work
    is done again once the check has passed.
    """
    arrays: dict[str, Floats] = {}
    for name, shape in workload.shapes(table).items():
        came = result.get(name)
        if not isinstance(came, np.ndarray) or came.dtype != np.float64:
            return Verdict(False, f"{name!r} is missing or not an array of float64")
        fits = came.ndim == len(shape) and all(
            m <= workload.longest if n == -1 else m == n for n, m in zip(shape, came.shape, strict=True)
        )
        if not fits:
            return Verdict(False, f"{name!r} should have the shape {shape}, came {came.shape}")
        if not np.isfinite(came).all():
            return Verdict(False, f"{name!r} has values that are not finite")
        arrays[name] = came
    verdict = workload.check(table, arrays, seed, check_seed)
    return workload.replay(table, arrays, seed) if replay and verdict.holds else verdict


def check_finite(table: Table, least_rows: int) -> None:
    """Raises BadTable for too few rows, or values that are not finite or too large to be squared."""
    if table.x.ndim != 2 or len(table.x) < least_rows or table.x.shape[1] < 1:
        raise BadTable(f"expected {least_rows} rows of numbers or more, came an array of shape {table.x.shape}")
    columns = [table.x] if table.y is None else [table.x, table.y]
    if table.y is not None and table.y.shape != (len(table.x),):
        raise BadTable(f"expected a target for each of {len(table.x)} rows, came {table.y.shape}")
    for values in columns:
        if not np.isfinite(values).all() or np.abs(values).max() > 1e100:
            raise BadTable("the data have values that are not finite, or beyond 1e100: remove or scale them")
