"""Rows divided by a continuous quantity, such as age or price.

The continuous counterpart of label skew (Kairouz et al. 2021, https://arxiv.org/abs/1912.04977, section 3.1), with
the mixing rule of https://flower.ai/docs/datasets (ContinuousPartitioner): rows are ranked by
strictness * value + (1 - strictness) * noise, both standardised, and cut into equal parts.
"""

from typing import Annotated

import numpy as np
from msgspec import Meta

from tutti.adapters.partitioners import CannotPartition, Partitioner, Parts, Population, check, partitioners
from tutti.adapters.partitioners._common import by_value


@partitioners.register("continuous")
def continuous(
    strictness: Annotated[float, Meta(ge=0, le=1)] = 0.9, feature: Annotated[int, Meta(ge=-1)] = -1
) -> Partitioner:
    """Each node gets a range of the target, or of feature number `feature`: strictness 1 sharply, 0 not at all."""

    def partition(population: Population, nodes: int, seed: int) -> Parts:
        check(population, nodes)
        columns = population.labels if feature < 0 else population.x
        if columns is None:
            raise CannotPartition("partition 'continuous': these rows come without features; divide by the target")
        flat = columns.reshape(len(columns), -1)
        if feature >= flat.shape[1]:
            raise CannotPartition(
                f"partition 'continuous': there is no feature {feature}, the last is {flat.shape[1] - 1}"
            )
        return by_value(flat[:, max(feature, 0)].astype(np.float64), nodes, strictness, seed)

    return partition
