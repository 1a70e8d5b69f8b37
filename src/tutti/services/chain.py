"""A member's part in agreement: time, disk and messages around the pure core in tutti.ring.consensus."""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from random import Random
from typing import TypeAlias

from tutti.core.errors import StorageError, TuttiError
from tutti.ports.ring import ChainStore, Voices
from tutti.ring import consensus
from tutti.ring.consensus import (
    AnyMessage,
    Append,
    Follow,
    Following,
    Found,
    Lead,
    Leading,
    Propose,
    Received,
    Records,
    Reform,
    Replica,
    Seek,
    Send,
    Tick,
    Verified,
    Verify,
    Vote,
)
from tutti.ring.record import LARGEST, Record, Seat, after
from tutti.services.finish import to_the_end

log = logging.getLogger(__name__)

TICK = 0.1
UNHEARD = 3.0
"""Seconds without a leader after which a member asks others for records: it may be off the roster by now."""

OVERDUE = 15.0
"""Seconds after which a record should have its votes: more than a leader takes to find out that it cannot get them."""

IDLE = 10.0
"""Seconds after which a member to whom there is nothing to say has no queue any more."""

WAITING = 64
"""Messages that may wait for one member; more are lost, which the protocol bears."""

Reader: TypeAlias = Callable[[Sequence[Record], bool], Callable[[], None]]
"""Reads records before they are saved, and returns what to do once they are; raises BadRecord, having changed nothing.

With True they are a whole chain, in place of the one before.
"""


class BadRecord(TuttiError):
    """What a record says cannot be: its body is damaged, or of another version, or contradicts the records before."""


class LostLead(StorageError):
    """Another member leads, or a majority is not there: what was to be recorded was not, as far as is known here."""


