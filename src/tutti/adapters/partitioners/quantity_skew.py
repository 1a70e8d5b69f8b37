"""Quantity skew by chance: Li et al. 2022, https://arxiv.org/abs/2102.02079, section IV-C.

Shares of the rows are drawn as q ~ Dir(beta) over the nodes; the rows themselves are equally distributed.
"""

from typing import Annotated

import numpy as np
from msgspec import Meta

from tutti.adapters.partitioners import Partitioner, Parts, Population, check, partitioners
from tutti.adapters.partitioners._common import apportion, by_owner, rng, top_up
from tutti.domain.spec import Positive


@partitioners.register("quantity-skew")
def quantity_skew(beta: Annotated[float, Meta(gt=0, le=1e6)] = 0.5, minimum: Positive = 10) -> Partitioner:
    """Nodes of very different size: the smaller beta, the more so. No node gets fewer than `minimum` rows.

    Where an even share is less than `minimum`, that is the least a node gets.
    """

    def partition(population: Population, nodes: int, seed: int) -> Parts:
        check(population, nodes)
        chance = rng(seed)
        sizes = apportion(chance.dirichlet(np.full(nodes, beta)), len(population))
        owner = chance.permutation(np.repeat(np.arange(nodes), sizes))
        top_up(owner, nodes, min(minimum, len(owner) // nodes), chance)
        return by_owner(owner, nodes, "quantity-skew")

    return partition
