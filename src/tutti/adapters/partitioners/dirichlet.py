"""Label skew from a Dirichlet distribution.

Hsu, Qi & Brown 2019, https://arxiv.org/abs/1909.06335, in the form that uses every row once (Yurochkin et al.
2019, https://arxiv.org/abs/1905.12022, section 4): each class is divided over the nodes by its own draw.
"""

from typing import Annotated

import numpy as np
from msgspec import Meta

from tutti.adapters.partitioners import Partitioner, Parts, Population, check, partitioners
from tutti.adapters.partitioners._common import by_owner, classes_of, rng, top_up
from tutti.domain.spec import Positive


@partitioners.register("dirichlet")
def dirichlet(alpha: Annotated[float, Meta(gt=0, le=1e6)] = 0.5, minimum: Positive = 10) -> Partitioner:
    """Classes are divided unevenly: the smaller alpha, the fewer classes a node sees (100 is nearly even).

    No node gets fewer than `minimum` rows, or an even share where that is less.
    """

    def partition(population: Population, nodes: int, seed: int) -> Parts:
        check(population, nodes)
        labels, chance = classes_of(population, "dirichlet"), rng(seed)
        owner = np.empty(len(labels), np.int64)
        for label in np.unique(labels):
            rows = chance.permutation(np.flatnonzero(labels == label))
            shares = chance.dirichlet(np.full(nodes, alpha))
            owner[rows] = np.searchsorted(np.cumsum(shares)[:-1], (np.arange(len(rows)) + 0.5) / len(rows))
        top_up(owner, nodes, min(minimum, len(labels) // nodes), chance)
        return by_owner(owner, nodes, "dirichlet")

    return partition
