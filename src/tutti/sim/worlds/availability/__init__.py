"""When a node is there: windows of seconds since the world's first midnight (a Monday), in order, not overlapping.

`traces.build(Choice.parse("diurnal:opens=22,hours=8"))(node, rng)` yields (from, to), perhaps without end.
"""

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np

from tutti.core.registry import Registry

DAY = 86_400.0

Windows: TypeAlias = Iterator[tuple[float, float]]
Trace: TypeAlias = Callable[[int, np.random.Generator], Windows]
"""(the node's number, from 1; its own rng) -> its windows"""

traces: Registry[Trace] = Registry("availability", "tutti.sim.worlds.availability")
