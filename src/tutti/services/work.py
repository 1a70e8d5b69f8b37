"""One task on a node: measure the received model, train it, encode the update. Plain functions for a worker thread.

The same Start on the same data gives the same bytes: nothing here looks at a clock (but to report seconds)
or draws a number of its own.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from time import perf_counter

import msgspec
import numpy as np

from tutti.core.codec import NONE, compressed, without_residual
from tutti.core.errors import TuttiError, UserError
from tutti.core.fixedpoint import all_within, blocks_of
from tutti.core.local import Handed, Local, Request, Trained
from tutti.core.params import Params
from tutti.core.reduce import MAX_FLOAT
from tutti.core.registry import Choice
from tutti.core.schedules import schedules
from tutti.core.strategy import strategies
from tutti.domain.events import Digest
from tutti.domain.pacing import of_batch_and_steps
from tutti.domain.spec import Metrics, mismatch
from tutti.ports.blobs import Buffer
from tutti.ports.training import Data, Examples, Report, Task, Trainer, Work, normalized
from tutti.services.memory import NodeMemory
from tutti.wire import tensors, updates
from tutti.wire.messages import Failure, Start, Submission

log = logging.getLogger(__name__)

REASON_LENGTH = 500


class Diverged(UserError):
    """Training ended in values that are not numbers; sending them would only have them refused."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What the coordinator is to be told, and the bytes of the update it names, if it names one."""

    message: Submission | Failure
    blob: Buffer | None = None


def carry_out(
    start: Start,
    weights: Buffer,
    data: Data,
    trainer: Trainer,
    batch_size: int,
    report: Report,
    memory: NodeMemory,
    codec: Choice = NONE,
    clock: Callable[[], float] = perf_counter,
) -> Outcome:
    """Do what `start` asks for with the model in `weights`, a safetensors file; what is kept of it is stored before.

    Raises Cancelled out of `report`, UserError if model and data do not fit, and whatever the trainer raises.
    """
    began = clock()
    if (difference := mismatch(start.data, data.schema)) is not None:
        raise UserError(f"{data.name} here does not fit the job: {difference}")
    report(0.0, 0, None)
    local = strategies.build(start.strategy).local
    task = _task(start, batch_size, len(data.train))
    model, slots = tensors.decode_model(weights)
    kept = memory.load(start.job, start.counted)
    request = Request(model, slots, start.settings, without_residual(kept), task.lr, task.training.momentum)
    mine = model if local.personal is None else local.personal(request)
    looks = start.evaluate or start.task == "evaluate"
    measured = measure(mine, normalized(data.held_out, start.data), trainer) if looks else {}
    if start.task == "evaluate":
        if not measured:
            raise UserError(f"{data.name} holds out no rows here to measure a model on")
        return Outcome(_submission(start, len(data.held_out), measured, clock() - began))
    report(0.0, 0, None)
    examples = normalized(data.train, start.data)
    if local.loss_first:
        request = replace(request, loss=trainer.evaluate(model, examples)["loss"])
        report(0.0, 0, None)
    handed, work = train_locally(local, request, examples, trainer, task, report)
    handed = compressed(codec, handed, kept)
    memory.keep(start.job, start.round, handed.memory)
    blob = updates.encode(handed, codec)
    metrics = {**measured, **reported(work.metrics, work.examples, task.batch_size)}
    submission = _submission(start, work.examples, metrics, clock() - began, tensors.digest(blob), handed.facts)
    return Outcome(submission, blob)


def train_locally(
    local: Local, request: Request, examples: Examples, trainer: Trainer, task: Task, report: Report
) -> tuple[Handed, Work]:
    """Run a strategy's half on this node: every plan, then the report. The Work is the first plan's."""
    works, trained, plans = list[Work](), list[Trained](), local.plan(request)
    for number, plan in enumerate(plans):
        corrected = replace(task, correction=plan.correction)
        works.append(trainer.train(plan.start, examples, corrected, _share_of(report, number, len(plans))))
        trained.append(Trained(_delta(plan.start, works[-1].params), works[-1].steps))
    return handed_in(local, request, trained), works[0]


def handed_in(local: Local, request: Request, trained: Sequence[Trained]) -> Handed:
    """What the strategy has this node hand in; raises Diverged if it is beyond what would be believed."""
    handed = local.report(request, trained)
    if fault := local.fault_of(handed.facts):
        raise Diverged(f"training diverged: {fault}; lower the learning rate")
    return handed


def _share_of(report: Report, number: int, count: int) -> Report:
    return report if count == 1 else lambda done, epoch, loss: report((number + done) / count, epoch, loss)


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


def _task(start: Start, batch_size: int, rows: int) -> Task:
    training = start.training
    if start.share < 1:
        steps = training.epochs * -(-rows // batch_size)
        steps = min(steps, training.max_steps or steps)
        of_batch, of_steps = of_batch_and_steps(start.share) if start.less_of == "batch" else (1.0, start.share)
        batch_size, steps = max(1, round(of_batch * batch_size)), max(1, round(of_steps * steps))
        training = msgspec.structs.replace(training, max_steps=steps)
    factor = schedules.build(training.lr_schedule)(start.round, start.rounds)
    return Task(training, start.seed, batch_size, training.lr * factor)


def _delta(model: Params, trained: Params) -> Params:
    """local - global; raises UserError if the trainer changed the layout, Diverged if a value is not finite."""
    if difference := model.layout.difference(trained.layout):
        raise UserError(f"the trainer returned another model than it was given: {difference}")
    delta = Params(model.layout, trained.buffer - model.buffer)
    check_finite(delta)
    return delta


def check_finite(delta: Params) -> None:
    """Raise Diverged if a value is not finite."""
    if not all_within(delta.buffer, blocks_of([slice(0, delta.layout.size)]), MAX_FLOAT):
        bad, size = int((~np.isfinite(delta.buffer)).sum()), delta.layout.size
        raise Diverged(f"training diverged: {bad} of {size} values are not finite; lower the learning rate")


def _submission(
    start: Start, weight: int, metrics: Metrics, seconds: float, digest: Digest = "", facts: Mapping[str, float] = {}
) -> Submission:
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
        facts=dict(facts),
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
