"""A few classes a node, with sizes from a heavy-tailed distribution.

Li et al. 2020, https://arxiv.org/abs/1812.06127, appendix C.1 (MNIST and FEMNIST): every node holds two classes;
of each it gets a few rows for certain, and of the rest of the class a share drawn from a lognormal distribution.
"""

from typing import Annotated

import numpy as np
from msgspec import Meta

from tutti.adapters.partitioners import CannotPartition, Partitioner, Parts, Population, check, partitioners
from tutti.adapters.partitioners._common import apportion, by_owner, classes_of, rng
from tutti.adapters.partitioners.pathological import holders
from tutti.domain.spec import Positive


@partitioners.register("distribution")
def distribution(
    classes: Positive = 2, sigma: Annotated[float, Meta(ge=0, le=10)] = 2.0, minimum: Positive = 1
) -> Partitioner:
    """`classes` classes a node; the share of a class that each holder gets is lognormal with deviation `sigma`.

    Of every class it holds, a node has at least `minimum` rows (the paper's experiments: 5).
    """

    def partition(population: Population, nodes: int, seed: int) -> Parts:
        check(population, nodes)
        labels, chance = classes_of(population, "distribution"), rng(seed)
        names, codes = np.unique(labels, return_inverse=True)
        held = holders(nodes, len(names), min(classes, len(names)), "distribution", chance)
        owner = np.empty(len(codes), np.int64)
        for code, mine in enumerate(held):
            rows = chance.permutation(np.flatnonzero(codes == code))
            spare = len(rows) - minimum * len(mine)
            if spare < 0:
                raise CannotPartition(
                    f"partition 'distribution': class {names[code]} has {len(rows)} rows, fewer than {minimum} for "
                    f"each of {len(mine)} nodes; make fewer parts, or lower minimum or classes"
                )
            sizes = minimum + apportion(chance.lognormal(0.0, sigma, len(mine)), spare)
            owner[rows] = np.repeat(mine, sizes)
        return by_owner(owner, nodes, "distribution")

    return partition
