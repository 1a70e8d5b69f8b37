"""One task on a node: measure the received model, train it, encode the update. Plain functions for a worker thread.

The same Start on the same data gives the same bytes: nothing here looks at a clock (but to report seconds)
or draws a number of its own.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from time import perf_counter

import numpy as np

from tutti.core.errors import TuttiError, UserError
from tutti.core.params import Params
from tutti.core.schedules import schedules
from tutti.domain.events import Digest
from tutti.domain.spec import Metrics
from tutti.ports.blobs import Buffer
from tutti.ports.training import Data, Examples, Report, Task, Trainer
from tutti.wire import tensors
from tutti.wire.messages import Failure, Start, Submission

log = logging.getLogger(__name__)

REASON_LENGTH = 500


class Diverged(UserError):
    """Training ended in values that are not numbers; sending them would only have them refused."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What the coordinator is to be told, and the bytes of the update it names, if it names one."""

    message: Submission | Failure
    blob: bytearray | None = None


def carry_out(
    start: Start,
    weights: Buffer,
    data: Data,
    trainer: Trainer,
    batch_size: int,
    report: Report,
    clock: Callable[[], float] = perf_counter,
) -> Outcome:
    """Do what `start` asks for with the model in `weights`, a safetensors file.

    Raises Cancelled out of `report`, UserError if model and data do not fit, and whatever the trainer raises.
    """
    began = clock()
    if start.data != data.schema:
        raise UserError(f"the job expects data like {start.data}, {data.name} here is {data.schema}")
    report(0.0, 0, None)
    model = tensors.decode(weights)
    measured = measure(model, data.held_out, trainer) if start.evaluate or start.task == "evaluate" else {}
    if start.task == "evaluate":
        if not measured:
            raise UserError(f"{data.name} holds out no rows here to measure a model on")
        return Outcome(_submission(start, len(data.held_out), measured, clock() - began))
    report(0.0, 0, None)
    work = trainer.train(model, data.train, _task(start, batch_size), report)
    blob = tensors.encode(_delta(model, work.params))
    metrics = {**measured, **reported(work.metrics, work.examples, batch_size)}
    submission = _submission(start, work.examples, metrics, clock() - began, tensors.digest(blob))
    return Outcome(submission, blob)


def measure(model: Params, held_out: Examples, trainer: Trainer) -> Metrics:
    """A node's metrics on its held-out rows, with their number; nothing if there are none."""
    if len(held_out) == 0:
        return {}
    metrics = trainer.evaluate(model, held_out)
    return {**{f"eval_{name}": value for name, value in metrics.items()}, "eval_examples": float(len(held_out))}


def reported(metrics: Metrics, examples: int, batch_size: int) -> Metrics:
    """What a node tells of its training: the trainer's metrics, and what they are of."""
    trained = {f"train_{name}": value for name, value in metrics.items()}
    return {**trained, "train_examples": float(examples), "batch_size": float(batch_size)}


def _task(start: Start, batch_size: int) -> Task:
    training = start.training
    factor = schedules.build(training.lr_schedule)(start.round, start.rounds)
    return Task(training, start.seed, batch_size, training.lr * factor, start.settings)


def _delta(model: Params, trained: Params) -> Params:
    """local - global; raises UserError if the trainer changed the layout, Diverged if a value is not finite."""
    if difference := model.layout.difference(trained.layout):
        raise UserError(f"the trainer returned another model than it was given: {difference}")
    delta = Params(model.layout, trained.buffer - model.buffer)
    check_finite(delta)
    return delta


def check_finite(delta: Params) -> None:
    """Raise Diverged if a value is not finite."""
    if not np.isfinite(delta.buffer).all():
        bad, size = int((~np.isfinite(delta.buffer)).sum()), delta.layout.size
        raise Diverged(f"training diverged: {bad} of {size} values are not finite; lower the learning rate")


def _submission(start: Start, weight: int, metrics: Metrics, seconds: float, digest: Digest = "") -> Submission:
    """Metrics that are not finite cannot be told in JSON, and are left out."""
    finite = {name: float(value) for name, value in metrics.items() if isfinite(value)}
    if dropped := sorted(metrics.keys() - finite.keys()):
        log.warning("job %s round %d: not finite, so not sent: %s", start.job, start.round, ", ".join(dropped))
    return Submission(
        job=start.job,
        round=start.round,
        attempt=start.attempt,
        digest=digest,
        weight=weight,
        metrics=finite,
        seconds=seconds,
    )


def failure(start: Start, reason: str) -> Failure:
    return Failure(job=start.job, round=start.round, attempt=start.attempt, reason=reason[:REASON_LENGTH])


def reason_of(error: BaseException) -> str:
    """An error in words that can be sent: half a surrogate pair, as in a file's name, becomes a question mark."""
    words = str(error).encode(errors="replace").decode()
    if isinstance(error, MemoryError):
        return f"out of memory on the node: {words}" if words else "out of memory on the node"
    return words if isinstance(error, TuttiError) else f"{type(error).__name__}: {words}"
