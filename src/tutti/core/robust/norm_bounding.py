"""Norm bounding: Sun et al. 2019, https://arxiv.org/abs/1911.07963, section 3.

    w_{t+1} = w_t + 1/n sum_k dw_k / max(1, |dw_k| / M)

Against updates that replace the model by sheer size. Many bad nodes together still move it, by no more than M times
their share. Where no bound is given, the median of the norms takes its place.
"""

from typing import Annotated

import numpy as np
from msgspec import Meta

from tutti.core.reduce import Reducer, reducers
from tutti.core.robust._cohort import Cohort, Verdict, robust
from tutti.core.robust._columns import combine, squared_norms
from tutti.core.robust.centred_clipping import share_within


@reducers.register("norm-bounding")
def norm_bounding(bound: Annotated[float, Meta(gt=0)] | None = None) -> Reducer:
    """The mean of updates cut to a norm (the median norm if not given): no update counts by its size alone."""

    def rule(cohort: Cohort) -> Verdict:
        norms = np.sqrt(squared_norms(cohort.columns, cohort.blocks))
        coefficients = share_within(norms, bound) / len(cohort)
        return Verdict(combine(cohort.columns, coefficients, cohort.blocks), coefficients)

    return robust(rule, min_updates=3 if bound is None else 1)
