"""A fabric without a centre: nodes are members of a ring, and connect to whoever leads it.

The messages are those of the hub (docs/protocol.md), each one a call: the node's go to the leader with `say`, the
leader's to the node with `hear`. A session is a number that the node chooses (`training_node.thrift`). It ends when a
call fails, when the node is silent or does not listen any more, or when another member leads; whoever ends it tells the
other side, and if that is lost, the next call does. Updates go to the whole committee before they are handed in.
"""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeAlias

from msgspec.structs import replace

from tutti.adapters.blobs.ring import HolderAway, RingBlobs
from tutti.adapters.thrift.client import UnknownCall, Unreachable
from tutti.adapters.thrift.idl import compute_node, training_node
from tutti.adapters.thrift.node import ThriftPeers, peer_at
from tutti.core.errors import Conflict, Forbidden, TuttiError
from tutti.domain.events import Digest, NodeId
from tutti.domain.signing import PublicKey
from tutti.ports import Arrived, FabricEvent, Left, LinkLost, LinkRefused, Said
from tutti.ports.blobs import Buffer
from tutti.ring.record import majority
from tutti.services.chain import ChainMember
from tutti.version import __version__
from tutti.wire.messages import (
    PROTOCOL,
    CoordinatorMessage,
    NodeMessage,
    Registered,
    Registration,
    decode_from_coordinator,
    decode_from_node,
    encode,
)

log = logging.getLogger(__name__)

HEARTBEAT = 0.5
SILENT = 4.0
"""Seconds without a word after which a session is over. A process that dies is noticed at once, by its sockets."""

SMALL = 1 << 18
"""Bytes of an update that is given to the whole committee; a larger one goes to a majority of it."""

OUTGOING, INCOMING = 256, 64
LEADERLESS = 10.0

REPLACED = 64
"""Newest sessions that are remembered because another process took their place."""

PROCESS = 24
"""Bits of a session's number below those that name its process: they count."""

_Inbox: TypeAlias = "asyncio.Queue[CoordinatorMessage | LinkLost | LinkRefused]"

FAILED = (Unreachable, UnknownCall, compute_node.Refused, training_node.NotNow)


def copies(size: int, committee: Sequence[str]) -> int:
    """How many of the committee are given an update of so many bytes: as many as it takes to vote, if it is large."""
    return len(committee) if size <= SMALL else majority(committee)


def node_of(address: str) -> NodeId:
    """The name of the node at an address, `host:port`."""
    return "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in address).strip("-._")[:64]


@dataclass(eq=False)
class _Session:
    node: NodeId
    address: str
    heard_at: float
    messages: "asyncio.Queue[CoordinatorMessage]" = field(default_factory=lambda: asyncio.Queue(OUTGOING))
    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(INCOMING))
    sender: "asyncio.Task[None] | None" = None


