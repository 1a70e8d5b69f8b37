"""Which engine computes a job: the one that was asked for, or the fastest that can."""

import logging
import os
from collections.abc import Mapping
from types import MappingProxyType

from tutti.core.local import Demand
from tutti.core.registry import Choice
from tutti.core.sampling import cohort_size
from tutti.core.strategy import strategies
from tutti.domain.spec import JobSpec
from tutti.ports.training import Trainer
from tutti.sim.engines._dense import dense_of
from tutti.sim.engines.port import CannotCompute, Engine, engines
from tutti.sim.federation import Federation

log = logging.getLogger(__name__)

AUTO = "auto"

WORTH_PROCESSES = 2e12
"""Multiplications of a whole job, at 6 an example and parameter, from which starting processes pays."""


DEMANDS: Mapping[str, Demand] = MappingProxyType(
    {
        "sequential": Demand.ANY,
        "vectorised": Demand.OFFSET,
        "fused": Demand.PULL,
        "processes": Demand.PULL,
        "dask": Demand.PULL,
        "ray": Demand.PULL,
    }
)
"""The most that each engine can do of what strategies ask for; engines of other distributions do all."""

_ASKS = {
    Demand.OFFSET: "corrects each node's gradients by a vector of its own",
    Demand.ANY: "trains from each node's own model",
}


def choose(name: str, spec: JobSpec, trainer: Trainer, federation: Federation) -> Engine:
    """The engine of that name, such as `fused` or `dask:workers=4`; `auto` is the fastest in this process or machine.

    One that cannot compute this job is replaced by the sequential one, with a warning that says why. Raises UserError
    for a name or option that there is not, and for an engine whose packages are not installed.
    """
    candidates = _fastest(spec, trainer, federation) if name == AUTO else [Choice.parse(name)]
    demand = strategies.build(spec.strategy).local.demand
    for choice in candidates:
        try:
            if DEMANDS.get(choice.name, Demand.ANY) < demand:
                raise CannotCompute(f"strategy {spec.strategy} {_ASKS[demand]}")
            return engines.build(choice, spec=spec, trainer=trainer, federation=federation)
        except CannotCompute as reason:
            level = logging.DEBUG if name == AUTO else logging.WARNING
            log.log(level, "engine %r cannot compute this job, the sequential one does: %s", choice.name, reason)
    return engines.build(Choice("sequential"), spec=spec, trainer=trainer, federation=federation)


def _fastest(spec: JobSpec, trainer: Trainer, federation: Federation) -> list[Choice]:
    """What to try: on a CPU, vmap is slower than one node after another, and batches are for dense networks only."""
    if not hasattr(trainer, "module"):
        return []
    if _on_gpu():
        return [Choice("vectorised")]
    found = [Choice("fused")]
    if _is_dense(trainer) and not spec.training.mixed_precision:
        found.append(Choice("vectorised"))
    if len(os.sched_getaffinity(0)) > 1 and _work(spec, trainer, federation) >= WORTH_PROCESSES:
        found.append(Choice("processes"))
    return found


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _is_dense(trainer: Trainer) -> bool:
    try:
        dense_of(trainer)
    except CannotCompute:
        return False
    return True


def _work(spec: JobSpec, trainer: Trainer, federation: Federation) -> float:
    """A lower bound for the multiplications of a whole job: a weight that is used more than once counts once."""
    nodes = len(federation.train)
    examples = sum(map(len, federation.train.values())) / nodes
    cohort = cohort_size(nodes, spec.cohort.size, spec.cohort.fraction)
    parameters = trainer.init(spec.seed).layout.size
    return 6.0 * parameters * examples * cohort * spec.training.epochs * spec.rounds
