"""Statistics of rows that nobody may see: what a node tells of its columns, and what follows from several nodes' words.

A node tells of groups of `least` rows or more only (k-anonymity, Sweeney 2002,
https://doi.org/10.1142/S0218488502001648): a smaller count is hidden, and so is what it could be worked out from. Of
a column it tells

- mean and sum of squared deviations, which combine exactly (Chan, Golub & LeVeque 1979,
  http://i.stanford.edu/pub/cstr/reports/cs/tr/79/773/CS-TR-79-773.pdf, equation 1.5);
- how many values lie in ranges of at least `least` values, whose borders are those of DDSketch (Masson, Rim & Lee 2019,
  https://arxiv.org/abs/1908.10693, section 2): 2 % apart and the same on every node, so that any quantile can be read
  off. The `least` smallest values, and the largest, count as the last of them: no border tells of an extreme row.

`least` is the owner's alone, and so is the choice of borders: two answers with different groups would overlap in groups
of fewer rows, so nobody who asks has a say in either, and a node repeats its first answer for as long as it runs. The
same rows and the same `least` give the same answer after a restart too. Whoever asks before and after one row came, or
before and after the owner changed `least`, learns of the difference: an owner who must not allow that forbids
statistics.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import msgspec
import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.floating]

ACCURACY = 0.01
"""Relative error of a range's border; alpha in the paper."""

_GAMMA = (1 + ACCURACY) / (1 - ACCURACY)
_SMALLEST = 1e-9
"""Values nearer to zero count as zero."""

MOST_RANGES = 48


class Range(msgspec.Struct, frozen=True, array_like=True):
    """`rows` values from `low` to `high`; written as a list of the three."""

    low: float
    high: float
    rows: int


