"""The market's floor: hands jobs to workers, hears them, has results judged; the desk keeps the books, the till pays.

Everything here follows from the events and may be done again: after a crash every open job is looked at once, and
goes on. Who gets work is in `assigning`, until when anybody is waited for in `leases`, and what becomes of a result in
`checking`.
"""

import asyncio
import heapq
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from random import SystemRandom

from tutti.core.errors import Conflict, NotFound, TuttiError
from tutti.core.workload import LARGEST_RESULT
from tutti.domain.events import Digest, NodeId
from tutti.domain.market import events as e
from tutti.domain.market import jobs as j
from tutti.domain.market import sealing
from tutti.domain.market.jobs import Attempt, ComputeJob
from tutti.ports import Arrived, Fabric, FabricEvent, Left, Said
from tutti.ports.apart import Apart
from tutti.services.market.assigning import RETRY_SECONDS, Assigning, Present
from tutti.services.market.checking import Checking
from tutti.services.market.desk import MarketDesk
from tutti.services.market.leases import Leases
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
    Show,
)

log = logging.getLogger(__name__)

UPLOADS_PER_ATTEMPT = 64
WAITING_OF_ONE = 8
"""Messages of one worker that wait; an honest one has one or two."""

AT_ONCE = 64
"""Jobs that are looked at, and messages that are dealt with, at the same time: they share what they write."""


