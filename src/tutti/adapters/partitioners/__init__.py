"""Partitioners make a federation from one data set: which rows belong to which node."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tutti.core.errors import UserError
from tutti.core.registry import Registry

Labels: TypeAlias = NDArray[np.int64] | NDArray[np.float32]
Partitioner: TypeAlias = Callable[[Labels, int, int], list[NDArray[np.int64]]]
"""(labels (n, …), nodes, seed) -> row numbers of each node: sorted, disjoint, together all of 0 … n-1."""

partitioners: Registry[Partitioner] = Registry("partitioner", "tutti.adapters.partitioners")
"""Factories `(options…) -> Partitioner`."""


class CannotPartition(UserError):
    """These rows cannot be divided in this way."""


def check(labels: Labels, nodes: int, per_node: int = 1) -> None:
    """Raise CannotPartition unless there are `per_node` rows for each of at least one node."""
    if nodes < 1:
        raise CannotPartition(f"expected one part or more, came {nodes}")
    if len(labels) < nodes * per_node:
        raise CannotPartition(
            f"{nodes} parts need at least {nodes * per_node} rows, there are {len(labels)}; make fewer parts"
        )


__all__ = ["CannotPartition", "Labels", "Partitioner", "check", "partitioners"]
