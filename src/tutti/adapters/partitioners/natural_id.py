"""Rows stay with whom they came from (Caldas et al. 2018, LEAF, https://arxiv.org/abs/1812.01097)."""

import numpy as np

from tutti.adapters.partitioners import CannotPartition, Partitioner, Parts, Population, check, partitioners
from tutti.adapters.partitioners._common import by_owner, ids_of, rng


@partitioners.register("natural-id")
def natural_id() -> Partitioner:
    """One node for each id (hospital, writer, role), in alphabetical order; the seed does not matter."""

    def partition(population: Population, nodes: int, seed: int) -> Parts:
        check(population, nodes)
        names, owner = np.unique(ids_of(population, "natural-id"), return_inverse=True)
        _require(len(names) == nodes, names, nodes, "natural-id")
        return by_owner(owner, nodes, "natural-id")

    return partition


@partitioners.register("grouped-natural-id")
def grouped_natural_id() -> Partitioner:
    """Ids are dealt to the nodes at random, equally many to each, and rows stay with their id."""

    def partition(population: Population, nodes: int, seed: int) -> Parts:
        check(population, nodes)
        names, codes = np.unique(ids_of(population, "grouped-natural-id"), return_inverse=True)
        _require(len(names) >= nodes, names, nodes, "grouped-natural-id")
        node = np.empty(len(names), np.int64)
        for number, group in enumerate(np.array_split(rng(seed).permutation(len(names)), nodes)):
            node[group] = number
        return by_owner(node[codes], nodes, "grouped-natural-id")

    return partition


def _require(possible: bool, names: np.ndarray, nodes: int, partitioner: str) -> None:
    if possible:
        return
    some = ", ".join(map(str, names[:4])) + (", …" if len(names) > 4 else "")
    advice = (
        f"make at most {len(names)} parts"
        if nodes > len(names)
        else (f"make {len(names)} parts, or use 'grouped-natural-id'")
    )
    raise CannotPartition(f"partition {partitioner!r}: there are {len(names)} ids ({some}) for {nodes} parts; {advice}")
