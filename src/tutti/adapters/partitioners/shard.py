"""Each node gets a few shards of rows sorted by label (McMahan et al. 2017, https://arxiv.org/abs/1602.05629)."""

import numpy as np

from tutti.adapters.partitioners import Partitioner, Parts, Population, check, partitioners
from tutti.adapters.partitioners._common import rng
from tutti.domain.spec import Positive


@partitioners.register("shard")
def shard(per_node: Positive = 2) -> Partitioner:
    """Rows sorted by label are cut into shards, and each node gets `per_node` of them at random.

    Two shards a node is the paper's pathological non-IID split: most nodes see two classes.
    """

    def partition(population: Population, nodes: int, seed: int) -> Parts:
        check(population, nodes, per_node)
        keys = population.labels.reshape(len(population), -1)[:, 0]
        shards = np.array_split(np.argsort(keys, kind="stable"), nodes * per_node)
        order = rng(seed).permutation(len(shards)).reshape(nodes, per_node)
        return [np.sort(np.concatenate([shards[i] for i in mine])) for mine in order]

    return partition