class RingFabric:
    """The leader's side: a Fabric for one leadership. `admit` registers a node, whose key it is given."""

    def __init__(self, peers: ThriftPeers, me: str, admit: Callable[[NodeId, PublicKey], Awaitable[None]]) -> None:
        self._peers, self._me, self._admit = peers, me, admit
        self._sessions: dict[int, _Session] = {}
        self._nodes: dict[NodeId, int] = {}
        self._replaced: deque[int] = deque(maxlen=REPLACED)
        self._events: asyncio.Queue[tuple[FabricEvent, _Session]] = asyncio.Queue()
        self._calls = _Calls()

    # -- the port ------------------------------------------------------------------------------------------

    async def events(self) -> AsyncIterator[FabricEvent]:
        while True:
            event, session = await self._events.get()
            if isinstance(event, Said):
                session.room.release()
            yield event

    def send(self, node: NodeId, message: CoordinatorMessage, blob: Buffer = b"") -> bool:
        session = self._sessions.get(self._nodes.get(node, -1))
        if session is None:
            return False
        try:
            session.messages.put_nowait(message)
        except asyncio.QueueFull:
            self.disconnect(node, f"does not read: {OUTGOING} messages wait for it")
            return False
        return True

    def disconnect(self, node: NodeId, reason: str) -> None:
        self._end(self._nodes.get(node, -1), reason)

    # -- what members call ---------------------------------------------------------------------------------

    async def attach(self, address: str, number: int, frame: bytes) -> None:
        """A member connects.

        Raises Forbidden for one that takes another's name or speaks another version, BadMessage, and LinkLost for a
        call that comes too late.
        """
        registration = decode_from_node(frame)
        if not isinstance(registration, Registration):
            raise Forbidden(f"expected a registration of protocol {PROTOCOL}")
        if registration.protocol != PROTOCOL:
            raise Forbidden(f"this ring speaks protocol {PROTOCOL} in sessions, the node {registration.protocol}")
        if registration.node != node_of(address):
            raise Forbidden(f"{address} is called {node_of(address)!r}, it says {registration.node!r}")
        try:
            await self._admit(registration.node, registration.key)
        except Conflict as error:  # it calls twice at once
            raise LinkLost(str(error)) from None
        self._make_way(registration.node, number)
        session = _Session(registration.node, address, asyncio.get_running_loop().time())
        self._sessions[number], self._nodes[session.node] = session, number
        session.messages.put_nowait(Registered(node=session.node, version=__version__, heartbeat=HEARTBEAT))
        session.sender = asyncio.create_task(self._deliver(number, session))
        self._events.put_nowait((Arrived(session.node, replace(registration, token="")), session))

    async def say(self, number: int, frame: bytes) -> None:
        """Raises LinkLost if there is no such session, LinkRefused if another process took its place, BadMessage."""
        session = self._session(number)
        session.heard_at = asyncio.get_running_loop().time()
        message = decode_from_node(frame)
        await session.room.acquire()
        if number not in self._sessions:
            session.room.release()  # the next one who waits for room sees the end too
        self._session(number)
        self._events.put_nowait((Said(session.node, message), session))

    def leave(self, number: int) -> None:
        self._end(number, "the node does not listen any more")

    def lost(self, address: str) -> None:
        """The process at this address takes no connections."""
        self.disconnect(node_of(address), "the process is gone")

    def end_silent(self) -> None:
        now = asyncio.get_running_loop().time()
        for number, session in list(self._sessions.items()):
            if now - session.heard_at > SILENT:
                self._end(number, f"silent for {SILENT:g} s")

    def close(self) -> None:
        for number in list(self._sessions):
            self._end(number, "another member leads")

    def _session(self, number: int) -> _Session:
        if number in self._replaced:
            raise LinkRefused(TAKEN)
        if (session := self._sessions.get(number)) is None:
            raise LinkLost("there is no such session here (any more): connect anew")
        return session

    def _make_way(self, node: NodeId, number: int) -> None:
        """A process may connect anew; of two that have one name, the later one stays."""
        before = self._nodes.get(node)
        if before is None:
            return
        if before >> PROCESS != number >> PROCESS:
            self._replaced.append(before)
            self._end(before, TAKEN, replaced=True)
        elif before > number:
            raise LinkLost("this process has connected anew since")
        else:
            self._end(before, "it has connected anew")

    async def _deliver(self, number: int, session: _Session) -> None:
        try:
            while True:
                message = await session.messages.get()
                await self._peers.hear(peer_at(session.address), peer_at(self._me), number, encode(message))
        except (*FAILED, TuttiError) as error:  # who cannot be told is not there, though it says that it lives
            self._end(number, str(error))

    def _end(self, number: int, reason: str, *, replaced: bool = False) -> None:
        session = self._sessions.pop(number, None)
        if session is None:
            return
        there, me = peer_at(session.address), peer_at(self._me)
        self._calls.begin(self._peers.over(there, me, number, reason, replaced=replaced))
        if self._nodes.get(session.node) == number:
            del self._nodes[session.node]
            self._events.put_nowait((Left(session.node, reason), session))
        if session.sender is not None and session.sender is not asyncio.current_task():
            session.sender.cancel()
        session.room.release()


TAKEN = "another process has connected under this address: give each member one of its own"


