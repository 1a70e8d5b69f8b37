"""Feature skew: nodes see different regions of the feature space, while p(y | x) is the same everywhere.

Li et al. 2022, https://arxiv.org/abs/2102.02079, section IV-B ("feature distribution skew"; the synthetic data of
that section are cut by planes through the feature space). Here the planes stand across the first principal
component, along which the rows differ most.
"""

from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from tutti.adapters.partitioners import CannotPartition, Partitioner, Parts, Population, check, partitioners
from tutti.adapters.partitioners._common import by_value, rng

_ROWS, _STEPS = 4096, 50


@partitioners.register("feature-skew")
def feature_skew(strictness: Annotated[float, Meta(ge=0, le=1)] = 0.9) -> Partitioner:
    """Each node gets a slice along the first principal component: strictness 1 sharply, 0 not at all."""

    def partition(population: Population, nodes: int, seed: int) -> Parts:
        check(population, nodes)
        if population.x is None:
            raise CannotPartition("partition 'feature-skew': these rows come without features; use 'iid'")
        return by_value(_scores(population.x), nodes, strictness, seed)

    return partition


def _scores(x: NDArray[Any]) -> NDArray[np.float64]:
    """Coordinates of the rows along the first principal component of (a sample of) them: float64 (n,)."""
    flat = x.reshape(len(x), -1)
    sample = flat[rng(0).permutation(len(flat))[:_ROWS]].astype(np.float64)
    centre = sample.mean(axis=0)
    direction = _first_component(sample - centre)
    blocks = np.array_split(flat, max(1, len(flat) // _ROWS))
    return np.concatenate([(block.astype(np.float64) - centre) @ direction for block in blocks])


def _first_component(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Power iteration; the largest coordinate of the direction is positive."""
    direction: NDArray[np.float64] = np.asarray(rng(1).normal(size=rows.shape[1]))
    for _ in range(_STEPS):
        direction = rows.T @ (rows @ direction)
        length = float(np.linalg.norm(direction))
        if length == 0:
            return direction
        direction = direction / length
    largest = int(np.abs(direction).argmax())
    return direction * (1.0 if direction[largest] > 0 else -1.0)
