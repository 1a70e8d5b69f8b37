"""Krum and Multi-Krum: Blanchard et al. 2017, https://arxiv.org/abs/1703.02757, section 4.

    s(i) = sum_{i -> j} |V_i - V_j|^2    over the n - f - 2 vectors V_j that are closest to V_i

Krum is the vector of the smallest score, Multi-Krum the mean of the m vectors of the smallest scores. Of n updates
f may be anything, where n >= 2 f + 3. All distances come from one matrix of inner products.
"""

from typing import Annotated, TypeAlias

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from tutti.core.reduce import Reducer, reducers
from tutti.core.robust._cohort import Cohort, Verdict, robust
from tutti.core.robust._columns import Matrix, combine, gram, squared_distances

BadNodes: TypeAlias = Annotated[int, Meta(ge=0, le=1000)]


@reducers.register("krum")
def krum(f: BadNodes = 1) -> Reducer:
    """The one update that is closest to its n - f - 2 neighbours: holds for f bad nodes, of 2 f + 3."""
    return _of_smallest_scores(f, 1)


@reducers.register("multi-krum")
def multi_krum(f: BadNodes = 1, m: Annotated[int, Meta(ge=1)] | None = None) -> Reducer:
    """The mean of the m updates (n - f if not given) of the best Krum scores: holds for f bad nodes, of 2 f + 3."""
    return _of_smallest_scores(f, m)


def _of_smallest_scores(f: int, m: int | None) -> Reducer:
    def rule(cohort: Cohort) -> Verdict:
        squares = squared_distances(gram(cohort.columns, cohort.blocks))
        best = np.argsort(scores(squares, f), kind="stable")[: m or len(cohort) - f]
        coefficients = mean_of(best, len(cohort))
        return Verdict(combine(cohort.columns, coefficients, cohort.blocks), coefficients)

    return robust(rule, min_updates=max(2 * f + 3, (m or 0) + f))


def scores(squares: Matrix, f: int) -> Matrix:
    """Krum scores s(i) from squared distances (n, n); always with one neighbour at least, if there is one."""
    n = len(squares)
    neighbours = min(max(1, n - f - 2), n - 1)
    return np.asarray(np.sort(squares, axis=1)[:, 1 : neighbours + 1].sum(axis=1))  # first comes 0, its own


def mean_of(chosen: NDArray[np.int64] | list[int], n: int) -> Matrix:
    """Coefficients of the plain mean of the chosen ones of n updates: float64 (n,)."""
    coefficients = np.zeros(n)
    coefficients[chosen] = 1 / len(chosen)
    return coefficients
