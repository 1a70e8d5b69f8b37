"""Centred clipping: Karimireddy et al. 2021, https://arxiv.org/abs/2012.10333, section 4.

    v <- v + 1/n sum_i (x_i - v) min(1, tau / |x_i - v|)

The paper clips momenta, and starts from the last round's v. An update has a centre of its own: it starts from no
change at all, hence more than one iteration. Every v is a combination of the updates, so that only the first
step and the last look at the models. tau is a matter of scale; where none is given, the median of the distances
takes its place in every iteration, which bad nodes can raise only as far as the distance of an honest one.
"""

from typing import Annotated

import numpy as np
from msgspec import Meta

from tutti.core.reduce import Reducer, reducers
from tutti.core.robust._cohort import Cohort, Verdict, robust
from tutti.core.robust._columns import Matrix, combine, distances_to, gram


@reducers.register("centred-clipping")
def centred_clipping(
    tau: Annotated[float, Meta(gt=0)] | None = None, iterations: Annotated[int, Meta(ge=1, le=10_000)] = 10
) -> Reducer:
    """The mean of updates cut to a distance tau from it (the median if not given): for under half bad nodes."""

    def rule(cohort: Cohort) -> Verdict:
        coefficients = clip(gram(cohort.columns, cohort.blocks), tau, iterations)
        return Verdict(combine(cohort.columns, coefficients, cohort.blocks), coefficients)

    return robust(rule, min_updates=3)


def clip(products: Matrix, tau: float | None, iterations: int) -> Matrix:
    """Coefficients of v from inner products (n, n)."""
    n = len(products)
    v = np.zeros(n)
    for _ in range(iterations):
        distances = distances_to(products, v)
        steps = share_within(distances, tau) / n
        v = (1 - steps.sum()) * v + steps
    return v


def share_within(distances: Matrix, radius: float | None) -> Matrix:
    """min(1, radius / distance); the radius defaults to the lower median of the distances."""
    if radius is None:
        radius = float(np.sort(distances)[(len(distances) - 1) // 2])
    longer = distances > radius
    return np.asarray(np.divide(radius, distances, out=np.ones_like(distances), where=longer))
