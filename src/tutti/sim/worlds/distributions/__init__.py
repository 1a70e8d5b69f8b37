"""Numbers that differ from node to node, or from time to time: `drawn(Choice.parse("exponential:mean=3"))(rng)`."""

from collections.abc import Callable
from functools import lru_cache
from typing import TypeAlias

import numpy as np

from tutti.core.registry import Choice, Registry

Draw: TypeAlias = Callable[[np.random.Generator], float]

distributions: Registry[Draw] = Registry("distribution", "tutti.sim.worlds.distributions")


def drawn(choice: Choice) -> Draw:
    """The distribution that is chosen, built once for all nodes; raises a UserError if there is no such."""
    return _built(str(choice))


@lru_cache(maxsize=256)
def _built(choice: str) -> Draw:
    return distributions.build(Choice.parse(choice))
