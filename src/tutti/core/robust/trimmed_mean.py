"""Coordinate-wise trimmed mean: Yin et al. 2018, https://arxiv.org/abs/1803.01498, Algorithm 1, Option II.

    g = trmean_beta{g^1, ..., g^m}

the mean, coordinate by coordinate, of what is left without the largest and the smallest share beta of the values.
beta must be at least the share of bad nodes.
"""

from math import ceil, floor
from typing import Annotated

from msgspec import Meta

from tutti.core.reduce import Reducer, reducers
from tutti.core.robust._cohort import Cohort, Verdict, robust
from tutti.core.robust._columns import window_mean

ROUNDING = 1e-9
"""0.29 of 100 is 29, though not in binary floating point."""


@reducers.register("trimmed-mean")
def trimmed_mean(beta: Annotated[float, Meta(gt=0, lt=0.5)] = 0.2) -> Reducer:
    """The mean of every value without the largest and the smallest share beta: holds for that share of bad nodes."""

    def rule(cohort: Cohort) -> Verdict:
        cut = floor(beta * len(cohort) + ROUNDING)
        return Verdict(window_mean(cohort.columns, cut, len(cohort) - 2 * cut, cohort.blocks))

    return robust(rule, min_updates=max(3, ceil(1 / beta - ROUNDING)))  # with fewer nothing would be cut