class ChainMember:
    """Keeps a chain with the other members.

    Args:
        verify: Looks at a record before this member votes for it, having been asked to for so many seconds: why it is
            wrong, empty if it is right, None if that cannot be found out now.
        roster: Who the members are now, this one included.
        clock: Seconds, of a clock that does not go back.
    """

    def __init__(
        self,
        me: Seat,
        store: ChainStore,
        voices: Voices,
        *,
        verify: Callable[[Record, float], Awaitable[str | None]],
        roster: Callable[[], tuple[Seat, ...]],
        clock: Callable[[], float],
    ) -> None:
        self.seat, self.me = me, me.address
        self.read: Reader = lambda records, anew: lambda: None
        self._store, self._voices, self._verify, self._roster, self._clock = store, voices, verify, roster, clock
        self.replica = Replica(self.me)
        self.leading = False
        self.term = 0
        """How often this member began to lead."""
        self._unsettled: float | None = None
        self._turn = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._rng = Random(self.me)  # noqa: S311 - chooses whom to ask, guards nothing
        self._queues: defaultdict[str, asyncio.Queue[AnyMessage]] = defaultdict(lambda: asyncio.Queue(WAITING))
        self._tasks: asyncio.TaskGroup | None = None
        self._loaded = False

    # -- life ----------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Read what is on disk. Raises StorageError."""
        records, durable = await asyncio.to_thread(self._store.load)
        self.replica = consensus.restored(self.seat, records, durable, self._clock())
        try:
            self.read(records, True)()
        except BadRecord as error:
            raise StorageError(f"{error}; remove the state directory, and the member joins anew") from None
        self._loaded = True

    def let_go(self) -> None:
        """Forget a chain that nobody has used, before `run`: there is a ring to join.

        A process that went on with it would seat those whom it meets while they seat it, and then there are two rings.
        """
        if self.records and not self.origin:
            self.replica = consensus.restored(self.seat, (), consensus.NOTHING, self._clock())
            self.read((), True)()

    async def run(self, *, founds: bool = False) -> None:
        """Take part until cancelled. `founds`: begin a chain, if there is none on disk. Raises StorageError."""
        if not self._loaded:
            await self.load()
        async with asyncio.TaskGroup() as self._tasks:
            if founds:
                await self.tell(Found(self.seat))
            while True:
                await self.tell(Tick())
                await self._catch_up()
                await asyncio.sleep(TICK)

    async def _catch_up(self) -> None:
        """Who hears of no leader, having no seat or an old one, asks somebody now and then."""
        tip = self.replica.tip
        others = [seat.address for seat in self._roster() if seat.address != self.me]
        unheard = tip is None or self.me not in tip.addresses or self._clock() - self.leader_heard_at > UNHEARD
        if others and unheard and self._rng.random() < TICK * 4:
            await self.tell(Seek(self._rng.choice(others)))

    async def tell(self, event: consensus.Event) -> None:
        """Carry out an event: first the disk, then everything else. All of it, though the caller be cancelled.

        Raises BadRecord if a record that is chosen cannot be read, and StorageError: nothing has happened then.
        """
        await to_the_end(self._tell(event))

    async def _tell(self, event: consensus.Event) -> None:
        async with self._turn:
            before = self.replica
            after, wishes = consensus.handle(before, event, self._clock())
            records = [record for wish in wishes if isinstance(wish, Append) for record in wish.records]
            take_over = self._reading(before, after, records) if records else None
            if records or after.durable != before.durable:
                await asyncio.to_thread(self._store.save, records, after.durable)
            self.replica = after
            unsettled = after.verifying is not None or after.durable.vote is not None
            if records or not unsettled:
                self._unsettled = None
            if unsettled and self._unsettled is None:
                self._unsettled = self._clock()
            if take_over is not None:
                take_over()
            for wish in wishes:
                self._carry_out(wish)
        if after.role is not before.role or records:
            async with self._changed:
                self._changed.notify_all()

    def _reading(self, before: Replica, after: Replica, records: Sequence[Record]) -> Callable[[], None]:
        """Raises BadRecord."""
        if after.chain[: len(before.chain)] == before.chain:
            return self.read(records, False)
        log.warning("the chain from record %d on gives way to another", records[0].height)
        return self.read(after.chain, True)

    def _carry_out(self, wish: consensus.Instruction) -> None:
        match wish:
            case Send(to, Records()) if not self._knows(to):
                log.debug("not sending records to %s: it is not known to be of the ring", to)
            case Send(to, message):
                self._say(to, message)
            case Verify(vote):
                self._spawn(self._look_at(vote))
            case Lead():
                log.info("leading from record %d on", self.height)
                self.leading, self.term = True, self.term + 1
            case Follow(reason):
                log.warning("not leading any more: %s", reason)
                self.leading = False

    async def _look_at(self, vote: Vote) -> None:
        """Until it is known whether the record is right, or another one came first."""
        began = self._clock()
        while self._looks_at(vote.record):
            fault = await self._verify(vote.record, self._clock() - began)
            if fault is not None:
                if fault:
                    log.error("not voting for record %d of %s: %s", vote.record.height, vote.record.leader, fault)
                await self.tell(Verified(vote, fault))
                return
            await asyncio.sleep(TICK)

    def _looks_at(self, record: Record) -> bool:
        looked_at = self.replica.verifying
        return looked_at is not None and looked_at.record == record

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        assert self._tasks is not None
        self._tasks.create_task(work)

    def _say(self, to: str, message: AnyMessage) -> None:
        new = to not in self._queues
        with contextlib.suppress(asyncio.QueueFull):
            self._queues[to].put_nowait(message)
        if new:
            self._spawn(self._deliver(to))

    def _knows(self, address: str) -> bool:
        """Whether it is a member, or may be one soon: who joins is in the ring first, and asks for the chain again."""
        tip = self.replica.tip
        return tip is not None and (address in tip.addresses or any(seat.address == address for seat in self._roster()))

    async def _deliver(self, to: str) -> None:
        queue = self._queues[to]
        while True:
            try:
                async with asyncio.timeout(IDLE):
                    message = await queue.get()
            except TimeoutError:
                if queue.empty():
                    del self._queues[to]
                    return
                continue
            try:
                await self._voices.agree(to, message)
            except TuttiError as error:  # it is lost, as messages may be
                log.error("cannot send %s a message of agreement: %s", to, error)

    # -- what others say and ask ---------------------------------------------------------------------------

    async def heard(self, message: AnyMessage) -> None:
        await self.tell(Received(message))

    async def propose(self, body: bytes) -> None:
        """Make this the next record; raises LostLead if that did not happen, as far as is known here."""
        if len(body) > LARGEST:
            raise StorageError(f"a record may have {LARGEST} bytes, this one has {len(body)}")
        tip = self.replica.tip
        if not self.leading or tip is None:
            raise LostLead("this member does not lead")
        roster = self._roster()
        wanted = after(tip, self.me, roster, body)
        await self.tell(Propose(roster, body))
        async with self._changed:
            await self._changed.wait_for(lambda: self.height >= wanted.height or not self._proposing(wanted))
        if self.height < wanted.height or self.records[wanted.height].digest != wanted.digest:
            raise LostLead(f"record {wanted.height} was not agreed on as this member proposed it")

    def _proposing(self, record: Record) -> bool:
        role = self.replica.role
        return isinstance(role, Leading) and role.proposal is not None and role.proposal.digest == record.digest

    async def reform(self) -> None:
        await self.tell(Reform(self._roster()))

    async def until(self, condition: Callable[["ChainMember"], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: condition(self))

    @property
    def records(self) -> tuple[Record, ...]:
        return self.replica.chain

    @property
    def origin(self) -> str:
        """Digest of the first record; empty while nobody has used the chain, which gives way to any other then."""
        return self.records[0].digest if self.height > 0 else ""

    @property
    def height(self) -> int:
        return len(self.records) - 1

    @property
    def leader(self) -> str:
        """Who leads, as far as is known; empty if nobody does."""
        return self.replica.leader

    @property
    def fault(self) -> str:
        """Why nobody leads here, though somebody may be named; empty if all is well."""
        if not self.leader:
            return "nobody leads: no majority answers"
        if (silent := self._clock() - self.leader_heard_at) > UNHEARD:
            return f"{self.leader} was not heard for {silent:.0f} s"
        if self._unsettled is not None and (waits := self._clock() - self._unsettled) > OVERDUE:
            return f"{self.leader}, but record {self.height + 1} has waited for votes for {waits:.0f} s"
        return ""

    @property
    def leader_heard_at(self) -> float:
        """When the leader was last heard, on this member's clock."""
        role = self.replica.role
        return self._clock() if isinstance(role, Leading) else role.since if isinstance(role, Following) else 0.0
