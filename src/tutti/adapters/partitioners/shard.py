"""Each node gets a few shards of rows sorted by label (McMahan et al. 2017, https://arxiv.org/abs/1602.05629)."""

import numpy as np
from numpy.typing import NDArray

from tutti.adapters.partitioners import Labels, Partitioner, check, partitioners
from tutti.domain.spec import Positive


@partitioners.register("shard")
def shard(per_node: Positive = 2) -> Partitioner:
    """Rows sorted by label are cut into shards, and each node gets `per_node` of them at random.

    Two shards a node is the paper's pathological non-IID split: most nodes see two classes.
    """

    def partition(labels: Labels, nodes: int, seed: int) -> list[NDArray[np.int64]]:
        check(labels, nodes, per_node)
        keys = labels.reshape(len(labels), -1)[:, 0]
        shards = np.array_split(np.argsort(keys, kind="stable"), nodes * per_node)
        order = np.random.Generator(np.random.PCG64(seed)).permutation(len(shards)).reshape(nodes, per_node)
        return [np.sort(np.concatenate([shards[i] for i in mine])) for mine in order]

    return partition
