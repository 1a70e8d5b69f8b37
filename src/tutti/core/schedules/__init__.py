"""Learning-rate schedules over the rounds of a job: `schedules.build(Choice.parse("cosine"))(round, rounds)`."""

from collections.abc import Callable
from typing import TypeAlias

from tutti.core.registry import Registry

Schedule: TypeAlias = Callable[[int, int], float]
"""(round, counted from 1; number of rounds) -> factor on the learning rate."""

schedules: Registry[Schedule] = Registry("schedule", "tutti.core.schedules")
