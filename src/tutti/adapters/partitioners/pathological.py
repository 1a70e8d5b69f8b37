"""Every node holds rows of exactly so many classes, each class divided evenly over those that hold it.

The pathological split of McMahan et al. 2017 (https://arxiv.org/abs/1602.05629, section 3) in the exact form of
Collins et al. 2021 (https://arxiv.org/abs/2102.07078, section 5) and Zhang et al. 2021
(https://arxiv.org/abs/2012.08565).
"""

import numpy as np
from numpy.typing import NDArray

from tutti.adapters.partitioners import CannotPartition, Partitioner, Parts, Population, check, partitioners
from tutti.adapters.partitioners._common import by_owner, classes_of, rng
from tutti.domain.spec import Positive


@partitioners.register("pathological")
def pathological(classes: Positive = 2) -> Partitioner:
    """Every node holds rows of exactly `classes` classes (all of them where there are fewer)."""

    def partition(population: Population, nodes: int, seed: int) -> Parts:
        check(population, nodes)
        labels, chance = classes_of(population, "pathological"), rng(seed)
        names, codes = np.unique(labels, return_inverse=True)
        held = holders(nodes, len(names), min(classes, len(names)), "pathological", chance)
        owner = np.empty(len(codes), np.int64)
        for code in range(len(names)):
            rows, mine = chance.permutation(np.flatnonzero(codes == code)), chance.permutation(held[code])
            if len(rows) < len(mine):
                raise CannotPartition(
                    f"partition 'pathological': class {names[code]} has {len(rows)} rows for the {len(mine)} nodes "
                    "that should hold it; make fewer parts, or give them fewer classes"
                )
            for node, part in zip(mine, np.array_split(rows, len(mine)), strict=True):
                owner[part] = node
        return by_owner(owner, nodes, "pathological")

    return partition


def holders(
    nodes: int, names: int, classes: int, partitioner: str, chance: np.random.Generator
) -> list[NDArray[np.int64]]:
    """The nodes that hold each class: every node takes the classes that are held least, ties at random."""
    if nodes * classes < names:
        raise CannotPartition(
            f"partition {partitioner!r}: {nodes} nodes of {classes} classes cannot hold all {names} classes; "
            f"make at least {-(-names // classes)} parts, or give them more classes"
        )
    held = np.zeros((names, nodes), bool)
    for node in range(nodes):
        order = np.lexsort((chance.random(names), held.sum(axis=1)))
        held[order[:classes], node] = True
    return [np.flatnonzero(each) for each in held]
