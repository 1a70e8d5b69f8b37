"""Arithmetic over many long vectors: inner products, weighted sums, and means of sorted columns.

Vectors are read in blocks that stay in the cache, and never copied as a whole, so that memory does not grow with
their number. Sums have a fixed order and are made in float64. The fast twin of this file is _kernels.c; `combine`
and `window_mean` agree with it bit for bit, `gram` to the last digits of a float64.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tutti.core.fixedpoint import Blocks
from tutti.core.params import Vector

try:
    from tutti.core.robust import _kernels
except ImportError:  # built without a C compiler
    _kernels = None  # type: ignore[assignment]

Matrix: TypeAlias = NDArray[np.float64]
Pairs: TypeAlias = NDArray[np.int32]
"""A sorting network: rows (low, high) that are compared in turn, and exchanged if the first is larger."""


# -- inner products ----------------------------------------------------------------------------------


def gram(columns: Sequence[Vector], blocks: Blocks) -> Matrix:
    """Inner products of the vectors within the blocks: float64 (n, n), symmetric."""
    products = np.empty((len(columns), len(columns)))
    _gram(products, columns, columns[0].size, blocks)
    return products


def gram_numpy(out: Matrix, columns: Sequence[Vector], size: int, blocks: Blocks) -> None:
    out[:] = 0.0
    for start, stop in blocks.tolist():
        rows = np.stack([column[start:stop] for column in columns], dtype=np.float64)
        out += rows @ rows.T


def squared_norms(columns: Sequence[Vector], blocks: Blocks) -> Matrix:
    """float64 (n,)."""
    return np.array([gram([column], blocks)[0, 0] for column in columns])


def squared_distances(products: Matrix) -> Matrix:
    """|x_i - x_j|^2 from inner products: float64 (n, n), no less than 0, and 0 on the diagonal."""
    norms = np.diag(products)
    squares: Matrix = np.maximum(norms[:, None] + norms[None, :] - 2 * products, 0.0)
    np.fill_diagonal(squares, 0.0)
    return squares


def distances_to(products: Matrix, coefficients: Matrix) -> Matrix:
    """|x_i - v| for v = sum_j coefficients_j x_j: float64 (n,). Every v in question lies in the span of the updates,
    so that iterations cost n^2 operations, whatever the size of the model."""
    projections = products @ coefficients
    squares = np.diag(products) - 2 * projections + coefficients @ projections
    return np.asarray(np.sqrt(np.maximum(squares, 0.0)))


# -- weighted sums -----------------------------------------------------------------------------------


def combine(columns: Sequence[Vector], coefficients: Matrix, blocks: Blocks) -> Vector:
    """sum_j coefficients_j x_j within the blocks, 0 elsewhere: float32."""
    used = np.flatnonzero(coefficients).tolist()
    out = np.zeros(columns[0].size, np.float32)
    _combine(out, [columns[j] for j in used], coefficients[used].tolist(), blocks)
    return out


def combine_numpy(out: Vector, columns: Sequence[Vector], coefficients: Sequence[float], blocks: Blocks) -> None:
    for start, stop in blocks.tolist():
        sums = np.zeros(stop - start)
        for column, coefficient in zip(columns, coefficients, strict=True):
            sums += coefficient * column[start:stop].astype(np.float64)
        out[start:stop] = sums
        out[start:stop] += np.float32(0)  # there is one zero only


# -- sorted columns ----------------------------------------------------------------------------------


def window_mean(columns: Sequence[Vector], low: int, width: int, blocks: Blocks, slide: int = 0) -> Vector:
    """At each place the mean of `width` neighbours among the sorted values, 0 outside the blocks: float32.

    The window begins at rank `low`, or up to `slide` ranks above: it moves up while that brings it nearer to the
    median, and stays for equally near.
    """
    count = len(columns)
    ranks = range(count) if slide else range(low, low + width)
    out = np.zeros(columns[0].size, np.float32)
    _window_mean(out, columns, network(count, ranks.start, ranks.stop), low, width, slide, blocks)
    return out


def window_mean_numpy(
    out: Vector, columns: Sequence[Vector], pairs: Pairs, low: int, width: int, slide: int, blocks: Blocks
) -> None:
    count, network = len(columns), pairs.tolist()
    for start, stop in blocks.tolist():
        rows = [column[start:stop] for column in columns]
        for a, b in network:
            rows[a], rows[b] = np.minimum(rows[a], rows[b]), np.maximum(rows[a], rows[b])
        doubles = [row.astype(np.float64) for row in rows[low : low + slide + width]]
        twice_middle = np.add(rows[(count - 1) // 2], rows[count // 2], dtype=np.float64) if slide else None
        out[start:stop] = _sum_nearest(doubles, width, twice_middle) / width
        out[start:stop] += np.float32(0)


def _sum_nearest(rows: Sequence[Matrix], width: int, twice_middle: Matrix | None) -> Matrix:
    """Sum of the `width` sorted rows nearest to the middle.

    v[r] + v[r + width] rises with r: row r is lost where it is below twice the middle.
    """
    sums = np.zeros_like(rows[0])
    slide = len(rows) - width
    lost = [] if twice_middle is None else [rows[r] + rows[r + width] < twice_middle for r in range(slide)]
    for r, row in enumerate(rows):
        reached = lost[r - width] if r >= width else True
        passed = lost[r] if r < slide else False
        sums += np.where(np.logical_and(reached, np.logical_not(passed)), row, 0.0)
    return sums


@lru_cache(maxsize=64)
def network(count: int, start: int, stop: int) -> Pairs:
    """A network that puts the values of rank start ... stop - 1 where they belong, and not always the others.

    Batcher's merge exchange (Knuth, The Art of Computer Programming, 5.2.2, Algorithm M), without what does not matter
    to those ranks.
    """
    needed, kept = set(range(start, stop)), []
    for pair in reversed(_merge_exchange(count)):
        if not needed.isdisjoint(pair):
            needed.update(pair)
            kept.append(pair)
    pairs = np.array(kept[::-1], np.int32).reshape(-1, 2)
    pairs.flags.writeable = False
    return pairs


def _merge_exchange(count: int) -> list[tuple[int, int]]:
    pairs = []
    top = 1 << max(count - 1, 0).bit_length() >> 1
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while d > 0:
            pairs += [(i, i + d) for i in range(count - d) if i & p == r]
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return pairs


_gram = gram_numpy if _kernels is None else _kernels.gram
_combine = combine_numpy if _kernels is None else _kernels.combine
_window_mean = window_mean_numpy if _kernels is None else _kernels.window_mean
