"""The node's side of the protocol: connect, register, obey, and keep at it until somebody says stop.

The connection and the work live apart: after a reconnect the coordinator tells of the same task again, and
running work goes on, finished work is handed in again with the same digest. The coordinator's newest word
counts; the owner's policy counts more.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from random import Random
from time import perf_counter
from typing import assert_never

from msgspec.structs import replace

from tutti.core.codec import codecs
from tutti.core.statistics import Statistics
from tutti.domain.nodes import Capabilities, DataSummary
from tutti.domain.policy import Policy, allows, batch_size_for, closed, offered, tells, terms
from tutti.ports.fabric import Link, LinkBusy, LinkLost, LinkRefused
from tutti.ports.identity import SigningKey
from tutti.ports.machine import Host, Load
from tutti.ports.training import Data
from tutti.services.market.worker import Worker
from tutti.services.preflight import statistics_of
from tutti.services.runner import TaskRunner, TrainerFor, key_of, reconnects, turned_away
from tutti.services.signing import UpdateSigner
from tutti.services.work import failure
from tutti.wire.messages import (
    PROTOCOL,
    Assign,
    Compute,
    CoordinatorMessage,
    Declined,
    Describe,
    Described,
    Dismiss,
    Failure,
    GlobalWeights,
    Halt,
    Heartbeat,
    Measure,
    Over,
    Refusal,
    Registered,
    Registration,
    Show,
    Start,
    Verdict,
)

log = logging.getLogger(__name__)


class NodeRuntime:
    """A node: its data, its owner's policy, a link to a coordinator, and a way to build trainers."""

    def __init__(
        self,
        *,
        name: str,
        token: str,
        link: Link,
        data: Data,
        policy: Policy,
        machine: Host,
        workdir: Path,
        trainer_for: TrainerFor,
        now: Callable[[], datetime] = datetime.now,
        clock: Callable[[], float] = perf_counter,
        on_connected: Callable[[], None] = lambda: None,
        worker: Worker | None = None,
        key: SigningKey | None = None,
    ) -> None:
        """With a `key`, the node signs its updates."""
        self._on_connected = on_connected
        self._name, self._token, self._link, self._data = name, token, link, data
        self._policy, self._machine, self._now = policy, machine, now
        self._capabilities = Capabilities()
        self._summary: DataSummary
        self._statistics: Statistics | None = None
        self._rng = Random(name)  # noqa: S311 - spreads reconnects, guards nothing
        self._key = key.public if key else ""
        signer = UpdateSigner(key, workdir / "signed") if key else None
        self._tasks = TaskRunner(name, link, data, workdir, trainer_for, self._rng, clock, signer)
        self._worker = worker
        if worker is not None:
            worker.begin(self._tasks)

    @property
    def busy(self) -> bool:
        """Whether it works at something, or delivers it."""
        return self._tasks.held is not None and self._tasks.held.busy

    async def run(self) -> None:
        """Serve until cancelled; raises LinkRefused if the coordinator does not want this node. Runs once."""
        self._capabilities = offered(await asyncio.to_thread(self._machine.capabilities), self._policy)
        self._summary = await asyncio.to_thread(_summary, self._data)
        delays = reconnects(self._rng)
        try:
            while True:
                busy = False
                try:
                    await self._session()
                except LinkLost as lost:
                    log.info("node %s: no connection, trying again: %s", self._name, lost)
                    busy = isinstance(lost, LinkBusy)
                if self._tasks.connected.is_set():
                    self._tasks.connected.clear()
                    delays = reconnects(self._rng)
                await asyncio.sleep(turned_away(self._rng) if busy else next(delays))
        finally:
            self._tasks.close()
            if self._worker is not None:
                self._worker.close()

    # -- one connection ----------------------------------------------------------------------------------

    async def _session(self) -> None:
        """From registering to losing the connection, which raises LinkLost."""
        messages = await self._link.connect(self._registration())
        try:
            async with asyncio.TaskGroup() as background:
                async for message in messages:
                    if isinstance(message, Registered):
                        self._on_registered(message)
                        background.create_task(self._send_heartbeats(message.heartbeat))
                        background.create_task(self._send_progress())
                    else:
                        await self._obey(message)
                raise LinkLost("the coordinator closed the connection")
        except BaseExceptionGroup as failed:  # the first failure ended the session, the others followed from it
            with suppress(asyncio.CancelledError):  # a group that ends by an error may leave its own
                await asyncio.sleep(0)
            task = asyncio.current_task()
            if task is None or task.cancelling():  # one from outside, which the group took while it ended
                raise asyncio.CancelledError from None
            raise failed.exceptions[0] from None

    def _registration(self) -> Registration:
        return Registration(
            protocol=PROTOCOL,
            node=self._name,
            token=self._token,
            capabilities=self._capabilities,
            data=self._summary,
            terms=terms(self._policy, self._now(), _on_battery(self._machine.load())),
            codecs=tuple(codecs),
            offer=self._worker.offer if self._worker is not None else None,
            key=self._key,
        )

    def _on_registered(self, welcome: Registered) -> None:
        self._tasks.progress_every = welcome.progress
        self._tasks.connected.set()
        self._on_connected()
        log.info("node %s: connected to a coordinator of version %s", self._name, welcome.version or "unknown")

    async def _send_heartbeats(self, every: float) -> None:
        while True:
            load = self._machine.load()
            reason = closed(self._policy, self._now(), _on_battery(load))
            if reason is not None:
                await self._end_shift(reason)
            opened = reason is None
            await self._link.send(Heartbeat(cpu=load.cpu, memory=load.memory, battery=load.battery, open=opened))
            await asyncio.sleep(every)

    async def _end_shift(self, reason: str) -> None:
        """The owner wants the machine back in the middle of a task."""
        held = self._tasks.held
        if held is not None and held.outcome is None:
            self._tasks.release(reason)
            await self._tasks.say(failure(held.start, reason))

    async def _send_progress(self) -> None:
        while True:
            await self._link.send(await self._tasks.next_progress())

    # -- what the coordinator says -----------------------------------------------------------------------

    async def _obey(self, message: CoordinatorMessage) -> None:
        held = self._tasks.held
        match message:
            case Start():
                await self._on_start(message)
            case Verdict():
                await self._on_verdict(message)
            case Halt(reason=reason):
                if held is not None and held.is_for(message):
                    self._tasks.release(reason)
            case GlobalWeights(job=job, round=round):
                if held is not None and held.start.job == job and held.start.round <= round:
                    self._tasks.release(f"round {round} is closed")
            case Describe():
                await self._describe(message)
            case Compute() | Show() | Over() | Measure():
                await self._on_market(message)
            case Refusal(detail=detail, fatal=True):
                raise LinkRefused(detail)
            case Refusal(code=code, detail=detail):
                log.warning("node %s: the coordinator refused a message: %s: %s", self._name, code, detail)
            case Registered() | Assign() | Dismiss():  # a peer's link keeps those of sessions to itself
                pass
            case _:
                assert_never(message)

    async def _on_market(self, message: Compute | Show | Over | Measure) -> None:
        reason = self._closed() if self._worker else "is no worker of the compute market"
        if self._worker is not None and (not isinstance(message, Compute) or reason is None):
            self._worker.obey(message)
        elif isinstance(message, Compute):
            assert reason is not None
            await self._tasks.say(Declined(job=message.job, attempt=message.attempt, reason=reason))

    async def _describe(self, asked: Describe) -> None:
        """Tell statistics, as far as the owner allows: always the same, so that asking again tells nothing new."""
        policy, data = self._policy, self._data
        least = policy.min_rows
        if (reason := tells(policy, asked.nodes, self._now())) is not None:
            log.warning("node %s: statistics refused: %s", self._name, reason)
        elif len(data.train) < least:
            reason = f"holds fewer than {least} rows"
        if reason is not None:
            await self._tasks.say(Described(id=asked.id, reason=reason))
            return
        if self._statistics is None:
            told_of = data.train, data.missing, data.schema, least
            self._statistics = await asyncio.to_thread(statistics_of, *told_of, filled=data.filled)
        first, end = asked.first, asked.first + asked.columns
        told = replace(self._statistics, columns=self._statistics.columns[first:end])
        log.info("node %s: told statistics of columns %d to %d", self._name, first, end - 1)
        await self._tasks.say(Described(id=asked.id, least=least, statistics=told))

    async def _on_start(self, start: Start) -> None:
        held, tasks = self._tasks.held, self._tasks
        if held is not None and held.key == key_of(start):
            tasks.hand_in_again()
            return
        if held is not None and held.busy and held.start.job != start.job:
            await tasks.say(failure(held.start, f"given up for job {start.job} round {start.round}"))
        outcome = tasks.outcome_for(start)
        tasks.release(f"job {start.job} round {start.round} comes instead")
        if reason := self._closed() or allows(self._policy, start, self._now()):
            log.warning("job %s round %d node %s: refused: %s", start.job, start.round, self._name, reason)
            await tasks.say(failure(start, reason))
            return
        log.info("job %s round %d node %s: %s", start.job, start.round, self._name, start.task)
        tasks.take(start, start.training.batch_size or batch_size_for(self._capabilities.memory), outcome)

    def _closed(self) -> str | None:
        return closed(self._policy, self._now(), _on_battery(self._machine.load()))

    async def _on_verdict(self, verdict: Verdict) -> None:
        job, round, held = verdict.job, verdict.round, self._tasks.held
        if not verdict.resend:
            self._tasks.settled(verdict)
        if verdict.accepted:
            log.info("job %s round %d node %s: counted", job, round, self._name)
        elif not verdict.resend:
            log.warning("job %s round %d node %s: not counted: %s", job, round, self._name, verdict.reason)
        elif held is not None and held.is_for(verdict):
            log.info("job %s round %d node %s: handing in again: %s", job, round, self._name, verdict.reason)
            self._tasks.hand_in_again()
        else:
            reason = "asked to hand in again an update that is not kept here any more"
            await self._tasks.say(Failure(job=job, round=round, attempt=verdict.attempt, reason=reason))


def _on_battery(load: Load) -> float | None:
    """The charge that counts: of a machine that lives on it."""
    return None if load.plugged else load.battery


def _summary(data: Data) -> DataSummary:
    return DataSummary(data.name, data.schema, len(data.train), len(data.held_out), data.digest(), data.source)
