"""Nodes that are always there, at night, or now and then."""

from collections.abc import Iterator
from itertools import count
from math import inf
from typing import Annotated

import numpy as np
from msgspec import Meta

from tutti.sim.worlds.availability import DAY, Trace, traces

Hour = Annotated[float, Meta(ge=0, lt=24)]
Hours = Annotated[float, Meta(gt=0, le=24)]
Share = Annotated[float, Meta(ge=0, lt=1)]
Seconds = Annotated[float, Meta(gt=0)]


@traces.register("always")
def always() -> Trace:
    """From the beginning, without end."""
    return lambda node, rng: iter([(0.0, inf)])


@traces.register("diurnal")
def diurnal(
    opens: Hour = 22.0, hours: Hours = 8.0, spread: Annotated[float, Meta(ge=0)] = 1.0, miss: Share = 0.1
) -> Trace:
    """Once a day from `opens` (a clock hour) for `hours`, as phones charge at night.

    Each begins earlier or later by normal chance of standard deviation `spread` hours, and a share `miss` of the days
    is left out. Bonawitz et al. 2019, https://arxiv.org/abs/1902.01046, section 9, describes such a fleet.
    """

    def windows(node: int, rng: np.random.Generator) -> Iterator[tuple[float, float]]:
        before = 0.0
        for day in count(-1):
            begins = day * DAY + 3600.0 * (opens + rng.normal(0.0, spread))
            here = rng.random() >= miss
            ends = begins + 3600.0 * hours
            if here and ends > max(begins, before):
                yield max(begins, before), ends
                before = ends

    return windows


@traces.register("sometimes")
def sometimes(on: Seconds, off: Seconds) -> Trace:
    """There for `on` seconds and away for `off` on average, in exponential times; begins as likely as it goes on."""

    def windows(node: int, rng: np.random.Generator) -> Iterator[tuple[float, float]]:
        at = 0.0 if rng.random() < on / (on + off) else rng.exponential(off)
        while True:
            ends = at + rng.exponential(on)
            yield at, ends
            at = ends + rng.exponential(off)

    return windows
