"""The node's half of the market: does compute jobs, one at a time, commits to results, and shows them when asked to.

A result is on the disk before it is committed to, so that a worker that is killed shows the same one later. The nonce
that hides it is made from the node's secret: nothing else has to be kept.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from blake3 import blake3

from tutti.core import challenge
from tutti.core.registry import Choice
from tutti.core.workload import Floats
from tutti.domain.market.sealing import commitment_of
from tutti.ports.blobs import Buffer
from tutti.ports.fabric import Link
from tutti.services.market.judging import solve as solve_honestly
from tutti.services.runner import TaskRunner
from tutti.services.work import reason_of
from tutti.wire.messages import (
    Committed,
    Compute,
    Computed,
    Computing,
    Declined,
    Measure,
    Measured,
    Offer,
    Over,
    Show,
)
from tutti.wire.tables import Data, encode

log = logging.getLogger(__name__)

KEEP_SECONDS = 31 * 86_400
"""For which a result waits on the disk when the end of its job, of at most 30 days, is never heard of."""

Answer: TypeAlias = Callable[[int, int], bytes]
"""(seed, steps) -> the answer to a challenge (`tutti.core.challenge`)."""

Solve: TypeAlias = Callable[[Choice, Data, int], Mapping[str, Floats]]


@dataclass(slots=True, eq=False)
class Held:
    """A job that was given; `result` once there is one, which waits until it may be shown."""

    asked: Compute
    activity: "asyncio.Task[None] | None" = None
    result: bytes = b""

    @property
    def key(self) -> tuple[str, int]:
        return self.asked.job, self.asked.attempt


@dataclass(slots=True, eq=False)
class Worker:
    """Says through the runner's link what it does; `begin` gives it the runner. `solve` is for tests of cheats.

    `cpu` and `gpu` answer challenges, the latter where there is one.
    """

    name: str
    secret: str
    offer: Offer
    link: Link
    folder: Path
    solve: Solve = solve_honestly
    cpu: Answer = challenge.answer
    gpu: Answer | None = None
    held: dict[tuple[str, int], Held] = field(default_factory=dict, init=False)
    _tasks: TaskRunner | None = field(default=None, init=False)
    _measuring: "asyncio.Task[None] | None" = field(default=None, init=False)
    _thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="market"), init=False
    )

    def begin(self, tasks: TaskRunner) -> None:
        self._tasks = tasks
        log.info(
            "offers its work for %d tokens at stake; if node:%s has fewer, an admin gives it some "
            "(`tutti ledger mint node:%s %d --key …`), and until then it gets no work",
            self.offer.stake,
            self.name,
            self.name,
            self.offer.stake,
        )
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def tasks(self) -> TaskRunner:
        assert self._tasks is not None
        return self._tasks

    def obey(self, message: Compute | Show | Over | Measure) -> None:
        match message:
            case Compute():
                self._on_compute(message)
            case Show():
                held = self.held.get((message.job, message.attempt))
                if held is not None and held.result:
                    self._do(held, self._show(held))
            case Over():
                log.info("compute job %s: over: %s", message.job, message.reason or f"earned {message.paid} tokens")
                self._drop((message.job, message.attempt))
                self._file(message.job, message.attempt).unlink(missing_ok=True)
            case Measure():
                self._measuring = asyncio.ensure_future(self._measure(message))

    async def _measure(self, asked: Measure) -> None:
        solver = self.gpu if asked.gpu else self.cpu
        answer = b""
        if solver is not None:
            try:
                work = asyncio.get_running_loop().run_in_executor(self._thread, solver, asked.seed, asked.steps)
                answer = await work
            except Exception as error:  # whatever a driver says
                log.warning("cannot be measured: %s", reason_of(error))
        await self.tasks.say(Measured(id=asked.id, answer=answer))

    def close(self) -> None:
        for key in list(self.held):
            self._drop(key)
        if self._measuring is not None:
            self._measuring.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _on_compute(self, asked: Compute) -> None:
        held = self.held.get((asked.job, asked.attempt))
        if held is not None:
            if held.result:
                self._do(held, self._commit(held))
            return
        for key in [key for key in self.held if not self._file(*key).exists()]:
            self._drop(key)  # the coordinator has given it up: it gives nothing else to who is at work
        for file in self.folder.glob("*.safetensors"):
            if file.stat().st_mtime < time.time() - KEEP_SECONDS:
                file.unlink(missing_ok=True)
        held = self.held[asked.job, asked.attempt] = Held(asked)
        self._do(held, self._work(held))

    def _do(self, held: Held, work: Coroutine[None, None, None]) -> None:
        if held.activity is not None and not held.activity.done():
            held.activity.cancel()
        held.activity = asyncio.create_task(work)

    def _drop(self, key: tuple[str, int]) -> None:
        held = self.held.pop(key, None)
        if held is not None and held.activity is not None:
            held.activity.cancel()

    async def _work(self, held: Held) -> None:
        """Fetch, compute, keep, commit; what goes wrong is said, and the worker stays."""
        asked, file = held.asked, self._file(*held.key)
        renewal = asyncio.create_task(self._renew(asked))
        try:
            if file.exists():
                held.result = file.read_bytes()
            else:
                data = await self.tasks.insist(lambda: self.link.fetch(asked.data))
                loop = asyncio.get_running_loop()
                held.result = await loop.run_in_executor(self._thread, self._compute, asked, data)
                await asyncio.to_thread(_keep, file, held.result)
            await self._commit(held)
        except Exception as error:
            reason = reason_of(error)
            log.warning("compute job %s: failed: %s", asked.job, reason)
            await self.tasks.say(Declined(job=asked.job, attempt=asked.attempt, reason=reason[:1000]))
        finally:
            renewal.cancel()

    def _compute(self, asked: Compute, data: Buffer) -> bytes:
        return encode(self.solve(asked.kind, data, asked.seed))

    async def _renew(self, asked: Compute) -> None:
        while True:
            await asyncio.sleep(self.tasks.progress_every)
            await self.tasks.say(Computing(job=asked.job, attempt=asked.attempt))

    async def _commit(self, held: Held) -> None:
        job, attempt = held.key
        await self.tasks.say(Committed(job=job, attempt=attempt, commitment=self._commitment(held)))

    def _commitment(self, held: Held) -> str:
        job, attempt = held.key
        return commitment_of(job, attempt, self.name, blake3(held.result).hexdigest(), self._nonce(held))

    async def _show(self, held: Held) -> None:
        job, attempt = held.key
        digest = blake3(held.result).hexdigest()
        renewal = asyncio.create_task(self._renew(held.asked))
        try:
            await self.tasks.insist(lambda: self.link.store(memoryview(held.result), digest))
        except Exception as error:
            reason = f"its result is not taken: {reason_of(error)}"
            log.warning("compute job %s: %s", job, reason)
            await self.tasks.say(Declined(job=job, attempt=attempt, reason=reason[:1000]))
            return
        finally:
            renewal.cancel()
        await self.tasks.say(Computed(job=job, attempt=attempt, digest=digest, nonce=self._nonce(held)))

    def _nonce(self, held: Held) -> str:
        job, attempt = held.key
        key = blake3(self.secret.encode(), derive_key_context="tutti market nonce").digest()
        return blake3(f"{job}/{attempt}".encode(), key=key).hexdigest()

    def _file(self, job: str, attempt: int) -> Path:
        return self.folder / f"{job}-{attempt}.safetensors"


def _keep(file: Path, result: bytes) -> None:
    partial = file.with_suffix(".part")
    partial.write_bytes(result)
    partial.replace(file)