class Column(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of one column. An empty one, with `count` 0, has too few values to be told of.

    Attributes:
        count: Rows that the figures are of.
        missing: Cells without a value, before rows were left out or cells filled in; None: some, but fewer than may be
            shown.
        mean, squares: Of the values; `squares` is the sum of squared deviations from the mean.
        ranges: In ascending order; empty for fewer than twice the least number of rows.
    """

    name: str
    count: int = 0
    missing: int | None = 0
    mean: float = 0.0
    squares: float = 0.0
    ranges: tuple[Range, ...] = ()

    @property
    def deviation(self) -> float:
        """Of the values, with divisor n."""
        return sqrt(self.squares / self.count) if self.count else 0.0


class Statistics(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one node, or all together, hold.

    Attributes:
        rows: How many.
        columns: In the order of the schema; some of them only, where they are sent in portions.
        classes: Rows of each class; None: some, but it is hidden how many. Empty for a regression.
    """

    rows: int
    columns: tuple[Column, ...] = ()
    classes: tuple[int | None, ...] = ()


def describe(name: str, values: Values, *, least: int, missing: int = 0, filled: bool = False) -> Column:
    """One column's values, float (n,) or (n, m) where a row has many, as far as they may be told.

    `missing` counts cells without a value, before rows were left out or, if `filled`, the mean of the others was put
    there: then few others are not told of either, nor how many cells are missing for there to be so few.
    """
    per_row = values.shape[1] if values.ndim == 2 else 1
    flat = values.astype(np.float64).ravel()
    known = len(values) - missing * filled
    shown = None if 0 < missing < least or known < least <= len(values) else missing
    if known < least:
        return Column(name=name, missing=shown)
    mean = float(flat.mean())
    return Column(
        name=name,
        count=len(values),
        missing=shown,
        mean=mean,
        squares=float(((flat - mean) ** 2).sum()) / per_row,
        ranges=_ranges(flat, least * per_row, per_row) if len(values) >= 2 * least else (),
    )


def _ranges(values: NDArray[np.float64], least: int, per_row: int) -> tuple[Range, ...]:
    ordered = np.sort(values)
    clipped = np.clip(ordered, ordered[least - 1], ordered[-least])
    at, counts = np.unique(_border(clipped), return_counts=True)
    wanted = max(least, len(values) // MOST_RANGES)
    found: list[Range] = []
    first, rows = 0, 0
    for i, count in enumerate(counts.tolist()):
        rows += count
        if rows >= wanted:
            found.append(Range(_lower(at[first]), _upper(at[i]), rows))
            first, rows = i + 1, 0
    if rows:  # too few are left: they join the last
        last = found.pop()
        found.append(Range(last.low, _upper(at[-1]), last.rows + rows))
    return tuple(Range(r.low, r.high, round(r.rows / per_row)) for r in found)


def _border(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Which range of the grid a value falls into: 0 for zero, else sign and logarithm in one number."""
    size = np.abs(values)
    place = np.ceil(np.log(np.maximum(size, _SMALLEST) / _SMALLEST) / np.log(_GAMMA)).astype(np.int64)
    return np.where(size <= _SMALLEST, 0, np.sign(values).astype(np.int64) * np.maximum(place, 1))


def _upper(place: int) -> float:
    return _edge(place) if place >= 0 else -_edge(-place - 1)


def _lower(place: int) -> float:
    return -_edge(-place) if place <= 0 else _edge(place - 1)


def _edge(place: int) -> float:
    return float(_SMALLEST * _GAMMA ** int(place)) if place else 0.0


def class_counts(y: NDArray[np.int64], classes: int, *, least: int) -> tuple[int | None, ...]:
    """Rows of each class; small counts are hidden, with as many next larger ones as keep them from being worked out."""
    counts = np.bincount(y, minlength=classes)
    hidden = (counts > 0) & (counts < least)
    for label in np.argsort(counts, kind="stable"):
        if not hidden.any() or (counts[hidden].sum() >= least and hidden.sum() > 1):
            break
        hidden[label] |= counts[label] > 0
    return tuple(None if hide else count for count, hide in zip(counts.tolist(), hidden.tolist(), strict=True))


# -- several nodes -----------------------------------------------------------------------------------------


def pooled(parts: Mapping[str, Statistics]) -> Statistics:
    """All nodes together, in the order of their names: the same values give the same bits."""
    ordered = [parts[name] for name in sorted(parts)]
    columns = zip(*(part.columns for part in ordered), strict=True)
    labels = zip(*(part.classes for part in ordered), strict=True)
    return Statistics(
        rows=sum(part.rows for part in ordered),
        columns=tuple(_merged(column) for column in columns),
        classes=tuple(None if None in counts else sum(filter(None, counts)) for counts in labels),
    )


def _merged(parts: Sequence[Column]) -> Column:
    count, mean, squares = 0, 0.0, 0.0
    for part in parts:
        if not part.count:
            continue
        total = count + part.count
        apart = part.mean - mean
        mean += apart * part.count / total
        squares += part.squares + apart * apart * count * part.count / total
        count = total
    missing = [part.missing for part in parts]
    ranges = sorted((r for part in parts for r in part.ranges), key=lambda r: (r.low, r.high))
    return Column(
        name=parts[0].name,
        count=count,
        missing=None if None in missing else sum(filter(None, missing)),
        mean=mean,
        squares=squares,
        ranges=tuple(ranges),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Distribution:
    """What ranges say of where values lie: within a range, evenly."""

    ranges: Sequence[Range]

    @property
    def rows(self) -> int:
        return sum(each.rows for each in self.ranges)

    def below(self, at: float, *, inclusive: bool = True) -> float:
        """How many values are at most `at` (or less)."""
        return sum(each.rows * _share(each, at, inclusive=inclusive) for each in self.ranges)

    def quantiles(self, shares: Iterable[float]) -> list[float]:
        """The values below which these shares lie; empty where nothing is known."""
        if not self.ranges:
            return []
        edges = sorted({edge for each in self.ranges for edge in (each.low, each.high)})
        known = [(self.below(edge, inclusive=inclusive), edge) for edge in edges for inclusive in (False, True)]
        counts, places = zip(*known, strict=True)
        return [float(np.interp(share * self.rows, counts, places)) for share in shares]

    def histogram(self, bars: int = 10) -> list[Range]:
        """Rows in equally wide ranges, rounded; empty where nothing is known."""
        if not self.ranges:
            return []
        edges = np.linspace(min(r.low for r in self.ranges), max(r.high for r in self.ranges), bars + 1).tolist()
        counts = [0.0, *(self.below(edge) for edge in edges[1:])]
        return [Range(edges[i], edges[i + 1], round(counts[i + 1] - counts[i])) for i in range(bars)]


def _share(part: Range, at: float, *, inclusive: bool) -> float:
    if at < part.low or (at == part.low and not inclusive):
        return 0.0
    return 1.0 if part.high == part.low else min(1.0, (at - part.low) / (part.high - part.low))
