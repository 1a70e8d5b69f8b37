"""The market's floor: hands jobs to workers, hears them, has results judged; the desk keeps the books, the till pays.

Everything here follows from the events and may be done again: after a crash every open job is looked at once, and
goes on. Leases are kept in memory; a worker gets a whole one from a coordinator that has just started.
"""

import asyncio
import heapq
import logging
import secrets
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from random import SystemRandom
from typing import TypeVar

from tutti.core.errors import Conflict, CorruptBlob, NotFound, TuttiError
from tutti.core.workload import LARGEST_RESULT
from tutti.domain.events import Digest, NodeId
from tutti.domain.market import events as e
from tutti.domain.market import jobs as j
from tutti.domain.market import sealing
from tutti.domain.market.assignment import Drawn, demand, draw
from tutti.domain.market.jobs import Attempt, ComputeJob
from tutti.domain.market.sealing import Phase
from tutti.ports import Arrived, Fabric, FabricEvent, Left, Said
from tutti.services.market.desk import MarketDesk
from tutti.services.market.judging import fault_of_the_job, judge
from tutti.services.market.measuring import Measuring
from tutti.services.market.till import Till
from tutti.wire.messages import (
    Committed,
    Compute,
    Computed,
    Computing,
    CoordinatorMessage,
    Declined,
    Heartbeat,
    Measured,
    Offer,
    Over,
    Registration,
    Show,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_SECONDS = 2.0
UPLOADS_PER_ATTEMPT = 64
WAITING_OF_ONE = 8
"""Messages of one worker that wait; an honest one has one or two."""

AT_ONCE = 64
"""Jobs that are looked at, and messages that are dealt with, at the same time: they share what they write."""

CHECKS_AT_ONCE = 2


@dataclass(slots=True)
class Present:
    """A connected worker. `lacks`: tokens for its stake, in words."""

    registration: Registration
    open: bool = True
    lacks: str = ""


class MarketFloor:
    """Errands of a coordinator. `drained` tells whether a node is to have no more work; `chance` cannot be foreseen."""

    def __init__(
        self,
        desk: MarketDesk,
        fabric: Fabric,
        *,
        drained: Callable[[NodeId], bool] = lambda _: False,
        chance: Callable[[], float] | None = None,
    ) -> None:
        self.desk, self.market = desk, desk.market
        self.trouble: dict[str, str] = {}
        """What keeps a job from going on, such as a full disk."""
        self.present: dict[NodeId, Present] = {}
        self._fabric, self._drained = fabric, drained
        self._chance = chance or SystemRandom().random
        self._started = desk.clock()
        self._left: dict[NodeId, float] = {}
        self._heard: dict[tuple[str, int], float] = {}
        self._asked: dict[tuple[str, int], float] = {}  # since when a result is waited for
        self._uploads: Counter[tuple[str, int]] = Counter()
        self._till = Till(desk, self._tell)
        self.measuring = Measuring(desk, self._say, self._in_thread)
        self._news: asyncio.Queue[tuple[NodeId, object, bytes]] = asyncio.Queue()
        self._waiting: Counter[NodeId] = Counter()
        self._poked: asyncio.Queue[str] = asyncio.Queue()
        self._poked_now: set[str] = set()
        self._looked_at: set[str] = set()
        self._alarms: list[tuple[float, str]] = []
        self._alarm_of: dict[str, float] = {}
        self._sooner = asyncio.Event()
        self._wake = asyncio.Event()
        self._checks = ThreadPoolExecutor(CHECKS_AT_ONCE, thread_name_prefix="checks")
        desk.changed = self._changed

    # -- errands of the coordinator ------------------------------------------------------------------------

    def on(self, event: FabricEvent) -> None:
        match event:
            case Arrived(node=node, registration=registration):
                self._left.pop(node, None)
                self.present[node] = Present(registration, registration.terms.open)
                self._say_again(node)
                if registration.offer is not None:
                    self._hear(node, registration.offer, b"")
                self._wake.set()
            case Left(node=node):
                self.measuring.forget(node)
                if self.present.pop(node, None) is not None:
                    self._left[node] = self.desk.clock()
                    if (busy := self.market.busy.get(node)) is not None:
                        self.poke(busy[0])
            case Said(node=node, message=Heartbeat(open=opened)) if node in self.present:
                present = self.present[node]
                present.open = opened
                if opened and present.registration.offer is not None:  # it may have been drained until now
                    self._wake.set()
            case Said(node=node, message=Computing(job=job, attempt=attempt)):
                if self.market.busy.get(node) == (job, attempt):
                    self._heard[job, attempt] = self.desk.clock()
            case Said(node=node, message=Committed() | Computed() | Declined() | Measured() as message, blob=blob):
                if isinstance(message, Measured):
                    self.measuring.stop_clock(node, message)
                self._hear(node, message, blob)
            case _:
                pass

    def may_read(self, node: NodeId, digest: Digest) -> bool:
        busy = self.market.busy.get(node)
        return busy is not None and self.market.jobs[busy[0]].submitted.data == digest

    def update_limit(self, node: NodeId) -> int:
        busy = self.market.busy.get(node)
        if busy is None or busy[1] not in sealing.to_reveal(self.market.jobs[busy[0]], self.desk.rules):
            return 0
        self._uploads[busy] += 1
        return LARGEST_RESULT if self._uploads[busy] <= UPLOADS_PER_ATTEMPT else 0

    # -- life ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled: drive every job that is not settled."""
        await self._learn_stakes()
        for job_id in self.market.open:
            self.poke(job_id)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(self._look_at_all())
                    group.create_task(self._deal_with_all())
                group.create_task(self._assign_all())
                group.create_task(self._ring_alarms())
                group.create_task(self.measuring.again(self._free))
        finally:
            self._checks.shutdown(wait=False, cancel_futures=True)

    async def _learn_stakes(self) -> None:
        """Ask the ledger, which may be a chain that does not answer yet."""
        while True:
            try:
                return await self.desk.refresh_stakes()
            except TuttiError as error:
                log.error("the stakes of workers are not known yet: %s", error)
                await asyncio.sleep(RETRY_SECONDS)

    def poke(self, job_id: str = "") -> None:
        """Look at a job soon; without one, at whether somebody can be given work."""
        self._wake.set()
        if job_id and job_id not in self._poked_now:
            self._poked_now.add(job_id)
            self._poked.put_nowait(job_id)

    def raise_stakes(self) -> None:
        """Somebody was given tokens: perhaps a worker, for its stake."""
        for node, present in self.present.items():
            if present.lacks and node in self.market.workers:
                self._hear(node, present.registration.offer, b"")

    def _changed(self, job_id: str) -> None:
        """After each event: the job is looked at, and whoever was assigned is told."""
        if (job := self.market.jobs.get(job_id)) is None:
            self._wake.set()
            return
        if job.attempts and not job.final:
            newest = job.attempts[-1]
            if newest.live and not newest.commitment and (job_id, newest.number) not in self._heard:
                self._heard[job_id, newest.number] = self.desk.clock()
                self.desk.reserved.pop(newest.worker, None)  # it is locked now
                self._say(newest.worker, _start(job, newest))
        self.poke(job_id)

    def _say(self, node: NodeId, message: CoordinatorMessage) -> None:
        self._fabric.send(node, message)

    def _say_again(self, node: NodeId) -> None:
        """A worker has come back: it may not know what it was given."""
        if (busy := self.market.busy.get(node)) is None:
            return
        job, attempt = self.market.jobs[busy[0]], self.market.jobs[busy[0]].attempt(busy[1])
        self._heard[busy] = self.desk.clock()
        self._say(node, _start(job, attempt))
        self.poke(job.id)

    # -- what workers say ----------------------------------------------------------------------------------

    def _hear(self, node: NodeId, message: object, blob: bytes) -> None:
        if self._waiting[node] < WAITING_OF_ONE:
            self._waiting[node] += 1
            self._news.put_nowait((node, message, blob))

    async def _deal_with_all(self) -> None:
        while True:
            node, message, blob = await self._news.get()
            try:
                await self._deal_with(node, message, blob)
            except TuttiError as error:
                log.warning("worker %s: %s: %s", node, type(message).__name__, error)
                if isinstance(message, Committed | Computed):
                    self._refuse(node, message, error)
            except Exception:  # whatever a worker says must not end this
                log.exception("worker %s: cannot deal with %s", node, type(message).__name__)
            finally:
                self._waiting[node] -= 1
                if not self._waiting[node]:
                    del self._waiting[node]

    def _refuse(self, node: NodeId, message: Committed | Computed, error: TuttiError) -> None:
        """What cannot be is over; what could not be recorded is asked for again, in a while."""
        if isinstance(error, Conflict | NotFound):
            self._say(node, Over(job=message.job, attempt=message.attempt, reason=str(error)[:500]))
        else:
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._say_again, node)

    async def _deal_with(self, node: NodeId, message: object, blob: bytes) -> None:
        match message:
            case Offer():
                await self._on_offer(node, message)
            case Committed(job=job, attempt=attempt, commitment=commitment):
                self._touch(node, job, attempt)
                await self.desk.do(job, j.Commit(worker=node, attempt=attempt, commitment=commitment))
                self._ask_to_show(self.desk.job(job), again=node)
            case Computed():
                await self._on_computed(node, message, blob)
            case Declined(job=job, attempt=attempt, reason=reason):
                if self.market.busy.get(node) == (job, attempt):
                    await self.desk.do(job, j.Release(attempt=attempt, reason=f"given back: {reason}"))
            case Measured():
                await self.measuring.hear(node, message)

    async def _on_computed(self, node: NodeId, message: Computed, blob: bytes) -> None:
        job = self.desk.job(message.job)
        self._touch(node, message.job, message.attempt)
        if blob:
            await self.desk.blobs.put(blob, digest=message.digest)
        else:
            try:
                await self.desk.blobs.read(message.digest)
            except NotFound:  # it was not stored after all: have it stored again
                self._ask_to_show(job, again=node)
                return
        command = j.Reveal(worker=node, attempt=message.attempt, result=message.digest, nonce=message.nonce)
        await self.desk.do(message.job, command)

    def _touch(self, node: NodeId, job: str, attempt: int) -> None:
        if self.market.busy.get(node) == (job, attempt):
            self._heard[job, attempt] = self.desk.clock()

    async def _on_offer(self, node: NodeId, offer: Offer) -> None:
        present = self.present.get(node)
        if present is None:
            return
        machine = present.registration.capabilities
        known = self.market.workers.get(node)
        registered = e.WorkerRegistered(
            at=0,
            worker=node,
            stake=offer.stake,
            owner=offer.owner,
            gpu=machine.gpus[0][:100] if machine.gpus else known.offer.gpu if known else "",
            claimed=known.offer.claimed if known else 0.0,
            price=offer.price,
            kinds=offer.kinds,
        )
        present.lacks = await self.desk.take_offer(registered)
        if present.lacks:
            log.warning("worker %s: %s", node, present.lacks)
        if node in self.present:
            self.measuring.begin(node, gpu=bool(machine.gpus))

    # -- assigning -----------------------------------------------------------------------------------------

    async def _assign_all(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                while await self.assign():
                    pass
            except TuttiError as error:
                log.error("cannot assign compute jobs: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
                self._wake.set()

    async def assign(self) -> int:
        """Give out what can be given out now, at most one slot of each job; returns how many."""
        if not self.market.coordinating:
            return 0
        free: list[NodeId] | None = None  # nobody looks through thousands of nodes while no job waits
        drawn, seen, hopeless = list[tuple[ComputeJob, int, Drawn]](), set[str](), set[object]()
        for job, slot in self.market.waiting():
            free = self._free() if free is None else free
            if not free:
                break
            if job.id in seen:
                continue
            seen.add(job.id)
            if (wanted := demand(job, slot, self.desk.rules, self._time_of(job))) in hopeless:
                continue
            found = draw(self.market, job, slot, free, self.desk.stakes, self._chance, self._time_of(job))
            if found is not None:
                free.remove(found.worker.name)
                self.desk.reserved[found.worker.name] = found.bond
                drawn.append((job, slot, found))
            else:
                hopeless.add(wanted)
        try:
            await asyncio.gather(*(self._assign(*each) for each in drawn))
        finally:
            for _, _, found in drawn:
                self.desk.reserved.pop(found.worker.name, None)
        return len(drawn)

    def _free(self) -> list[NodeId]:
        """Workers that are here and have nothing to do."""
        return [
            node
            for node, present in self.present.items()
            if present.open
            and present.registration.offer is not None
            and node in self.market.workers
            and node not in self.market.busy
            and node not in self.desk.reserved
            and not self._drained(node)
        ]

    async def _assign(self, job: ComputeJob, slot: int, drawn: Drawn) -> None:
        command = j.Assign(
            slot=slot,
            worker=drawn.worker.name,
            owner=drawn.worker.owner,
            bond=drawn.bond,
            candidates=drawn.candidates,
            share=round(drawn.share, 6),
            explored=drawn.explored,
        )
        with suppress(Conflict):  # the job has ended meanwhile
            await self.desk.do(job.id, command)

    # -- driving a job -------------------------------------------------------------------------------------

    async def _ring_alarms(self) -> None:
        """Look at jobs when something of theirs runs out."""
        while True:
            now = self.desk.clock()
            while self._alarms and self._alarms[0][0] <= now:
                at, job_id = heapq.heappop(self._alarms)
                if self._alarm_of.get(job_id) == at:
                    del self._alarm_of[job_id]
                    self.poke(job_id)
            self._sooner.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._alarms[0][0] - now if self._alarms else None):
                    await self._sooner.wait()

    def _wake_at(self, at: float, job_id: str) -> None:
        if at < self._alarm_of.get(job_id, float("inf")):
            self._alarm_of[job_id] = at
            heapq.heappush(self._alarms, (at, job_id))
            self._sooner.set()

    async def _look_at_all(self) -> None:
        while True:
            job_id = await self._poked.get()
            self._poked_now.discard(job_id)
            if job_id in self._looked_at:  # whoever looks at it will look again
                asyncio.get_running_loop().call_later(0.01, self.poke, job_id)
                continue
            self._looked_at.add(job_id)
            try:
                while await self._advance(self.market.jobs[job_id]):
                    pass
                self.trouble.pop(job_id, None)
                self._set_alarm(self.market.jobs[job_id])
            except Exception as error:  # trouble with one job keeps no other waiting
                known = isinstance(error, TuttiError | OSError)
                log.error("compute job %s waits: %s", job_id, error, exc_info=None if known else error)
                self.trouble[job_id] = str(error)
                self._wake_at(self.desk.clock() + RETRY_SECONDS, job_id)
            finally:
                self._looked_at.discard(job_id)

    def _set_alarm(self, job: ComputeJob) -> None:
        if not job.settled:
            soonest = min([j.due(job), *(self._expiry(job, a)[0] for a in job.live if not job.final)])
            self._wake_at(soonest, job.id)
        else:
            self._alarm_of.pop(job.id, None)

    async def _advance(self, job: ComputeJob) -> bool:
        """Do the next thing that is due; True if there may be more."""
        if job.settled:
            return False
        if not await self._till.fund(job):
            return bool(await self.desk.do(job.id, j.Conclude(reason="its reward could not be set aside")))
        if not job.funded:
            return bool(await self.desk.do(job.id, j.Fund()))
        if await self._till.secure(job):
            return True
        if job.final:
            return await self._end(job)
        if await self._release(job):
            return True
        if self.desk.clock() >= self._closes(job) and await self.desk.do(job.id, j.Seal()):
            return True
        if theirs := sealing.copied(job):
            await asyncio.gather(*(self._expose(job, *each) for each in theirs.items()))
            return True
        if numbers := sealing.to_judge(job, self.desk.rules):
            first = {job.attempt(number).result: number for number in reversed(numbers)}  # equal ones share a verdict
            await asyncio.gather(*(self._judge(job, number) for number in first.values()))
            return True
        self._ask_to_show(job)
        return bool(await self.desk.do(job.id, j.Conclude()))

    def _closes(self, job: ComputeJob) -> float:
        """When its time is up. That this coordinator was not there does not count against anybody."""
        return max(job.expires, self._started + self.desk.rules.lease)

    def _time_of(self, job: ComputeJob) -> float:
        """Now, by a clock on which a job's time is up when it expires."""
        return self.desk.clock() - (self._closes(job) - job.expires)

    async def _release(self, job: ComputeJob) -> bool:
        """End attempts that nothing is heard of, and those without a result when the job's time is up."""
        released = False
        for attempt in job.live:
            until, reason, ours = self._expiry(job, attempt)
            if self.desk.clock() < until:
                continue
            seen = sealing.phase(job, attempt, self.desk.rules)
            if await self.desk.do(job.id, j.Release(attempt=attempt.number, reason=reason, ours=ours, phase=seen)):
                released = True
                self._tell(self.desk.job(job.id), self.desk.job(job.id).attempt(attempt.number))
        return released

    def _expiry(self, job: ComputeJob, attempt: Attempt) -> tuple[float, str, bool]:
        """Until when to wait for an attempt, why not longer, and whether that is no fault of the worker.

        One that is sealed has nothing to do but wait.
        """
        rules, key = self.desk.rules, (job.id, attempt.number)
        phase, patience = sealing.phase(job, attempt, rules), job.patience(rules)
        if phase in (Phase.SEALED, Phase.SHOWN):
            return float("inf"), "", True
        asked = self._asked.get(key, self.desk.clock())
        began = asked if phase is Phase.ASKED else max(attempt.at, self._started)
        heard = max(began, self._heard.get(key, began))
        ends = [
            (heard + rules.lease, f"no sign of its work for {rules.lease:g} s", False),
            (began + patience, f"no result for {patience:g} s", False),
        ]
        if phase is Phase.WORKING:
            ends.append((self._closes(job), f"no result within {job.submitted.seconds:g} s", True))
        if attempt.worker not in self.present:
            left = max(began, self._left.get(attempt.worker, self._started))
            ends.append((left + rules.away, f"disconnected for {rules.away:g} s", False))
        return min(ends)

    def _ask_to_show(self, job: ComputeJob, again: NodeId = "") -> None:
        """Ask those who have not been asked yet, and whoever has to be asked again."""
        for number in sealing.to_reveal(job, self.desk.rules):
            worker, key = job.attempt(number).worker, (job.id, number)
            if key not in self._asked or worker == again:
                self._asked.setdefault(key, self.desk.clock())
                self._say(worker, Show(job=job.id, attempt=number))

    async def _expose(self, job: ComputeJob, number: int, original: int) -> None:
        reason = f"its commitment is a copy of that of {job.attempt(original).worker}, attempt {original}"
        await self.desk.do(job.id, j.Judge(attempt=number, holds=False, reason=reason))

    async def _judge(self, job: ComputeJob, number: int) -> None:
        attempt, submitted = job.attempt(number), job.submitted
        if not sealing.opened(job, attempt):
            reason = "the result is not the one that was committed to"
            await self.desk.do(job.id, j.Judge(attempt=number, holds=False, reason=reason))
            return
        if (twin := sealing.twin(job, attempt)) is not None:
            same = j.Judge(attempt=number, holds=bool(twin.holds), reason=twin.reason, replayed=twin.replayed)
            await self.desk.do(job.id, same)
            return
        try:
            data, result = await self.desk.blobs.read(submitted.data), await self.desk.blobs.read(attempt.result)
        except (NotFound, CorruptBlob) as error:
            await self.desk.do(job.id, j.Release(attempt=number, reason=f"lost here: {error}"[:500], ours=True))
            return
        seed = secrets.randbits(48)  # drawn now that the result cannot be changed any more
        replay = sealing.doubtful(job) or self._chance() < self.desk.rules.spot
        try:
            verdict = await self._in_thread(lambda: judge(submitted, data, result, seed, replay=replay))
            ours = "" if verdict.holds else await self._in_thread(lambda: fault_of_the_job(submitted, data, seed))
        except Exception as error:  # a mistake of ours, for which nobody pays
            log.exception("compute job %s: attempt %d cannot be checked", job.id, number)
            reason = f"cannot be checked here: {type(error).__name__}: {error}"
            await self.desk.do(job.id, j.Release(attempt=number, reason=reason, ours=True))
            return
        if ours:
            log.error("compute job %s: attempt %d: %s; what is made here: %s", job.id, number, verdict.reason, ours)
            await self.desk.do(job.id, j.Conclude(reason=f"an honest result does not pass its check either: {ours}"))
            return
        command = j.Judge(
            attempt=number,
            holds=verdict.holds,
            reason=verdict.reason,
            check_seed=seed,
            measures=dict(verdict.measures),
            replayed=replay,
        )
        await self.desk.do(job.id, command)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._checks, work)

    async def _end(self, job: ComputeJob) -> bool:
        """Pay, or give back, once nobody can dispute the result any more."""
        if job.verified is not None and self.desk.clock() < job.verified_at + job.submitted.window:
            return False
        await self._till.settle(job)
        for attempt in job.live:
            self._tell(job, attempt)
        for attempt in job.attempts:
            self._heard.pop((job.id, attempt.number), None)
            self._uploads.pop((job.id, attempt.number), None)
            self._asked.pop((job.id, attempt.number), None)
        return False

    def _tell(self, job: ComputeJob, attempt: Attempt) -> None:
        good = bool(attempt.holds) and job.verified is not None
        reason = attempt.reason or (job.failed if not good else "")
        paid = job.share(attempt.slot) if good else 0
        self._say(
            attempt.worker, Over(job=job.id, attempt=attempt.number, accepted=good, paid=paid, reason=reason[:500])
        )


def _start(job: ComputeJob, attempt: Attempt) -> Compute:
    s = job.submitted
    return Compute(job=job.id, attempt=attempt.number, kind=s.kind, data=s.data, seed=s.seed)
