"""FLTrust: Cao et al. 2021, https://arxiv.org/abs/2012.13995, Algorithm 2.

    TS_i = ReLU(cos(g_i, g_0)) ;  g = 1 / sum_j TS_j  sum_i TS_i |g_0| / |g_i| g_i

g_0 is the server's own update, trained in the same round on a small clean root data set. An update counts by how far
it points where the server's points, with the server's length: any number of bad nodes may take part.
"""

from dataclasses import replace

import numpy as np

from tutti.core.params import Params, Vector
from tutti.core.reduce import Reducer, reducers
from tutti.core.robust._cohort import Cohort, Verdict, robust
from tutti.core.robust._columns import Matrix, combine, gram


def fltrust(root: Params) -> Reducer:
    """Updates weighted by likeness to `root`, the server's own update of this round; no change if none is alike."""

    def rule(cohort: Cohort) -> Verdict:
        coefficients = trust(root.buffer, cohort)
        return Verdict(combine(cohort.columns, coefficients, cohort.blocks), coefficients)

    return robust(rule, min_updates=1)


@reducers.register("fltrust")
def unrooted() -> Reducer:
    """Updates weighted by likeness to the coordinator's own, trained on the job's `trusted` rows: for any bad nodes."""

    def rule(cohort: Cohort) -> Verdict:
        raise ValueError("this reducer is finished by the one that `rooted` gives")

    return replace(robust(rule, min_updates=1), rooted=fltrust)


def trust(root: Vector, cohort: Cohort) -> Matrix:
    """Coefficients of the updates in g: float64 (n,)."""
    products = [gram([root, column], cohort.blocks) for column in cohort.columns]
    length = np.sqrt(products[0][0, 0])
    norms = np.sqrt([pair[1, 1] for pair in products])
    alike = np.maximum([pair[0, 1] for pair in products], 0.0)
    scores = np.divide(alike, norms * length, out=np.zeros_like(norms), where=alike > 0)
    scale = np.divide(length, norms, out=np.zeros_like(norms), where=norms > 0)
    total = scores.sum()
    return np.asarray(scores * scale / total if total > 0 else np.zeros_like(norms))
