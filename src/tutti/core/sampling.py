"""Chance from a seed and nothing else: who is asked in a round, and the seed of each node's own work."""

from bisect import bisect_left
from collections.abc import Iterable
from hashlib import blake2b
from math import ceil

import numpy as np


def node_seed(seed: int, round: int, node: str) -> int:
    """A node's own seed for one round, the same however often the round is tried."""
    digest = blake2b(f"{seed}/{round}/{node}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def cohort_size(eligible: int, size: int | None, fraction: float) -> int:
    """How many updates a round wants: `size`, or `fraction` of the eligible nodes, at least one."""
    wanted = size if size is not None else ceil(fraction * eligible - 1e-9)
    return max(1, min(wanted, eligible))


class Pool(tuple[str, ...]):
    """Nodes by name, each once, sorted. Whoever draws from the same ones again and again sorts them once."""

    __slots__ = ()

    @classmethod
    def of(cls, nodes: Iterable[str]) -> "Pool":
        return nodes if isinstance(nodes, Pool) else cls(sorted(set(nodes)))

    def __contains__(self, node: object) -> bool:
        at = bisect_left(self, str(node))
        return at < len(self) and self[at] == node


def sample(nodes: Iterable[str], k: int, *, seed: int, round: int, attempt: int) -> tuple[str, ...]:
    """Draw `k` nodes without replacement, sorted; from a Pool in time that does not depend on its size.

    The draw depends on the set of nodes, the seed, the round and the attempt, not on the order in which
    nodes are given (McMahan et al. 2017, https://arxiv.org/abs/1602.05629, Algorithm 1, S_t).
    """
    pool = Pool.of(nodes)
    if k >= len(pool):
        return tuple(pool)
    return tuple(sorted(pool[i] for i in draws(seed, round, attempt).choice(len(pool), size=k, replace=False)))


def draws(seed: int, round: int, attempt: int) -> np.random.Generator:
    """The chance of one attempt at a round."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, round, attempt])))
