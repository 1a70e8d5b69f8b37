"""The usual distributions of speeds, bandwidths, delays and durations; none gives a negative number."""

from math import log
from typing import Annotated

from msgspec import Meta

from tutti.core.registry import BadOption
from tutti.sim.worlds.distributions import Draw, distributions

Number = Annotated[float, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]


@distributions.register("constant")
def constant(value: Number) -> Draw:
    """Always the same."""
    return lambda rng: value


@distributions.register("uniform")
def uniform(low: Number, high: Number) -> Draw:
    """Every number from `low` to `high` is as likely."""
    if high < low:
        raise BadOption(f"distribution 'uniform': expected low <= high, came low={low:g}, high={high:g}")
    return lambda rng: rng.uniform(low, high)


@distributions.register("exponential")
def exponential(mean: Positive) -> Draw:
    """Times between events that know nothing of each other."""
    return lambda rng: rng.exponential(mean)


@distributions.register("lognormal")
def lognormal(median: Positive, sigma: Number = 0.5) -> Draw:
    """Half are below `median`; about two thirds within a factor of e^sigma of it."""
    return lambda rng: rng.lognormal(log(median), sigma)


@distributions.register("pareto")
def pareto(least: Positive, shape: Positive = 2.0) -> Draw:
    """Most are near `least`, a few are far larger: the smaller `shape`, the further."""
    return lambda rng: least * (1.0 + rng.pareto(shape))
