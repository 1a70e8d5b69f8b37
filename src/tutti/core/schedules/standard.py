"""The usual schedules. Each starts at factor 1, but for `warmup`, which reaches it."""

from math import cos, pi
from typing import Annotated

from msgspec import Meta

from tutti.core.schedules import Schedule, schedules

Rounds = Annotated[int, Meta(ge=1)]
Decay = Annotated[float, Meta(gt=0, le=1)]
Share = Annotated[float, Meta(ge=0, le=1)]


@schedules.register("constant")
def constant() -> Schedule:
    """The same learning rate in every round."""
    return lambda round, rounds: 1.0


@schedules.register("step")
def step(every: Rounds = 10, gamma: Decay = 0.1) -> Schedule:
    """Multiply by `gamma` after every `every` rounds."""
    return lambda round, rounds: gamma ** ((round - 1) // every)


@schedules.register("exponential")
def exponential(gamma: Decay = 0.99) -> Schedule:
    """Multiply by `gamma` after each round (McMahan 2017, https://arxiv.org/abs/1602.05629, section 3: 0.99)."""
    return lambda round, rounds: gamma ** (round - 1)


@schedules.register("cosine")
def cosine(floor: Share = 0.0) -> Schedule:
    """Half a cosine from 1 towards `floor`, which would be reached in the round after the last.

    Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983, equation 5.
    """
    return lambda round, rounds: floor + (1 - floor) * (1 + cos(pi * (round - 1) / rounds)) / 2


@schedules.register("warmup")
def warmup(length: Rounds = 5) -> Schedule:
    """Linear: 1/length in the first round, 1 from round `length` on.

    Goyal et al. 2017, https://arxiv.org/abs/1706.02677, section 2.2.
    """
    return lambda round, rounds: min(1.0, round / length)
