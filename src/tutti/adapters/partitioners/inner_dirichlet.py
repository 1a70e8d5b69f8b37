"""Label skew at equal sizes: each node draws its own mixture of classes.

Hsu, Qi & Brown 2019, https://arxiv.org/abs/1909.06335, section 3.1: node k draws q_k ~ Dir(alpha) over the classes,
then its rows one class at a time from q_k, without replacement; a class that is used up leaves the mixture
(Acar et al. 2021, https://arxiv.org/abs/2111.04263, appendix).
"""

from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from tutti.adapters.partitioners import Partitioner, Parts, Population, check, partitioners
from tutti.adapters.partitioners._common import by_owner, classes_of, rng

_TURNS = 32


@partitioners.register("inner-dirichlet")
def inner_dirichlet(alpha: Annotated[float, Meta(gt=0, le=1e6)] = 0.5) -> Partitioner:
    """Nodes of equal size, each with its own mixture of classes: the smaller alpha, the fewer classes it sees."""

    def partition(population: Population, nodes: int, seed: int) -> Parts:
        check(population, nodes)
        labels, chance = classes_of(population, "inner-dirichlet"), rng(seed)
        names, codes = np.unique(labels, return_inverse=True)
        mixtures = chance.dirichlet(np.full(len(names), alpha), size=nodes)
        sizes = np.array([len(part) for part in np.array_split(codes, nodes)])
        counts = _draw(mixtures, sizes, np.bincount(codes), chance)
        owner = np.empty(len(codes), np.int64)
        for code in range(len(names)):
            owner[chance.permutation(np.flatnonzero(codes == code))] = np.repeat(np.arange(nodes), counts[:, code])
        return by_owner(owner, nodes, "inner-dirichlet")

    return partition


def _draw(
    mixtures: NDArray[np.float64], sizes: NDArray[np.int64], left: NDArray[np.int64], chance: np.random.Generator
) -> NDArray[np.int64]:
    """How many rows of each class each node gets: int64 (nodes, classes).

    Nodes take turns, a small share of their size at a time, so that none is left with what others spared.
    """
    counts, left = np.zeros(mixtures.shape, np.int64), left.copy()
    turn = max(1, int(sizes.max()) // _TURNS)
    while left.any():
        for node in chance.permutation(len(sizes)):
            want = min(turn, int(sizes[node] - counts[node].sum()))
            while want > 0:
                weights = np.where(left > 0, mixtures[node] + 1e-12, 0.0)  # what is left may have no weight in q_k
                taken = np.minimum(chance.multinomial(want, weights / weights.sum()), left)
                counts[node] += taken
                left -= taken
                want -= int(taken.sum())
    return counts
