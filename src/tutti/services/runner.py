"""The task at hand on a node: fetched, computed in a worker thread, delivered; independent of the connection.

A lost connection ends neither the work nor its result. Running work goes on; finished work waits, and is
handed in again when the coordinator asks again. There is one task at a time, and one thread that computes.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from math import inf, isfinite
from pathlib import Path
from random import Random
from typing import TypeAlias, TypeVar

import msgspec

from tutti.core.codec import AUTO, chosen
from tutti.core.errors import Conflict, CorruptBlob, NotFound, UserError
from tutti.core.registry import Choice
from tutti.domain.events import Digest
from tutti.domain.spec import DataSchema
from tutti.ports.blobs import Buffer
from tutti.ports.fabric import Link, LinkLost
from tutti.ports.training import Cancelled, Data, Report, Trainer
from tutti.services.memory import NodeMemory
from tutti.services.signing import UpdateSigner
from tutti.services.work import Outcome, carry_out, failure, reason_of
from tutti.wire import tensors, updates
from tutti.wire.messages import MAX_ATTACHED, Halt, NodeMessage, Progress, Start, Submission, Verdict

log = logging.getLogger(__name__)

FIRST_DELAY, LAST_DELAY = 0.1, 5.0
SOON, SOON_TRIES, LATER_TRY = 0.5, 12, 3
PROGRESS_SECONDS = 5.0
EPOCH_SECONDS = 1.0
"""Epochs that are shorter are not told of one by one."""

UNMEASURED_TASKS = 10
"""Tasks without a measured upload after which an older one is not believed any more."""

TrainerFor: TypeAlias = Callable[[Choice, DataSchema], Trainer]
T = TypeVar("T")


def backoff(rng: Random) -> Iterator[float]:
    """Seconds before each further try: 0.1 doubling up to 5, cut by up to half so that nodes spread out."""
    delay = FIRST_DELAY
    while True:
        yield delay * rng.uniform(0.5, 1.0)
        delay = min(LAST_DELAY, 2 * delay)


def reconnects(rng: Random) -> Iterator[float]:
    """Likewise, but no more than 0.5 for some five seconds: another coordinator takes over in a moment.

    Nobody is there yet who could be kept busy by that.
    """
    yield from (min(delay, SOON * rng.uniform(0.5, 1.0)) for delay in islice(backoff(rng), SOON_TRIES))
    yield from islice(backoff(rng), LATER_TRY, None)


def turned_away(rng: Random) -> float:
    """Seconds before the next try to connect to a coordinator that has no room now: so many want to come in."""
    return LAST_DELAY * rng.uniform(0.2, 1.0)


@dataclass(slots=True, eq=False)
class Assignment:
    """A task: `activity` fetches, computes and delivers; `outcome` is there once the work is done."""

    start: Start
    batch_size: int
    delays: Iterator[float]  # before each further hand-in
    cancelled: threading.Event = field(default_factory=threading.Event)
    activity: "asyncio.Task[None] | None" = None
    outcome: Outcome | None = None
    received: int = 0  # bytes of the model, whole or in steps

    @property
    def busy(self) -> bool:
        return self.activity is not None and not self.activity.done()

    @property
    def key(self) -> tuple[str, int, int, str, Digest]:
        return key_of(self.start)

    def is_for(self, message: Halt | Verdict) -> bool:
        return (message.job, message.round, message.attempt) == self.key[:3]

    def cancel(self) -> None:
        """The thread notices at its next report; nothing waits for it here."""
        self.cancelled.set()
        if self.activity is not None:
            self.activity.cancel()


def key_of(start: Start) -> tuple[str, int, int, str, Digest]:
    """What makes two Starts the same work."""
    return start.job, start.round, start.attempt, start.task, start.weights


class TaskRunner:
    """Carries out one assignment at a time.

    Attributes:
        held: The assignment, kept after delivery until its round is over, in case its bytes get lost.
        connected: Set while the coordinator can be reached; transfers wait for it.
        progress_every: Seconds between progress messages.
    """

    def __init__(
        self,
        name: str,
        link: Link,
        data: Data,
        workdir: Path,
        trainer_for: TrainerFor,
        rng: Random,
        clock: Callable[[], float],
        signer: UpdateSigner | None = None,
    ) -> None:
        self.held: Assignment | None = None
        self.connected = asyncio.Event()
        self.progress_every = PROGRESS_SECONDS
        self._name, self._link, self._data, self._trainer_for, self._rng = name, link, data, trainer_for, rng
        self._model: tuple[Digest, Buffer] = ("", b"")
        self._memory, self._signer = NodeMemory(workdir / "memory"), signer
        self._clock = clock
        self._up: float | None = None  # bytes a second of the newest upload that was not small
        self._down: float | None = None
        self._unmeasured = 0  # tasks since that upload
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="training")
        self._trainer: tuple[Choice, Trainer] | None = None
        self._progress: Progress | None = None
        self._progressed = asyncio.Event()

    def take(self, start: Start, batch_size: int, outcome: Outcome | None = None) -> None:
        """Begin this task, or hand its outcome in if there is one; what was held before must have been released."""
        held = self.held = Assignment(start, batch_size, backoff(self._rng), outcome=outcome)
        held.activity = asyncio.create_task(self._work(held) if outcome is None else self._deliver(held))

    def outcome_for(self, start: Start) -> Outcome | None:
        """What was handed in, if this is one more attempt at the same work: it would come out the same again."""
        held = self.held
        if held is None or held.outcome is None or not isinstance(held.outcome.message, Submission):
            return None
        before = held.start
        if msgspec.structs.replace(start, attempt=before.attempt, cohort=before.cohort, trace=before.trace) != before:
            return None
        message = msgspec.structs.replace(held.outcome.message, attempt=start.attempt, received=0)
        return Outcome(message, held.outcome.blob)

    def hand_in_again(self) -> None:
        """Deliver the outcome once more, in a while, unless the work or a delivery is still going on."""
        if self.held is not None and not self.held.busy:
            self.held.activity = asyncio.create_task(self._deliver_later(self.held))

    def settled(self, verdict: Verdict) -> None:
        """The coordinator has judged the outcome: should it ask again, that is a new matter."""
        if self.held is not None and self.held.is_for(verdict):
            self.held.delays = backoff(self._rng)

    def release(self, reason: str) -> None:
        """Forget the task, and stop it if it is running."""
        held, self.held, self._progress = self.held, None, None
        if held is None:
            return
        if held.busy:
            log.info("job %s round %d node %s: dropped: %s", held.start.job, held.start.round, self._name, reason)
        held.cancel()

    def close(self) -> None:
        self.release("the node is stopping")
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def next_progress(self) -> Progress:
        """Wait for something to tell. Only the newest report counts, so there is one place for all of them."""
        while True:
            await self._progressed.wait()
            self._progressed.clear()
            progress, self._progress = self._progress, None
            if progress is not None:
                return progress

    async def say(self, message: NodeMessage) -> None:
        """Send, if the connection is there; if not, the coordinator asks again when it is.

        Raises whatever else keeps the link from sending, such as UserError for a message that is too long.
        """
        try:
            await self._link.send(message)
        except LinkLost as lost:
            log.debug("node %s: %s waits for a connection: %s", self._name, type(message).__name__, lost)

    # -- the work ----------------------------------------------------------------------------------------

    async def _work(self, held: Assignment) -> None:
        """Fetch, compute, deliver; an error becomes a Failure, and the node stays."""
        try:
            weights = await self._transfer(held, 0.0, self._fetch(held))
            loop = asyncio.get_running_loop()
            held.outcome = await loop.run_in_executor(self._thread, self._compute, held, weights, loop)
        except Exception as error:
            held.outcome = self._failed(held.start, error)
        await self._deliver(held)

    def _compute(self, held: Assignment, weights: Buffer, loop: asyncio.AbstractEventLoop) -> Outcome:
        """In the worker thread. A model is somebody else's code: whatever it raises, SystemExit too, fails the task."""
        try:
            return self._train(held, weights, loop)
        except (Cancelled, KeyboardInterrupt):
            raise
        except BaseException as error:
            return self._failed(held.start, error)

    def _train(self, held: Assignment, weights: Buffer, loop: asyncio.AbstractEventLoop) -> Outcome:
        """A trainer that did its work is kept, for the next round wants it again."""
        start, kept = held.start, self._trainer
        self._trainer = None
        if kept is None or kept[0] != start.model:
            kept = (start.model, self._trainer_for(start.model, self._data.schema))
        report = self._reporter(held, loop)
        what = (start, weights, self._data, kept[1], held.batch_size, report, self._memory)
        codec = self._chosen(len(weights)) if start.codec == AUTO else start.codec
        outcome = carry_out(*what, codec, self._clock)
        self._trainer = kept
        message = outcome.message
        if not isinstance(message, Submission):
            return outcome
        message = msgspec.structs.replace(message, received=held.received)
        if self._signer is not None and message.digest:
            signed = self._signer.sign(start, message.digest, message.weight)
            message = msgspec.structs.replace(message, nonce=signed.nonce, signature=signed.signature)
        return Outcome(message, outcome.blob)

    def _chosen(self, size: int) -> Choice:
        """The codec of an update of that size: by the newest upload, or for want of one by the newest download.

        Small updates say nothing of the link, so one that has become fast again is found out by a larger one.
        """
        self._unmeasured += 1
        if self._unmeasured > UNMEASURED_TASKS:
            self._up, self._unmeasured = None, 0
        return chosen(size, self._up or self._down)

    def _reporter(self, held: Assignment, loop: asyncio.AbstractEventLoop) -> Report:
        """For the worker thread: looks for a cancellation at every call, passes a report on now and then.

        One that begins another epoch is passed on too, unless the one before was a moment ago.
        """
        start, told, seen = held.start, -inf, 0

        def report(done: float, epoch: int, loss: float | None) -> None:
            nonlocal told, seen
            if held.cancelled.is_set():
                raise Cancelled(f"job {start.job} round {start.round} is not wanted any more")
            wait = self.progress_every if epoch == seen else min(EPOCH_SECONDS, self.progress_every)
            if (now := self._clock()) >= told + wait:
                told, seen = now, epoch
                loop.call_soon_threadsafe(self._note, held, done, epoch, loss)

        return report

    def _note(self, held: Assignment, done: float, epoch: int = 0, loss: float | None = None) -> None:
        """Leave a progress message to be sent; it renews the lease."""
        if held is not self.held:
            return
        job, round, attempt, *_ = held.key
        finite = loss if loss is not None and isfinite(loss) else None
        self._progress = Progress(job=job, round=round, attempt=attempt, done=done, epoch=epoch, loss=finite)
        self._progressed.set()

    async def _deliver_later(self, held: Assignment) -> None:
        await asyncio.sleep(next(held.delays))
        await self._deliver(held)

    async def _deliver(self, held: Assignment) -> None:
        """Store the update, if there is one, and say so."""
        assert held.outcome is not None
        message, blob = held.outcome.message, held.outcome.blob
        if blob is not None and isinstance(message, Submission):
            try:
                await self._transfer(held, 1.0, self._store(blob, message.digest))
            except Conflict as conflict:  # perhaps it is in already, and the answer was lost: the next one tells
                log.debug("job %s node %s: not stored: %s", held.start.job, self._name, conflict)
            except Exception as error:
                held.outcome = self._failed(held.start, error)
        self._progress = None
        try:
            await self.say(held.outcome.message)
        except Exception as error:
            held.outcome = self._failed(held.start, error)
            await self.say(held.outcome.message)

    def _failed(self, start: Start, error: BaseException) -> Outcome:
        reason = reason_of(error)
        log.warning("job %s round %d node %s: failed: %s", start.job, start.round, self._name, reason)
        log.debug("job %s round %d node %s: traceback", start.job, start.round, self._name, exc_info=error)
        return Outcome(failure(start, reason))

    # -- transfers ---------------------------------------------------------------------------------------

    async def _transfer(self, held: Assignment, done: float, transfer: Awaitable[T]) -> T:
        """Await a transfer, which has deadlines of its own, and renew the lease meanwhile."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(self.progress_every)
                self._note(held, done)

        renewal = asyncio.create_task(renew())
        try:
            return await transfer
        finally:
            renewal.cancel()

    async def _fetch(self, held: Assignment) -> Buffer:
        """A model; the last one is kept, for an attempt that is repeated wants it again, and steps lead on from it."""
        digest = held.start.weights
        if self._model[0] != digest and (stepped := await self._by_steps(held)) is not None:
            self._model = (digest, stepped)
        if self._model[0] != digest:
            self._model = ("", b"")  # two large ones may not fit
            try:
                blob = await self._fetched(held, digest)
            except CorruptBlob as corrupt:
                log.warning("%s; loading it once more", corrupt)
                blob = await self.insist(lambda: self._link.fetch(digest))
            self._model = (digest, blob)
        return self._model[1]

    async def _by_steps(self, held: Assignment) -> Buffer | None:
        """The model, by the steps from the one that is here; None if none lead there."""
        start, (here, model) = held.start, self._model
        bases = [step.base for step in start.steps]
        if here not in bases:
            return None
        try:
            for step in start.steps[bases.index(here) :]:
                code = await self._fetched(held, step.digest)
                model = await asyncio.to_thread(updates.applied, model, code)
        except (CorruptBlob, NotFound, UserError) as error:
            log.warning("job %s node %s: no step to the model, fetching it whole: %s", start.job, self._name, error)
            return None
        if tensors.digest(model) != start.weights:
            log.warning("job %s node %s: steps led to another model, fetching it whole", start.job, self._name)
            return None
        return model

    async def _store(self, blob: Buffer, digest: Digest) -> None:
        began = self._clock()
        await self.insist(lambda: self._link.store(memoryview(blob), digest))
        if len(blob) > MAX_ATTACHED:  # else it may go with a message, which says nothing of the link
            self._up, self._unmeasured = len(blob) / max(self._clock() - began, 1e-6), 0

    async def _fetched(self, held: Assignment, digest: Digest) -> Buffer:
        began = self._clock()
        blob = await self.insist(lambda: self._link.fetch(digest))
        if len(blob) > MAX_ATTACHED:
            self._down = len(blob) / max(self._clock() - began, 1e-6)
        held.received += len(blob)
        return blob

    async def insist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try again whenever the coordinator was away, once it is back."""
        delays = backoff(self._rng)
        while True:
            await self.connected.wait()
            try:
                return await attempt()
            except LinkLost as lost:
                log.debug("node %s: transfer interrupted, going on later: %s", self._name, lost)
            await asyncio.sleep(next(delays))
