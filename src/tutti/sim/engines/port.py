"""The engine port: the local work of many nodes, as a stream of results."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from tutti.core.params import Params
from tutti.core.registry import Registry
from tutti.domain.events import NodeId
from tutti.domain.spec import Metrics
from tutti.ports.training import Task
from tutti.sim.federation import Federation


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one node is to do in this round."""

    node: NodeId
    task: Task


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A node's work in so many optimiser steps.

    `delta` = local - start; its buffer may be used again once the next result is asked for.
    """

    node: NodeId
    delta: Params
    examples: int
    metrics: Metrics
    seconds: float
    steps: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A node that could not do its work, with the reason in words."""

    node: NodeId
    reason: str


def longest_first(assignments: Sequence[Assignment], federation: Federation) -> list[Assignment]:
    """Those with most rows are begun first, so that workers come to their ends together (Graham 1969)."""
    return sorted(assignments, key=lambda a: (-len(federation.train[a.node]), a.node))


Result: TypeAlias = Trained | Failed


class Engine(Protocol):
    """Every engine gives what the sequential one gives, in any order; how nearly is said in its module.

    How much it can do of what strategies ask for (core.local.Demand) is said in `choose.DEMANDS`.
    """

    name: str

    def train(self, params: Params, assignments: Sequence[Assignment]) -> Iterator[Result]:
        """Train each assigned node from `params`, which stay as they are."""
        ...

    def close(self) -> None:
        """Give back processes, threads and memory."""
        ...


class CannotCompute(Exception):
    """Why an engine cannot compute a job, in words."""


engines: Registry[Engine] = Registry("engine", "tutti.sim.engines")
"""Factories `(options…, *, spec: JobSpec, trainer: Trainer, federation: Federation) -> Engine`; they raise
CannotCompute for a job that is not for them."""
