"""Partitioners make a federation from one data set: which rows belong to which node."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tutti.core.errors import UserError
from tutti.core.registry import Registry

Labels: TypeAlias = NDArray[np.int64] | NDArray[np.float32]
Parts: TypeAlias = list[NDArray[np.int64]]


@dataclass(frozen=True, slots=True, eq=False)
class Population:
    """The rows to divide, as far as a partitioner may look at them.

    Attributes:
        labels: int64 (n,) classes, or float32 (n, outputs) targets.
        x: Features (n, *shape) of any real dtype; None where the caller has none at hand.
        ids: Text (n,): whom each row belongs to, such as a hospital, a writer or a role; None if nobody knows.
    """

    labels: Labels
    x: NDArray[Any] | None = None
    ids: NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.labels)


Partitioner: TypeAlias = Callable[[Population, int, int], Parts]
"""(population, nodes, seed) -> row numbers of each node: sorted, disjoint, together all of 0 … n-1."""


@dataclass(frozen=True, slots=True)
class Vertical:
    """A Partitioner that divides the features: its parts are column numbers, and every node holds all rows."""

    divide: Partitioner

    def __call__(self, population: Population, nodes: int, seed: int) -> Parts:
        return self.divide(population, nodes, seed)


partitioners: Registry[Partitioner] = Registry("partitioner", "tutti.adapters.partitioners")
"""Factories `(options…) -> Partitioner`."""


class CannotPartition(UserError):
    """These rows cannot be divided in this way."""


def check(population: Population, nodes: int, per_node: int = 1) -> None:
    """Raise CannotPartition unless there are `per_node` rows for each of at least one node."""
    if nodes < 1:
        raise CannotPartition(f"expected one part or more, came {nodes}")
    if len(population) < nodes * per_node:
        raise CannotPartition(
            f"{nodes} parts need at least {nodes * per_node} rows, there are {len(population)}; make fewer parts"
        )


__all__ = ["CannotPartition", "Labels", "Partitioner", "Parts", "Population", "Vertical", "check", "partitioners"]
