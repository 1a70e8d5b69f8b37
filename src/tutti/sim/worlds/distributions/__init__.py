"""Numbers that differ from node to node, or from time to time: `distributions.build(Choice.parse("uniform:low=0.1,high=0.5"))`."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from tutti.core.registry import Registry

Draw: TypeAlias = Callable[[np.random.Generator], float]

distributions: Registry[Draw] = Registry("distribution", "tutti.sim.worlds.distributions")
