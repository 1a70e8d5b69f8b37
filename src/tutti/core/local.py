"""The node's half of a strategy: from where and towards what a node trains, what it hands in, and what it keeps.

A node and a simulation run these functions alike, around a trainer that knows no strategy:

    plan(request) -> where to start and how to correct the gradients, once or several times
    train each plan with the model's own trainer
    report(request, trained) -> what is summed over the cohort, and what stays on this node

What stays (`memory`) is kept by job and round, and the round that counts is the coordinator's: a node goes on from
what it kept in the last round in which its update counted (see docs/adr/0008-strategies-have-two-halves.md).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from math import isfinite
from typing import Literal, TypeAlias

import numpy as np

from tutti.core.params import Params, Role, Vector

Memory: TypeAlias = Mapping[str, Vector]
"""What a node keeps from round to round of a job: float32 vectors as long as the model. Empty before the first."""


@dataclass(frozen=True, slots=True, eq=False)
class Correction:
    """What a trainer adds to every gradient of the weights: offset + pull (w - anchor).

    Training then minimises F_k(w) + <offset, w> + pull/2 |w - anchor|^2.

    Attributes:
        offset: As long as the model; only what lies at weights counts. None for zero.
        anchor: As long as the model; None for the parameters that training starts from.
    """

    offset: Vector | None = None
    pull: float = 0.0
    anchor: Vector | None = None

    def __bool__(self) -> bool:
        return self.offset is not None or self.pull > 0

    def at(self, w: Vector, start: Vector) -> Vector:
        """What is added to the gradient at `w`, for trainers in numpy."""
        pulled = np.float32(self.pull) * (w - (start if self.anchor is None else self.anchor))
        return pulled if self.offset is None else pulled + self.offset


UNCORRECTED = Correction()


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """One local training: from where, and with what added to the gradients."""

    start: Params
    correction: Correction = UNCORRECTED


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What a node knows when it begins.

    Attributes:
        model: The global model.
        slots: The server's vectors, if the strategy shares them; else empty.
        settings: What the strategy tells every node of the cohort.
        lr: The learning rate of this round.
        momentum: That of the local optimiser.
        loss: Mean loss of the model over the node's training rows, if the strategy asks for it; else 0.
    """

    model: Params
    slots: Mapping[str, Vector] = field(default_factory=dict)
    settings: Mapping[str, float] = field(default_factory=dict)
    memory: Memory = field(default_factory=dict)
    lr: float = 0.1
    momentum: float = 0.0
    loss: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What came of a plan: local - start, after so many optimiser steps."""

    delta: Params
    steps: int


@dataclass(frozen=True, slots=True, eq=False)
class Handed:
    """What a node hands in, and what it keeps.

    Attributes:
        delta: Averaged over the cohort, role by role.
        vectors: Averaged likewise: those that `Local.vectors` names, each as long as the model.
        facts: Numbers that `Local.facts` names; their weighted means are told to the server's half.
        memory: Never leaves the node.
        code: What travels in place of delta and vectors, which are decoded from it; empty without a codec.
    """

    delta: Params
    vectors: Mapping[str, Vector] = field(default_factory=dict)
    facts: Mapping[str, float] = field(default_factory=dict)
    memory: Memory = field(default_factory=dict)
    code: bytes = b""

    def joined(self) -> Params:
        """All that is summed as one vector, with the layout of `Layout.with_vectors`. Without vectors, the delta."""
        if not self.vectors:
            return self.delta
        layout = self.delta.layout.with_vectors(self.vectors)
        return Params(layout, np.concatenate([self.delta.buffer, *self.vectors.values()]))


class Demand(IntEnum):
    """The most that plans ask of whoever computes them."""

    PULL = 0  # one training, from the global model, at most pulled towards it
    OFFSET = 1  # and an offset on its gradients
    ANY = 2  # other starts and anchors, and several trainings


def from_the_model(request: Request) -> tuple[Plan, ...]:
    """Train from the global model, as it is."""
    return (Plan(request.model),)


def the_change(request: Request, trained: Sequence[Trained]) -> Handed:
    """Hand in the change of the model, keep nothing."""
    return Handed(trained[0].delta)


@dataclass(frozen=True, slots=True)
class Local:
    """The node's half of a strategy; without arguments that of FedAvg.

    Attributes:
        plan: What to train; never empty, and as many plans for each request.
        report: What to hand in and keep, from what came of each plan.
        personal: The model as this node itself uses it, which is then what the node measures; None for the global one.
        demand: The most that `plan` asks for; engines that cannot do it leave the job to the sequential one.
        loss_first: Whether the global model's loss on the node's training rows is measured for `Request.loss`.
        vectors: Names of the extra vectors in `Handed.vectors`, in order.
        facts: Names of the numbers in `Handed.facts`, each with the least and the most that is believed.
        optimizer: Local optimisers with which the formulas hold; `sgd` is with momentum, `plain sgd` without.
    """

    plan: Callable[[Request], tuple[Plan, ...]] = from_the_model
    report: Callable[[Request, Sequence[Trained]], Handed] = the_change
    personal: Callable[[Request], Params] | None = None
    demand: Demand = Demand.PULL
    loss_first: bool = False
    vectors: tuple[str, ...] = ()
    facts: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    optimizer: Literal["any", "sgd", "plain sgd"] = "any"

    def fault_of(self, facts: Mapping[str, float]) -> str | None:
        """Why these facts of a node are not taken; None when they are."""
        if facts.keys() != self.facts.keys():
            return f"the strategy expects the facts {sorted(self.facts)}, came {sorted(facts)[:8]}"
        for name, (least, most) in self.facts.items():
            if not (isfinite(facts[name]) and least <= facts[name] <= most):
                return f"the fact {name!r} is {facts[name]:g}, expected {least:g} to {most:g}"
        return None


AS_FEDAVG = Local()


# -- what strategies' halves are made of -----------------------------------------------------------------


def zeros_unless_kept(request: Request, name: str) -> Vector:
    """A vector of the node's memory; zeros the first time."""
    kept = request.memory.get(name)
    return np.zeros(request.model.layout.size, np.float32) if kept is None else kept


def at_weights(params: Params) -> Vector:
    """A copy of the values of weights, with zeros at everything else."""
    found = np.zeros_like(params.buffer)
    for span in params.layout.spans_of(Role.WEIGHT):
        found[span] = params.buffer[span]
    return found


def weights_scaled(params: Params, factor: float) -> Params:
    """A copy whose weights are multiplied, in float64; buffers and counters stay."""
    scaled = params.buffer.copy()
    for span in params.layout.spans_of(Role.WEIGHT):
        scaled[span] = params.buffer[span].astype(np.float64) * factor
    return Params(params.layout, scaled)
