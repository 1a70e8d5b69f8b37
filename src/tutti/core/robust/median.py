"""Coordinate-wise median: Yin et al. 2018, https://arxiv.org/abs/1803.01498, Algorithm 1, Option I.

    g = med{g^1, ..., g^m}    coordinate by coordinate; of an even number, the mean of the two in the middle

It stays within the range of the honest values as long as more than half of the updates are honest.
"""

from tutti.core.reduce import Reducer, reducers
from tutti.core.robust._cohort import Cohort, Verdict, robust
from tutti.core.robust._columns import window_mean


@reducers.register("median")
def median() -> Reducer:
    """The median of every value: holds while more than half of the nodes are honest."""

    def rule(cohort: Cohort) -> Verdict:
        low, high = (len(cohort) - 1) // 2, len(cohort) // 2
        return Verdict(window_mean(cohort.columns, low, high - low + 1, cohort.blocks))

    return robust(rule, min_updates=3)
