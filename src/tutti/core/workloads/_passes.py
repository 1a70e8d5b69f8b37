"""One pass over a table in pieces that stay in the processor's cache: memory is read once, whatever is summed up."""

from collections.abc import Iterator

import numpy as np

from tutti.core.workload import Floats

CACHED = 1 << 15
"""Numbers of a piece: a quarter of a megabyte."""

SOME = 256
FAR = 10.0


def pieces(rows: int, columns: int, least: int = 1) -> Iterator[slice]:
    """Rows some at a time, `least` or more."""
    step = max(least, CACHED // columns)
    for first in range(0, rows, step):
        yield slice(first, first + step)


def about(values: Floats) -> Floats:
    """About where the rows lie, by some of them: taken away first, it leaves sums of squares their digits.

    Zeros where nothing is far from zero, measured by how much it varies: then there is nothing to be taken away.
    """
    some = values[:: max(1, len(values) // SOME)]
    mean = np.asarray(some.mean(axis=0))
    return mean if (np.abs(mean) > FAR * some.std(axis=0)).any() else np.zeros_like(mean)


def less(values: Floats, shift: Floats) -> Iterator[tuple[slice, Floats]]:
    """The rows less `shift`, a piece after the other; not copied if it is zero."""
    moved = bool(shift.any())
    for rows in pieces(*values.shape):
        yield rows, values[rows] - shift if moved else values[rows]
