"""One node after another, by the model's own trainer: the reference, and right for every model."""

from collections.abc import Iterator, Sequence
from time import perf_counter

import numpy as np

from tutti.core.params import Params
from tutti.domain.spec import JobSpec
from tutti.ports.training import Trainer
from tutti.services.work import reason_of
from tutti.sim.engines.port import Assignment, Engine, Failed, Result, Trained, engines
from tutti.sim.federation import Federation


@engines.register("sequential")
def sequential(*, spec: JobSpec, trainer: Trainer, federation: Federation) -> Engine:
    """One node after another, by the model's own trainer; right for every model."""
    return Sequential(trainer, federation)


class Sequential:
    """Bitwise what a node of a deployment computes, on one machine and thread count."""

    name = "sequential"

    def __init__(self, trainer: Trainer, federation: Federation) -> None:
        self._trainer = trainer
        self._federation = federation

    def train(self, params: Params, assignments: Sequence[Assignment]) -> Iterator[Result]:
        for assignment in assignments:
            yield self._one(params, assignment)

    def close(self) -> None:
        pass

    def _one(self, params: Params, assignment: Assignment) -> Result:
        began, node = perf_counter(), assignment.node
        try:
            work = self._trainer.train(params, self._federation.examples(node), assignment.task, lambda *_: None)
        except Exception as error:
            return Failed(node, reason_of(error))
        if difference := params.layout.difference(work.params.layout):
            return Failed(node, f"the trainer returned another model than it was given: {difference}")
        delta = Params(params.layout, np.subtract(work.params.buffer, params.buffer))
        return Trained(node, delta, work.examples, work.metrics, perf_counter() - began, work.steps)
