"""Gives out the market's work: who is free is drawn for a slot, as `tutti.domain.market.assignment` has it."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from tutti.core.errors import Conflict, TuttiError
from tutti.domain.events import NodeId
from tutti.domain.market import jobs as j
from tutti.domain.market.assignment import Drawn, demand, draw, why_nobody
from tutti.domain.market.jobs import ComputeJob
from tutti.services.market.desk import MarketDesk
from tutti.services.market.leases import Leases
from tutti.wire.messages import Registration

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
REASONS_KEPT = 1000


@dataclass(slots=True)
class Present:
    """A connected worker. `lacks`: tokens for its stake, in words."""

    registration: Registration
    open: bool = True
    lacks: str = ""


class Assigning:
    """`drained` tells whether a node is to have no more work; `chance` cannot be foreseen."""

    def __init__(
        self,
        desk: MarketDesk,
        leases: Leases,
        present: Mapping[NodeId, Present],
        drained: Callable[[NodeId], bool],
        chance: Callable[[], float],
    ) -> None:
        self._desk, self._market, self._leases = desk, desk.market, leases
        self._present, self._drained, self._chance = present, drained, chance
        self.wake = asyncio.Event()
        """Set when somebody may be given work."""
        self._hopeless: dict[object, str] = {}  # why nobody takes what is so wanted, until something changes

    async def run(self) -> None:
        while True:
            await self.wake.wait()
            self.wake.clear()
            try:
                while await self.assign():
                    pass
            except TuttiError as error:
                log.error("cannot assign compute jobs: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
                self.wake.set()

    async def assign(self) -> int:
        """Give out what can be given out now, at most one slot of each job; returns how many."""
        self._hopeless.clear()
        if not self._market.coordinating:
            return 0
        free: list[NodeId] | None = None  # nobody looks through thousands of nodes while no job waits
        drawn, seen, hopeless = list[tuple[ComputeJob, int, Drawn]](), set[str](), set[object]()
        for job, slot in self._market.waiting():
            free = self.free() if free is None else free
            if not free:
                break
            if job.id in seen:
                continue
            seen.add(job.id)
            now = self._leases.time_of(job)
            if (wanted := demand(job, slot, self._desk.rules, now)) in hopeless:
                continue
            found = draw(self._market, job, slot, free, self._desk.stakes, self._chance, now)
            if found is not None:
                free.remove(found.worker.name)
                self._desk.reserved[found.worker.name] = found.bond
                drawn.append((job, slot, found))
            else:
                hopeless.add(wanted)
        try:
            await asyncio.gather(*(self._assign(*each) for each in drawn))
        finally:
            for _, _, found in drawn:
                self._desk.reserved.pop(found.worker.name, None)
        return len(drawn)

    def why_waiting(self, job: ComputeJob) -> str:
        """Why a job gets no worker that it wants, if no other work is what all are busy with. Equal jobs share it."""
        if not (slots := job.open_slots(self._desk.rules)):
            return ""
        if not self._market.coordinating:
            return "no work is given out until `tutti market start`"
        now = self._leases.time_of(job)
        wanted = demand(job, slots[0], self._desk.rules, now), len(self._present)
        if wanted not in self._hopeless:
            if len(self._hopeless) >= REASONS_KEPT:
                self._hopeless.clear()
            workers = [node for node in self._present if node in self._market.workers]
            self._hopeless[wanted] = why_nobody(self._market, job, slots[0], workers, self._desk.stakes, now)
        return self._hopeless[wanted]

    def free(self) -> list[NodeId]:
        """Workers that are here and have nothing to do."""
        return [
            node
            for node, present in self._present.items()
            if present.open
            and present.registration.offer is not None
            and node in self._market.workers
            and node not in self._market.busy
            and node not in self._desk.reserved
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
            await self._desk.do(job.id, command)
