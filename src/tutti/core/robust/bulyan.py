"""Bulyan of Krum: El Mhamdi et al. 2018, https://arxiv.org/abs/1802.07927, section 4.

    theta = n - 2 f    updates are chosen by Krum, one after the other, each among those that are left
    beta = theta - 2 f values at each coordinate, those closest to the median of the chosen ones, are averaged

Of n updates f may be anything, where n >= 4 f + 3. Krum alone lets a bad update far off in one coordinate pass for
a close one among many; here it moves no coordinate out of the range of the honest ones. The distances are computed
once, and the closest values are neighbours in sorted order.
"""

import numpy as np

from tutti.core.reduce import Reducer, reducers
from tutti.core.robust._cohort import Cohort, Verdict, robust
from tutti.core.robust._columns import Matrix, gram, squared_distances, window_mean
from tutti.core.robust.krum import BadNodes, mean_of, scores


@reducers.register("bulyan")
def bulyan(f: BadNodes = 1) -> Reducer:
    """Krum's choice of n - 2 f updates, then the mean of the middle values: holds for f bad nodes, of 4 f + 3."""

    def rule(cohort: Cohort) -> Verdict:
        squares = squared_distances(gram(cohort.columns, cohort.blocks))
        theta = len(cohort) - 2 * f
        chosen = select(squares, f, theta)
        columns = [cohort.columns[i] for i in chosen]
        middle = window_mean(columns, 0, theta - 2 * f, cohort.blocks, slide=2 * f)
        return Verdict(middle, mean_of(chosen, len(cohort)))

    return robust(rule, min_updates=4 * f + 3)


def select(squares: Matrix, f: int, theta: int) -> list[int]:
    """The indices that Krum takes, in its order, from squared distances (n, n)."""
    left, chosen = list(range(len(squares))), []
    for _ in range(theta):
        best = int(np.argmin(scores(squares[np.ix_(left, left)], f)))
        chosen.append(left.pop(best))
    return chosen