class MarketFloor:
    """Errands of a coordinator. `apart` is where results are judged; `drained` tells whether a node is to have no more
    work; `chance` cannot be foreseen."""

    def __init__(
        self,
        desk: MarketDesk,
        fabric: Fabric,
        apart: Apart,
        *,
        drained: Callable[[NodeId], bool] = lambda _: False,
        chance: Callable[[], float] | None = None,
    ) -> None:
        self.desk, self.market = desk, desk.market
        self.trouble: dict[str, str] = {}
        """What keeps a job from going on, such as a full disk."""
        self.present: dict[NodeId, Present] = {}
        self._fabric, self._apart = fabric, apart
        self.chance = chance or SystemRandom().random
        self.leases = Leases(desk, self.present)
        self.assigning = Assigning(desk, self.leases, self.present, drained, lambda: self.chance())
        self._checking = Checking(desk, apart, lambda: self.chance())
        self._uploads: Counter[tuple[str, int]] = Counter()
        self._till = Till(desk, self._tell)
        self.measuring = Measuring(desk, self._say, apart)
        self._news: asyncio.Queue[tuple[NodeId, object, bytes]] = asyncio.Queue()
        self._waiting: Counter[NodeId] = Counter()
        self._poked: asyncio.Queue[str] = asyncio.Queue()
        self._poked_now: set[str] = set()
        self._looked_at: set[str] = set()
        self._alarms: list[tuple[float, str]] = []
        self._alarm_of: dict[str, float] = {}
        self._sooner = asyncio.Event()
        desk.changed = self._changed

    # -- errands of the coordinator ------------------------------------------------------------------------

    def on(self, event: FabricEvent) -> None:
        match event:
            case Arrived(node=node, registration=registration):
                self.leases.came(node)
                self.present[node] = Present(registration, registration.terms.open)
                self._say_again(node)
                if registration.offer is not None:
                    self._hear(node, registration.offer, b"")
                self.assigning.wake.set()
            case Left(node=node):
                self.measuring.forget(node)
                if self.present.pop(node, None) is not None:
                    self.leases.left(node)
                    for job, _ in self.market.owes.get(node, ()):
                        self.poke(job)
            case Said(node=node, message=Heartbeat(open=opened)) if node in self.present:
                present = self.present[node]
                present.open = opened
                if opened and present.registration.offer is not None:  # it may have been drained until now
                    self.assigning.wake.set()
            case Said(node=node, message=Computing(job=job, attempt=attempt)):
                self.leases.touch(node, job, attempt)
            case Said(node=node, message=Committed() | Computed() | Declined() | Measured() as message, blob=blob):
                if isinstance(message, Measured):
                    self.measuring.stop_clock(node, message)
                self._hear(node, message, blob)
            case _:
                pass

    def may_read(self, node: NodeId, digest: Digest) -> bool:
        return any(self.market.jobs[job].submitted.data == digest for job, _ in self.market.owes.get(node, ()))

    def update_limit(self, node: NodeId) -> int:
        for each in self.market.owes.get(node, ()):
            shows = each[1] in sealing.to_reveal(self.market.jobs[each[0]], self.desk.rules)
            if shows and self._uploads[each] < UPLOADS_PER_ATTEMPT:
                self._uploads[each] += 1
                return LARGEST_RESULT
        return 0

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
                group.create_task(self.assigning.run())
                group.create_task(self._ring_alarms())
                group.create_task(self.measuring.again(self.assigning.free))
        finally:
            await self._apart.close()

    async def _learn_stakes(self) -> None:
        """Ask the ledger, which may be a chain that does not answer yet."""
        said = ""
        while True:
            try:
                return await self.desk.refresh_stakes()
            except TuttiError as error:
                if str(error) != said:
                    log.error("the stakes of workers are not known yet: %s", said := str(error))
                await asyncio.sleep(RETRY_SECONDS)

    def poke(self, job_id: str = "") -> None:
        """Look at a job soon; without one, at whether somebody can be given work."""
        self.assigning.wake.set()
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
            self.assigning.wake.set()
            return
        if job.attempts and not job.final:
            newest = job.attempts[-1]
            if newest.live and not newest.commitment and self.leases.begin(job_id, newest.number):
                self.desk.reserved.pop(newest.worker, None)  # it is locked now
                self._say(newest.worker, _start(job, newest))
        self.poke(job_id)

    def _say(self, node: NodeId, message: CoordinatorMessage) -> None:
        self._fabric.send(node, message)

    def _say_again(self, node: NodeId) -> None:
        """A worker has come back: it may not know what it was given. What it is at comes last: it drops no other."""
        busy = self.market.busy.get(node)
        for each in sorted(self.market.owes.get(node, ()), key=lambda owed: (owed == busy, owed)):
            job, attempt = self.market.jobs[each[0]], self.market.jobs[each[0]].attempt(each[1])
            self.leases.touch(node, *each)
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
                self.leases.touch(node, job, attempt)
                await self.desk.do(job, j.Commit(worker=node, attempt=attempt, commitment=commitment))
                self._ask_to_show(self.desk.job(job), again=node)
            case Computed():
                await self._on_computed(node, message, blob)
            case Declined(job=job, attempt=attempt, reason=reason):
                if (job, attempt) in self.market.owes.get(node, ()):
                    await self.desk.do(job, j.Release(attempt=attempt, reason=f"given back: {reason}"))
            case Measured():
                await self.measuring.hear(node, message)

    async def _on_computed(self, node: NodeId, message: Computed, blob: bytes) -> None:
        job = self.desk.job(message.job)
        self.leases.touch(node, message.job, message.attempt)
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
            self._wake_at(self.leases.due(job), job.id)
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
        if self.desk.clock() >= self.leases.closes(job) and await self.desk.do(job.id, j.Seal()):
            return True
        if theirs := sealing.copied(job):
            await asyncio.gather(*(self._checking.expose(job, *each) for each in theirs.items()))
            return True
        if numbers := sealing.to_judge(job, self.desk.rules):
            first = {job.attempt(number).result: number for number in reversed(numbers)}  # equal ones share a verdict
            await asyncio.gather(*(self._checking.judge(job, number) for number in first.values()))
            return True
        self._ask_to_show(job)
        return bool(await self.desk.do(job.id, j.Conclude()))

    async def _release(self, job: ComputeJob) -> bool:
        """End attempts that nothing is heard of, and those without a result when the job's time is up."""
        released = False
        for attempt in job.live:
            until, reason, ours = self.leases.expiry(job, attempt)
            if self.desk.clock() < until:
                continue
            seen = sealing.phase(job, attempt, self.desk.rules)
            if await self.desk.do(job.id, j.Release(attempt=attempt.number, reason=reason, ours=ours, phase=seen)):
                released = True
                self._tell(self.desk.job(job.id), self.desk.job(job.id).attempt(attempt.number))
        return released

    def _ask_to_show(self, job: ComputeJob, again: NodeId = "") -> None:
        """Ask those who have not been asked yet, and whoever has to be asked again."""
        for number in sealing.to_reveal(job, self.desk.rules):
            worker = job.attempt(number).worker
            if self.leases.ask(job.id, number) or worker == again:
                self._say(worker, Show(job=job.id, attempt=number))

    async def _end(self, job: ComputeJob) -> bool:
        """Pay, or give back, once nobody can dispute the result any more."""
        if job.verified is not None and self.desk.clock() < job.verified_at + job.submitted.window:
            return False
        await self._till.settle(job)
        for attempt in job.live:
            self._tell(job, attempt)
        self.leases.forget(job)
        for attempt in job.attempts:
            self._uploads.pop((job.id, attempt.number), None)
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
