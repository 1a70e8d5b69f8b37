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
from tutti.core.errors import StorageError, UserError
from tutti.domain import events as e
from tutti.domain import jobs, signers
from tutti.domain.events import AnyEvent, Digest
from tutti.domain.jobs import Job
from tutti.domain.signers import Keys
from tutti.ports.log import Recorded
from tutti.ring.record import LARGEST, Record
from tutti.services.chain import BadRecord, ChainMember
from tutti.services.keeping import kept_blobs

KEPT = 1000
_OF_A_LIST = 5
"""Bytes that encoding adds to those of a list's members."""

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
    """Raises BadRecord for a body that is none."""
    try:
        return msgspec.msgpack.decode(record.body, type=Body) if record.body else ()
    except msgspec.MsgspecError as error:
        raise BadRecord(f"record {record.height} of {record.leader} is damaged: {error}") from None


class Agreed:
    """What a chain says: events, numbered as in any log, the jobs as they stand, and with which keys members sign.

    `forgotten` is told of blobs that no job needs any more.
    """

    def __init__(self, chain: ChainMember) -> None:
        self.recorded: list[Recorded] = []
        self.versions: Counter[str] = Counter()
        self.jobs: dict[str, Job] = {}
        self.keys: Keys = {}
        self.forgotten: Callable[[set[Digest]], None] = lambda digests: None
        chain.read = self._read

    def _read(self, records: Sequence[Record], anew: bool) -> Callable[[], None]:
        """Raises BadRecord."""
        known: dict[str, Job] = {} if anew else dict(self.jobs)
        keys: Keys = {} if anew else self.keys
        unneeded: set[Digest] = set()
        news: list[tuple[str, AnyEvent]] = []
        for record in records:
            try:
                for stream, event in events_of(record):
                    news.append((stream, event))
                    unneeded |= _evolve(known, stream, event)
                    keys = signers.after(keys, event)
            except (KeyError, AssertionError) as error:  # there is no such job, node or round
                said = f"{type(error).__name__}: {error}"
                raise BadRecord(f"record {record.height} of {record.leader} contradicts those before: {said}") from None

        def take_over() -> None:
            if anew:
                self.recorded.clear()
                self.versions.clear()
            for stream, event in news:
                self.versions[stream] += 1
                self.recorded.append(Recorded(len(self.recorded) + 1, stream, self.versions[stream], event))
            self.jobs, self.keys = known, keys
            self.forgotten(unneeded - self.needed())

        return take_over

    def needed(self) -> set[Digest]:
        """Blobs that some job needs."""
        return {digest for job in self.jobs.values() for digest in kept_blobs(job)}


def _evolve(known: dict[str, Job], stream: str, event: AnyEvent) -> set[Digest]:
    """With the event; returns the blobs that its job does not need any more."""
    if isinstance(event, e.JobSubmitted):
        known[event.job] = jobs.begin(event)
    elif stream.startswith("job:"):
        before = known[stream.removeprefix("job:")]
        known[before.id] = job = jobs.evolve(before, event)  # type: ignore[arg-type]  # of a job's stream
        return kept_blobs(before) - kept_blobs(job)
    return set()


class ChainLog:
    """An EventLog for one leadership, or, if nothing is appended, for a follower."""

    def __init__(self, chain: ChainMember, agreed: Agreed) -> None:
        self._chain, self._agreed = chain, agreed
        self._waiting: list[Recorded] = []
        self._size = 0
        self.lost: StorageError | None = None
        """Why nothing more is recorded; None while it is."""
        self._given_up = asyncio.Event()
        self._turn = asyncio.Lock()
        self._versions: Counter[str] = Counter(agreed.versions)
        self._offset = len(agreed.recorded)
        self._tail = Tail(KEPT)

    async def append(self, stream: str, version: int, events: Sequence[AnyEvent]) -> list[Recorded]:
        """Raises UserError for events that have no room in a record, as for a job with megabytes of settings."""
        stored = [encode(event)[1] for event in events]
        size = _OF_A_LIST + sum(len(msgspec.msgpack.encode((stream, event))) for event in stored)
        if size > LARGEST:
            raise UserError(f"what the members of a ring agree on at a time may have {LARGEST} bytes, this has {size}")
        if self._size + size > LARGEST:
            await self.flush()
        if self.lost is not None:
            raise self.lost
        if version != self._versions[stream]:
            raise conflict(stream, version, self._versions[stream])
        recorded = [Recorded(self._offset + n, stream, version + n, event) for n, event in enumerate(stored, start=1)]
        self._offset += len(recorded)
        self._versions[stream] += len(recorded)
        self._waiting += recorded
        self._size += size
        if any(isinstance(event, DECISIVE) for event in events):
            await self.flush(self._offset)
        self._tail.grow(recorded)
        return recorded

    async def flush(self, upto: int | None = None) -> None:
        """Agree on everything that waits, up to an offset at least; raises StorageError."""
        async with self._turn:
            if upto is not None and len(self._agreed.recorded) >= upto:
                return  # it went with somebody else's
            if self.lost is not None:
                raise self.lost
            body: Body = tuple((recorded.stream, recorded.event) for recorded in self._waiting)
            size = self._size
            try:
                await self._propose(msgspec.msgpack.encode(body))
            except StorageError as error:
                self.give_up(error)
                raise
            del self._waiting[: len(body)]
            self._size -= size

    @property
    def busy(self) -> bool:
        """Whether a proposal is under way."""
        return self._turn.locked()

    def give_up(self, reason: StorageError) -> None:
        """This leadership is over: nothing more is recorded. The first reason counts."""
        self.lost = self.lost or reason
        self._given_up.set()

    async def _propose(self, body: bytes) -> None:
        """Until it is agreed on, or given up."""
        given_up = asyncio.ensure_future(self._given_up.wait())
        proposal = asyncio.ensure_future(self._chain.propose(body))
        try:
            await asyncio.wait((given_up, proposal), return_when=asyncio.FIRST_COMPLETED)
            if proposal.done():
                return proposal.result()
            assert self.lost is not None
            raise self.lost
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
