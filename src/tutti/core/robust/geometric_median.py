"""Geometric median, robust federated averaging (RFA): Pillutla et al. 2019, https://arxiv.org/abs/1912.13445.

    v* = argmin_v sum_i |v - w_i|

by the smoothed Weiszfeld algorithm (Algorithm 2), which repeats

    beta_i = 1 / max(nu, |v - w_i|) ;  v <- sum_i beta_i w_i / sum_i beta_i

Every v is a combination of the updates, so that only the first step and the last look at the models. The
server sees the updates here, so that it need not stop after the paper's three rounds of communication.
In the first step an update's median distance to all updates stands for |v - w_i|: from the mean, which one update
can move as far as it likes, each iteration would come back by a constant factor only.
"""

from typing import Annotated

import numpy as np
from msgspec import Meta

from tutti.core.reduce import Reducer, reducers
from tutti.core.robust._cohort import Cohort, Verdict, robust
from tutti.core.robust._columns import Matrix, combine, distances_to, gram, squared_distances

SETTLED = 1e-9
"""Weiszfeld ends when no coefficient changes by a larger share than this; a small one may belong to a large update."""


@reducers.register("geometric-median")
def geometric_median(
    nu: Annotated[float, Meta(gt=0, le=1)] = 1e-6, iterations: Annotated[int, Meta(ge=1, le=10_000)] = 100
) -> Reducer:
    """The point of the smallest sum of distances to all updates: holds while more than half of the nodes are honest."""

    def rule(cohort: Cohort) -> Verdict:
        coefficients = weiszfeld(gram(cohort.columns, cohort.blocks), nu, iterations)
        return Verdict(combine(cohort.columns, coefficients, cohort.blocks), coefficients)

    return robust(rule, min_updates=3)


def weiszfeld(products: Matrix, nu: float, iterations: int) -> Matrix:
    """Coefficients of the geometric median from inner products (n, n); they add up to 1."""
    coefficients = _weights(np.sqrt(np.median(squared_distances(products), axis=1)), nu)
    for _ in range(iterations - 1):
        before, coefficients = coefficients, _weights(distances_to(products, coefficients), nu)
        if (np.abs(coefficients - before) <= SETTLED * before).all():
            break
    return coefficients


def _weights(distances: Matrix, nu: float) -> Matrix:
    beta = 1 / np.maximum(nu, distances)
    return np.asarray(beta / beta.sum())
