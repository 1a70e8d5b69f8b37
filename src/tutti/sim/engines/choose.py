"""Which engine computes a job: the one that was asked for, or the fastest that can."""

import logging
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType

from tutti.core.errors import UserError
from tutti.core.local import Demand
from tutti.core.sampling import cohort_size
from tutti.core.strategy import strategies
from tutti.domain.spec import JobSpec
from tutti.ports.training import Trainer
from tutti.sim.engines.dense import CannotVectorise, dense_of
from tutti.sim.engines.port import Engine
from tutti.sim.engines.sequential import Sequential
from tutti.sim.federation import Federation

log = logging.getLogger(__name__)

WORTH_PROCESSES = 2e12
"""Multiplications of a whole job, at 6 an example and parameter, from which starting processes pays."""

Make = Callable[[JobSpec, Trainer, Federation], Engine]


def _sequential(spec: JobSpec, trainer: Trainer, federation: Federation) -> Engine:
    return Sequential(trainer, federation)


def _fused(spec: JobSpec, trainer: Trainer, federation: Federation) -> Engine:
    from tutti.sim.engines.fused import Fused

    return Fused(spec, trainer, federation)


def _vectorised(spec: JobSpec, trainer: Trainer, federation: Federation) -> Engine:
    if not hasattr(trainer, "module"):
        raise CannotVectorise("the model is not made of torch layers")
    from tutti.sim.engines.vectorised import Vectorised

    return Vectorised(spec, trainer, federation)


def _processes(spec: JobSpec, trainer: Trainer, federation: Federation) -> Engine:
    from tutti.sim.engines.processes import Processes

    return Processes(spec, federation)


ENGINES: Mapping[str, Make] = MappingProxyType(
    {"sequential": _sequential, "vectorised": _vectorised, "fused": _fused, "processes": _processes}
)
NAMES = ("auto", *ENGINES)
DEMANDS: Mapping[str, Demand] = MappingProxyType(
    {"sequential": Demand.ANY, "vectorised": Demand.OFFSET, "fused": Demand.PULL, "processes": Demand.PULL}
)
"""The most that each engine can do of what strategies ask for."""


def choose(name: str, spec: JobSpec, trainer: Trainer, federation: Federation) -> Engine:
    """The engine of that name; if it cannot compute this job, the sequential one, with a warning that says why."""
    if name not in NAMES:
        raise UserError(f"there is no engine {name!r}; choose from: {', '.join(NAMES)}")
    demand = strategies.build(spec.strategy).local.demand
    if name == "auto":
        return _fastest(spec, trainer, federation, demand)
    try:
        if DEMANDS[name] < demand:
            raise CannotVectorise(f"strategy {spec.strategy} {_ASKS[demand]}")
        return ENGINES[name](spec, trainer, federation)
    except CannotVectorise as reason:
        log.warning("engine %r cannot compute this job, the sequential one does: %s", name, reason)
        return Sequential(trainer, federation)


_ASKS = {
    Demand.OFFSET: "corrects each node's gradients by a vector of its own",
    Demand.ANY: "trains from each node's own model",
}


def _fastest(spec: JobSpec, trainer: Trainer, federation: Federation, demand: Demand) -> Engine:
    """Of those that can do what the strategy asks for, fused before vectorised.

    Both for dense networks only: on a CPU, vmap is slower than one after another.
    """
    try:
        if demand <= DEMANDS["fused"]:
            return _fused(spec, trainer, federation)
    except CannotVectorise as reason:
        log.debug("not the fused engine: %s", reason)
    try:
        if demand <= DEMANDS["vectorised"]:
            dense_of(trainer)
            return _vectorised(spec, trainer, federation)
    except CannotVectorise as reason:
        log.debug("not the vectorised engine: %s", reason)
    cores = len(os.sched_getaffinity(0))
    if demand > DEMANDS["processes"]:
        return Sequential(trainer, federation)
    if cores > 1 and hasattr(trainer, "module") and _work(spec, trainer, federation) >= WORTH_PROCESSES:
        return _processes(spec, trainer, federation)
    return Sequential(trainer, federation)


def _work(spec: JobSpec, trainer: Trainer, federation: Federation) -> float:
    """A lower bound for the multiplications of a whole job: a weight that is used more than once counts once."""
    nodes = len(federation.train)
    examples = sum(map(len, federation.train.values())) / nodes
    cohort = cohort_size(nodes, spec.cohort.size, spec.cohort.fraction)
    parameters = trainer.init(spec.seed).layout.size
    return 6.0 * parameters * examples * cohort * spec.training.epochs * spec.rounds
