"""A fabric without a centre: nodes are members of a ring, and connect to whoever leads it.

The messages are those of the hub (docs/protocol.md), each one a call: the node's go to the leader with `say`, the
leader's to the node with `hear`. A session is a random number that the node chooses. It ends when a call fails, when
the node is silent, or when another member leads. Updates go to the whole committee before they are handed in.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from tutti.adapters.blobs.ring import RingBlobs
from tutti.adapters.thrift.client import UnknownCall, Unreachable
from tutti.adapters.thrift.idl import compute_node
from tutti.adapters.thrift.node import ThriftPeers, peer_at
from tutti.core.errors import Conflict, Forbidden, NotFound, TuttiError
from tutti.domain.events import Digest, NodeId
from tutti.ports import Arrived, FabricEvent, Left, LinkLost, Said
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

_Inbox: TypeAlias = "asyncio.Queue[CoordinatorMessage | LinkLost]"

FAILED = (Unreachable, UnknownCall, compute_node.Refused)


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
    """The leader's side: a Fabric for one leadership. `admit` registers a node that has not been here before."""

    def __init__(self, peers: ThriftPeers, me: str, admit: Callable[[NodeId], Awaitable[None]]) -> None:
        self._peers, self._me, self._admit = peers, me, admit
        self._sessions: dict[int, _Session] = {}
        self._nodes: dict[NodeId, int] = {}
        self._events: asyncio.Queue[tuple[FabricEvent, _Session]] = asyncio.Queue()

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
        """A member connects; raises Forbidden for one that takes another's name, BadMessage."""
        registration = decode_from_node(frame)
        if not isinstance(registration, Registration) or registration.protocol != PROTOCOL:
            raise Forbidden(f"expected a registration of protocol {PROTOCOL}")
        if registration.node != node_of(address):
            raise Forbidden(f"{address} is called {node_of(address)!r}, it says {registration.node!r}")
        await self._admit(registration.node)
        self.disconnect(registration.node, "it has connected anew")
        session = _Session(registration.node, address, asyncio.get_running_loop().time())
        self._sessions[number], self._nodes[session.node] = session, number
        session.messages.put_nowait(Registered(node=session.node, version=__version__, heartbeat=HEARTBEAT))
        session.sender = asyncio.create_task(self._deliver(number, session))
        self._events.put_nowait((Arrived(session.node, registration), session))

    async def say(self, number: int, frame: bytes) -> None:
        """Raises Conflict if there is no such session, BadMessage."""
        session = self._sessions.get(number)
        if session is None:
            raise Conflict("there is no such session here (any more): connect anew")
        session.heard_at = asyncio.get_running_loop().time()
        message = decode_from_node(frame)
        await session.room.acquire()
        self._events.put_nowait((Said(session.node, message), session))

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

    async def _deliver(self, number: int, session: _Session) -> None:
        try:
            while True:
                message = await session.messages.get()
                await self._peers.hear(peer_at(session.address), peer_at(self._me), number, encode(message))
        except FAILED as error:
            self._end(number, str(error))

    def _end(self, number: int, reason: str) -> None:
        session = self._sessions.pop(number, None)
        if session is None:
            return
        if self._nodes.get(session.node) == number:
            del self._nodes[session.node]
            self._events.put_nowait((Left(session.node, reason), session))
        if session.sender is not None and session.sender is not asyncio.current_task():
            session.sender.cancel()
        session.room.release()


class RingLink:
    """The node's side: a Link to whoever leads."""

    def __init__(self, chain: ChainMember, peers: ThriftPeers, blobs: RingBlobs, clock: Callable[[], float]) -> None:
        self._chain, self._peers, self._blobs, self._clock = chain, peers, blobs, clock
        self._session, self._leader, self._lost_at = 0, "", float("-inf")
        self._messages: _Inbox = asyncio.Queue()
        self._watch: asyncio.Task[None] | None = None

    async def connect(self, registration: Registration) -> AsyncIterator[CoordinatorMessage]:
        leader = await self._find_leader()
        self._end()
        self._session, self._leader, self._messages = secrets.randbits(62), leader, asyncio.Queue()
        try:
            await self._peers.attach(peer_at(leader), peer_at(self._chain.me), self._session, encode(registration))
        except FAILED as error:
            raise self._failed(error) from None
        self._watch = asyncio.create_task(self._watch_leader(leader))
        return self._read(self._messages)

    async def send(self, message: NodeMessage) -> None:
        if not self._session:
            raise LinkLost("there is no connection to a leader")
        try:
            await self._peers.say(peer_at(self._leader), self._session, encode(message))
        except FAILED as error:
            raise self._failed(error) from None

    async def fetch(self, digest: Digest) -> Buffer:
        try:
            return memoryview(await self._blobs.read(digest))
        except NotFound as error:
            raise LinkLost(str(error)) from None  # whoever made it is away for now

    async def store(self, blob: Buffer, digest: Digest) -> None:
        """Give it to those who have to sum it up: to all of the committee if it is small."""
        committee = self._chain.replica.order
        wanted = copies(len(blob), committee)
        stored = await self._blobs.spread(digest, blob, [*committee], wanted)
        if stored < min(wanted, majority(committee)):
            raise LinkLost(f"{stored} of {len(committee)} members of the committee could be given the update")

    # -- the leader's messages -----------------------------------------------------------------------------

    def hear(self, leader: str, session: int, frame: bytes) -> None:
        """Raises Conflict for a session that is over, BadMessage."""
        if session != self._session or leader != self._leader:
            raise Conflict("there is no such session here (any more)")
        self._messages.put_nowait(decode_from_coordinator(frame))

    async def close(self) -> None:
        self._end()

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
        self._messages.put_nowait(LinkLost(f"{leader} does not lead any more"))

    async def _read(
        self, messages: "asyncio.Queue[CoordinatorMessage | LinkLost]"
    ) -> AsyncIterator[CoordinatorMessage]:
        while True:
            message = await messages.get()
            if isinstance(message, LinkLost):
                raise message
            yield message

    def _failed(self, error: Exception) -> TuttiError:
        reason = getattr(error, "reason", None) or str(error)
        lost = LinkLost(f"the leader {self._leader}: {reason}")
        self._end()
        self._messages.put_nowait(lost)
        return lost

    def _end(self) -> None:
        self._session, self._lost_at = 0, self._clock()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
