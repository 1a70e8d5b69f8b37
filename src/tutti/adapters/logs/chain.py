"""The event log of a ring: what its members have agreed on, and, at the leader, what waits to be proposed.

An event that ends something (a round, a job) is on a majority of disks before `append` returns. Those before it, such
as each update of the open round, wait for it in memory: they are forgotten if this member loses the lead, and the next
leader gathers them again.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec

from tutti.adapters.logs.codec import encode
from tutti.adapters.logs.tail import Tail, conflict
from tutti.core.errors import StorageError
from tutti.domain import events as e
from tutti.domain import jobs
from tutti.domain.events import AnyEvent, Digest
from tutti.domain.jobs import Job
from tutti.ports.log import Recorded
from tutti.ring.record import Record
from tutti.services.chain import ChainMember
from tutti.services.keeping import kept_blobs

KEPT = 1000
CLOSED = "the event log is closed"
Body = tuple[tuple[str, AnyEvent], ...]

DECISIVE = (
    e.JobSubmitted,
    e.JobInitialised,
    e.RoundClosed,
    e.RoundFailed,
    e.JobPaused,
    e.JobResumed,
    e.JobStopped,
    e.JobCompleted,
    e.JobFailed,
    e.ContributionsScored,
    e.RewardsSettled,
)


def events_of(record: Record) -> Body:
    """Raises StorageError for a body that is none."""
    try:
        return msgspec.msgpack.decode(record.body, type=Body) if record.body else ()
    except msgspec.MsgspecError as error:
        raise StorageError(f"record {record.height} of {record.leader} is damaged: {error}") from None


class Agreed:
    """What a chain says: events, numbered as in any log, and the jobs as they stand.

    `forgotten` is told of blobs that no job needs any more.
    """

    def __init__(self, chain: ChainMember) -> None:
        self.recorded: list[Recorded] = []
        self.versions: Counter[str] = Counter()
        self.jobs: dict[str, Job] = {}
        self.forgotten: Callable[[set[Digest]], None] = lambda digests: None
        chain.appended.append(self._on_records)

    def _on_records(self, records: Sequence[Record], anew: bool) -> None:
        if anew:
            self.recorded.clear()
            self.versions.clear()
            self.jobs.clear()
        unneeded: set[Digest] = set()
        for stream, event in (pair for record in records for pair in events_of(record)):
            self.versions[stream] += 1
            self.recorded.append(Recorded(len(self.recorded) + 1, stream, self.versions[stream], event))
            unneeded |= self._evolve(stream, event)
        self.forgotten(unneeded - self.needed())

    def _evolve(self, stream: str, event: AnyEvent) -> set[Digest]:
        """Returns the blobs that its job does not need any more."""
        if isinstance(event, e.JobSubmitted):
            self.jobs[event.job] = jobs.begin(event)
        elif stream.startswith("job:"):
            before = self.jobs[stream.removeprefix("job:")]
            self.jobs[before.id] = job = jobs.evolve(before, event)  # type: ignore[arg-type]  # of a job's stream
            return kept_blobs(before) - kept_blobs(job)
        return set()

    def needed(self) -> set[Digest]:
        """Blobs that some job needs."""
        return {digest for job in self.jobs.values() for digest in kept_blobs(job)}


class ChainLog:
    """An EventLog for one leadership, or, if nothing is appended, for a follower."""

    def __init__(self, chain: ChainMember, agreed: Agreed) -> None:
        self._chain, self._agreed = chain, agreed
        self._waiting: list[Recorded] = []
        self._lost: StorageError | None = None
        self._given_up = asyncio.Event()
        self._turn = asyncio.Lock()
        self._versions: Counter[str] = Counter(agreed.versions)
        self._offset = len(agreed.recorded)
        self._tail = Tail(KEPT)

    async def append(self, stream: str, version: int, events: Sequence[AnyEvent]) -> list[Recorded]:
        if self._lost is not None:
            raise self._lost
        if version != self._versions[stream]:
            raise conflict(stream, version, self._versions[stream])
        stored = [encode(event)[1] for event in events]
        recorded = [Recorded(self._offset + n, stream, version + n, event) for n, event in enumerate(stored, start=1)]
        self._offset += len(recorded)
        self._versions[stream] += len(recorded)
        self._waiting += recorded
        if any(isinstance(event, DECISIVE) for event in events):
            await self.flush(self._offset)
        self._tail.grow(recorded)
        return recorded

    async def flush(self, upto: int | None = None) -> None:
        """Agree on everything that waits, up to an offset at least; raises StorageError."""
        async with self._turn:
            if upto is not None and len(self._agreed.recorded) >= upto:
                return  # it went with somebody else's
            if self._lost is not None:
                raise self._lost
            body: Body = tuple((recorded.stream, recorded.event) for recorded in self._waiting)
            try:
                await self._propose(msgspec.msgpack.encode(body))
            except StorageError as error:
                self.give_up(error)
                raise
            del self._waiting[: len(body)]

    @property
    def busy(self) -> bool:
        """Whether a proposal is under way."""
        return self._turn.locked()

    def give_up(self, reason: StorageError) -> None:
        """This leadership is over: nothing more is recorded. The first reason counts."""
        self._lost = self._lost or reason
        self._given_up.set()

    async def _propose(self, body: bytes) -> None:
        """Until it is agreed on, or given up."""
        given_up = asyncio.ensure_future(self._given_up.wait())
        proposal = asyncio.ensure_future(self._chain.propose(body))
        try:
            await asyncio.wait((given_up, proposal), return_when=asyncio.FIRST_COMPLETED)
            if proposal.done():
                return proposal.result()
            assert self._lost is not None
            raise self._lost
        finally:
            given_up.cancel()
            proposal.cancel()

    async def read(self, after: int = 0, *, stream: str | None = None, limit: int = 1000) -> list[Recorded]:
        if self._tail.closed:
            raise StorageError(CLOSED)
        known = self._agreed.recorded
        found = [*known[after : after + limit if stream is None else None]]
        beyond = [recorded for recorded in self._waiting if recorded.offset > max(after, len(known))]
        return [r for r in (*found, *beyond) if stream is None or r.stream == stream][:limit]

    def follow(self, after: int) -> AsyncIterator[list[Recorded]]:
        return self._tail.follow(self, after)

    async def close(self) -> None:
        self.give_up(StorageError(CLOSED))
        self._tail.close()
