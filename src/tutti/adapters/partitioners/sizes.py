"""Quantity skew by rule: equally distributed rows, unequal numbers of them.

Kairouz et al. 2021, https://arxiv.org/abs/1912.04977, section 3.1 ("quantity skew or unbalancedness"); the rules
are those of https://flower.ai/docs/datasets (LinearPartitioner, SquarePartitioner, ExponentialPartitioner,
SizePartitioner).
"""

from collections.abc import Callable
from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from tutti.adapters.partitioners import CannotPartition, Partitioner, Parts, Population, check, partitioners
from tutti.adapters.partitioners._common import apportion, by_size
from tutti.domain.spec import Positive


@partitioners.register("linear")
def linear() -> Partitioner:
    """Node k of 0, 1, 2 … gets a number of rows proportional to k + 1."""
    return _by_rule("linear", lambda rank: rank)


@partitioners.register("square")
def square() -> Partitioner:
    """Node k of 0, 1, 2 … gets a number of rows proportional to (k + 1)^2."""
    return _by_rule("square", lambda rank: rank**2)


@partitioners.register("exponential")
def exponential(rate: Annotated[float, Meta(gt=0, le=10)] = 1.0) -> Partitioner:
    """Node k of 0, 1, 2 … gets a number of rows proportional to exp(rate k)."""
    return _by_rule("exponential", lambda rank: np.exp(rate * (rank - rank[-1])))


@partitioners.register("size")
def size(sizes: Positive | list[Positive]) -> Partitioner:
    """Parts in the proportions written out, such as sizes=500x300x200; exact where they add up to all rows."""
    wanted = [sizes] if isinstance(sizes, int) else sizes

    def partition(population: Population, nodes: int, seed: int) -> Parts:
        check(population, nodes)
        if len(wanted) != nodes:
            raise CannotPartition(f"partition 'size': {len(wanted)} sizes for {nodes} parts; write one for each part")
        return by_size(population, apportion(np.array(wanted, np.float64), len(population)), seed, "size")

    return partition


def _by_rule(name: str, share: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Partitioner:
    def partition(population: Population, nodes: int, seed: int) -> Parts:
        check(population, nodes)
        shares = share(np.arange(1, nodes + 1, dtype=np.float64))
        return by_size(population, apportion(shares, len(population)), seed, name)

    return partition
