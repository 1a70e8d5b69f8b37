"""What stays in a worker process from one node to the next: all rows, and one network."""

from collections.abc import Sequence
from time import perf_counter

import msgspec
import numpy as np
from numpy.typing import NDArray

from tutti.adapters._imports import importable
from tutti.core.local import Correction
from tutti.core.params import Params, Vector
from tutti.core.registry import Choice
from tutti.domain.spec import DataSchema, Metrics, Training
from tutti.ports.training import Examples, Task, Trainer, models
from tutti.services.work import reason_of


class Order(msgspec.Struct, frozen=True, tag=True):
    """Train on `rows` (int64 row numbers); a slot, where there are some, is where the update goes."""

    rows: bytes
    training: Training
    seed: int
    batch_size: int
    lr: float
    pull: float
    slot: int = 0


class Done(msgspec.Struct, frozen=True, tag=True):
    slot: int
    examples: int
    metrics: Metrics
    seconds: float
    steps: int


class Trouble(msgspec.Struct, frozen=True, tag=True):
    slot: int
    reason: str


def order_for(task: Task, rows: NDArray[np.int64], slot: int = 0) -> Order:
    return Order(rows.tobytes(), task.training, task.seed, task.batch_size, task.lr, task.correction.pull, slot)


class Resident:
    def __init__(self, model: Choice, schema: DataSchema, rows: Examples, listed: Sequence[str]) -> None:
        """`listed`: modules that the model may name, as in `importable`."""
        self._model, self._schema, self._rows, self._listed = model, schema, rows, listed
        self._trainer: Trainer | None = None

    def carry_out(self, order: Order, params: Params, delta: Vector) -> Done | Trouble:
        """Train from `params` and write the update to `delta`. Whatever goes wrong with a node is Trouble."""
        began = perf_counter()
        try:
            self._trainer = self._trainer or self._build()
            mine = np.frombuffer(order.rows, np.int64)
            examples = Examples(self._rows.x[mine], self._rows.y[mine])
            task = Task(order.training, order.seed, order.batch_size, order.lr, Correction(pull=order.pull))
            work = self._trainer.train(params, examples, task, lambda *_: None)
            if difference := params.layout.difference(work.params.layout):
                return Trouble(order.slot, f"the trainer returned another model than it was given: {difference}")
            np.subtract(work.params.buffer, params.buffer, out=delta)
        except Exception as error:
            return Trouble(order.slot, reason_of(error))
        return Done(order.slot, work.examples, work.metrics, perf_counter() - began, work.steps)

    def _build(self) -> Trainer:
        with importable(self._listed):
            return models.build(self._model, data=self._schema)
