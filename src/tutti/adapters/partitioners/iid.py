"""Every node draws from the same distribution (McMahan et al. 2017, https://arxiv.org/abs/1602.05629, section 3)."""

import numpy as np

from tutti.adapters.partitioners import Partitioner, Parts, Population, check, partitioners
from tutti.adapters.partitioners._common import rng


@partitioners.register("iid")
def iid() -> Partitioner:
    """Rows are shuffled and divided evenly."""

    def partition(population: Population, nodes: int, seed: int) -> Parts:
        check(population, nodes)
        order = rng(seed).permutation(len(population))
        return [np.sort(part) for part in np.array_split(order, nodes)]

    return partition
