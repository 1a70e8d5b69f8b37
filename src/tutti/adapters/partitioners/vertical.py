"""Every node holds all rows, but only some of their features (Yang et al. 2019, https://arxiv.org/abs/1902.04885)."""

import numpy as np

from tutti.adapters.partitioners import (
    CannotPartition,
    Partitioner,
    Parts,
    Population,
    Vertical,
    check,
    partitioners,
)
from tutti.adapters.partitioners._common import rng


@partitioners.register("vertical")
def vertical() -> Partitioner:
    """Features are shuffled and divided evenly; every node holds all rows and all targets."""
    return Vertical(_divide)


def _divide(population: Population, nodes: int, seed: int) -> Parts:
    check(population, nodes)
    if population.x is None or population.x.ndim != 2:
        raise CannotPartition("partition 'vertical' divides the columns of a table, and these rows are none; use 'iid'")
    features = population.x.shape[1]
    if features < nodes:
        raise CannotPartition(
            f"partition 'vertical' leaves node-{features + 1} of {nodes} without any of the {features} features; "
            f"make at most {features} parts"
        )
    return [np.sort(part) for part in np.array_split(rng(seed).permutation(features), nodes)]
