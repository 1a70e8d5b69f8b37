"""Every node draws from the same distribution."""

import numpy as np
from numpy.typing import NDArray

from tutti.adapters.partitioners import Labels, Partitioner, check, partitioners


@partitioners.register("iid")
def iid() -> Partitioner:
    """Rows are shuffled and divided evenly."""

    def partition(labels: Labels, nodes: int, seed: int) -> list[NDArray[np.int64]]:
        check(labels, nodes)
        order = np.random.Generator(np.random.PCG64(seed)).permutation(len(labels))
        return [np.sort(part) for part in np.array_split(order, nodes)]

    return partition