class RingLink:
    """The node's side: a Link of the member `me` to whoever leads."""

    def __init__(
        self, me: str, chain: ChainMember, peers: ThriftPeers, blobs: RingBlobs, clock: Callable[[], float]
    ) -> None:
        self._me, self._chain, self._peers, self._blobs, self._clock = me, chain, peers, blobs, clock
        self._session, self._leader, self._lost_at = 0, "", float("-inf")
        self._newest = secrets.randbits(63 - PROCESS) << PROCESS
        self._messages: _Inbox = asyncio.Queue()
        self._watch: asyncio.Task[None] | None = None
        self._calls = _Calls()

    async def connect(self, registration: Registration) -> AsyncIterator[CoordinatorMessage]:
        leader = await self._find_leader()
        self._end()
        self._newest = session = self._newest + 1
        self._session, self._leader, self._messages = session, leader, asyncio.Queue()
        try:
            await self._peers.attach(peer_at(leader), peer_at(self._me), session, encode(registration))
        except FAILED as error:
            raise self._failed(session, error) from None
        self._watch = asyncio.create_task(self._watch_leader(leader))
        return self._read(session, self._messages)

    async def send(self, message: NodeMessage) -> None:
        if not (session := self._session):
            raise LinkLost("there is no connection to a leader")
        try:
            await self._peers.say(peer_at(self._leader), session, encode(message))
        except FAILED as error:
            raise self._failed(session, error) from None

    async def fetch(self, digest: Digest) -> Buffer:
        try:
            return memoryview(await self._blobs.read(digest))
        except HolderAway as error:
            raise LinkLost(str(error)) from None

    async def store(self, blob: Buffer, digest: Digest) -> None:
        """Give it to those who have to sum it up: to all of the committee if it is small.

        Once: while one of them has it whom it was given to, whoever comes after the dead fetches it there.
        """
        committee = self._chain.replica.order
        if await self._blobs.still_held(digest, committee):
            return
        wanted = copies(len(blob), committee)
        stored = await self._blobs.spread(digest, blob, [*committee], wanted)
        if stored < min(wanted, majority(committee)):
            raise LinkLost(f"{stored} of {len(committee)} members of the committee could be given the update")

    # -- the leader's messages -----------------------------------------------------------------------------

    def hear(self, leader: str, session: int, frame: bytes) -> None:
        """Raises LinkLost for a session that is over, BadMessage."""
        if session != self._session or leader != self._leader:
            raise LinkLost("there is no such session here (any more)")
        self._messages.put_nowait(decode_from_coordinator(frame))

    def over(self, leader: str, session: int, reason: str, *, replaced: bool) -> None:
        """The leader has ended a session."""
        if session == self._session and leader == self._leader:
            self._lose(LinkRefused(reason) if replaced else LinkLost(f"the leader {leader}: {reason}"))

    async def close(self) -> None:
        """Leave; the leader is told if it can be reached."""
        self._leave(self._session)
        await self._calls.done()

    async def _find_leader(self) -> str:
        """Who leads, once it has been heard since the last connection was lost."""
        chain = self._chain
        try:
            async with asyncio.timeout(LEADERLESS):
                await chain.until(lambda _: bool(chain.leader) and chain.leader_heard_at > self._lost_at)
        except TimeoutError:
            raise LinkLost("nobody leads the ring: a majority of its committee does not answer") from None
        return chain.leader

    async def _watch_leader(self, leader: str) -> None:
        await self._chain.until(lambda chain: chain.leader not in ("", leader))
        self._lose(LinkLost(f"{leader} does not lead any more"))

    async def _read(self, session: int, messages: _Inbox) -> AsyncIterator[CoordinatorMessage]:
        try:
            while not isinstance(message := await messages.get(), TuttiError):
                yield message
            raise message
        finally:
            self._leave(session)

    def _failed(self, session: int, error: Exception) -> LinkLost | LinkRefused:
        """What came of a call in this session, which may have ended since."""
        reason = f"the leader {self._leader}: {getattr(error, 'reason', None) or error}"
        if session != self._session:
            return LinkLost(reason)
        lost = LinkRefused(reason) if isinstance(error, compute_node.Refused) else LinkLost(reason)
        self._lose(lost)
        return lost

    def _lose(self, lost: LinkLost | LinkRefused) -> None:
        self._messages.put_nowait(lost)
        self._end()

    def _leave(self, session: int) -> None:
        if session and session == self._session:
            self._calls.begin(self._peers.leave(peer_at(self._leader), session))
            self._lose(LinkLost("this node does not listen any more"))

    def _end(self) -> None:
        self._session, self._lost_at = 0, self._clock()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None


class _Calls:
    """Calls that may be lost, for which nobody waits."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, call: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(self._made(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def done(self) -> None:
        await asyncio.gather(*self._tasks)

    async def _made(self, call: Coroutine[None, None, None]) -> None:
        with suppress(*FAILED):
            await call
