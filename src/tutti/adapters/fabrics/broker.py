"""The coordinator's side of a message broker (RabbitMQ): one queue for what nodes say; wire/broker.py tells more.

What a node said is acknowledged once the coordinator has dealt with it, so it comes again after a crash of either; the
numbers of a session show what came twice. The fabric reconnects by itself and keeps its sessions meanwhile: what it
has to say waits.
"""

import asyncio
import contextlib
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self, TypeAlias

from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from msgspec.structs import replace

from tutti.adapters.fabrics import amqp
from tutti.adapters.fabrics.amqp import Address, QueueLost, Undeliverable
from tutti.adapters.fabrics.hub import Authenticate, TurnedAway
from tutti.core.errors import Conflict, Forbidden, NotFound, TuttiError
from tutti.domain.events import Digest, NodeId
from tutti.ports import Arrived, FabricEvent, Left, LinkLost, LinkRefused, Said
from tutti.ports.blobs import Buffer, TooLarge
from tutti.version import __version__
from tutti.wire import broker as wire
from tutti.wire.messages import (
    PROTOCOL,
    BadMessage,
    Computed,
    CoordinatorMessage,
    Registered,
    Registration,
    Start,
    Submission,
)

log = logging.getLogger(__name__)

Admit: TypeAlias = Callable[[str, NodeId, str], Awaitable[object]]
RECONNECT = (0.2, 15.0)
"""Seconds between attempts to reach the broker again: they double from the first to the last."""


class Depot(Protocol):
    """How nodes reach blobs without the coordinator's carrying them."""

    async def download(self, node: NodeId, digest: Digest) -> str:
        """An address to read from; raises NotFound."""
        ...

    async def upload(self, node: NodeId, name: str, size: int = 0) -> str:
        """An address of the node's own to store to, under a name; raises Conflict, TooLarge."""
        ...

    async def arrived(self, node: NodeId, digest: Digest, *names: str) -> str:
        """What the node has stored under one of these names becomes a blob; returns the name.

        Raises NotFound, CorruptBlob, TooLarge, StorageError.
        """
        ...

    async def forget(self, node: NodeId, name: str) -> None:
        """What was stored under this name is not needed any more; it is no error if that fails."""
        ...


DEPTH_SECONDS = 2.0
"""How long the broker may take to say how many letters wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerLimits:
    """What one coordinator bears. A node that is silent for three heartbeats is taken for gone."""

    heartbeat: float = 15.0  # seconds
    pulse: float = 5.0  # seconds
    nodes: int = 2000
    events: int = 512  # given to the coordinator and not dealt with yet
    outgoing: int = 256  # messages waiting for one node
    early: int = 64  # letters of one session that came before an earlier one


@dataclass(slots=True, eq=False)
class _Peer:
    """One session of a node."""

    node: NodeId
    session: str
    own: str  # the queue that goes with its connection
    registration: Registration
    heard_at: float
    commands: str = ""  # the queue on which it listens
    channel: AbstractChannel | None = None  # a queue that does not answer holds up its own channel only
    place: str = field(default_factory=lambda: secrets.token_hex(16))  # the name under which it stores its updates
    stored: bool = False  # there is one
    seq: int = 0  # of the newest letter dealt with
    said: int = 0  # of the newest letter sent
    early: dict[int, tuple["wire.Counted", AbstractIncomingMessage]] = field(default_factory=dict)
    incoming: "deque[tuple[wire.Counted, AbstractIncomingMessage]]" = field(default_factory=deque)
    outgoing: "deque[CoordinatorMessage]" = field(default_factory=deque)
    writer: "asyncio.Task[None] | None" = None
    reader: "asyncio.Task[None] | None" = None


class BrokerFabric:
    """A Fabric; use it as a context, whose start raises LinkRefused or LinkLost if the broker cannot be used.

    `depot` gives out addresses of blobs; without one nodes turn to the coordinator at `blobs_url`. `admit` takes in
    a node that shows the token of a join link, and raises Forbidden.
    """

    def __init__(
        self,
        address: Address,
        authenticate: Authenticate,
        *,
        admit: Admit | None = None,
        turned_away: TurnedAway | None = None,
        depot: Depot | None = None,
        blobs_url: str = "",
        limits: BrokerLimits | None = None,
        ca: Path | None = None,
    ) -> None:
        self.address, self.limits = address, limits or BrokerLimits()
        self._authenticate, self._admit, self._turned_away = authenticate, admit, turned_away
        self._depot, self._blobs_url, self._ca = depot, blobs_url, ca
        self._nodes: dict[NodeId, _Peer] = {}
        self._sessions: dict[str, _Peer] = {}
        self._events: asyncio.Queue[tuple[FabricEvent, AbstractIncomingMessage | None]] = asyncio.Queue()
        self._inbox: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None
        self._connected = asyncio.Event()
        self._lost = asyncio.Event()
        self._tasks: asyncio.TaskGroup

    async def __aenter__(self) -> Self:
        await self._connect(alone=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._connection is not None:
            with contextlib.suppress(*amqp.BROKEN):
                await self._connection.close()

    async def run(self) -> None:
        """Hear and speak until cancelled."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                for work in (self._keep_connected(), self._read_inbox(), self._watch()):
                    self._tasks.create_task(work)
        finally:
            self._nodes.clear()
            self._sessions.clear()

    # -- the port ------------------------------------------------------------------------------------------

    async def events(self) -> AsyncIterator[FabricEvent]:
        while True:
            event, letter = await self._events.get()
            yield event
            if letter is not None:
                await amqp.acknowledge(letter)

    def send(self, node: NodeId, message: CoordinatorMessage, blob: Buffer = b"") -> bool:
        peer = self._nodes.get(node)
        if peer is None:
            return False
        if len(peer.outgoing) >= self.limits.outgoing:
            self.disconnect(node, f"does not read: {self.limits.outgoing} messages wait for it")
            return False
        self._say(peer, message)
        return True

    def disconnect(self, node: NodeId, reason: str) -> None:
        if (peer := self._nodes.get(node)) is not None:
            self._end(peer, reason)

    async def depths(self) -> dict[str, int]:
        """How many letters wait: `events` and `dead` at the broker, `outgoing` here. Raises LinkLost."""
        connection = self._connection
        if connection is None or not self._connected.is_set():
            raise LinkLost("there is no connection to the broker")
        with amqp.lost_when_broken("count letters"):
            async with asyncio.timeout(DEPTH_SECONDS), connection.channel() as channel:
                queues = {"events": self.address.events, "dead": self.address.dead}
                found = {
                    name: (await channel.declare_queue(queue, passive=True)).declaration_result.message_count or 0
                    for name, queue in queues.items()
                }
        return {**found, "outgoing": sum(len(peer.outgoing) for peer in self._nodes.values())}

    # -- the connection ------------------------------------------------------------------------------------

    async def _connect(self, *, alone: bool = False) -> None:
        """`alone`: nobody else may listen; one that stopped listening without a word may still seem to, for a while."""
        connection = await amqp.connect(self.address, self._ca)
        try:
            with amqp.lost_when_broken("use the broker"):
                channels = await self._listen(connection, alone)
        except BaseException:
            with contextlib.suppress(*amqp.BROKEN):
                await connection.close()
            raise
        self._connection, self._channel = connection, channels[0]
        for closing in (connection, *channels):
            closing.close_callbacks.add(lambda *_: self._on_closed(connection))
        self._connected.set()

    async def _listen(self, connection: AbstractConnection, alone: bool) -> tuple[AbstractChannel, AbstractChannel]:
        """A channel to publish by, and one by which events come."""
        async with asyncio.timeout(amqp.CONNECT_SECONDS):
            publishing, listening = await amqp.open_channel(connection), await connection.channel()
            await listening.set_qos(prefetch_count=self.limits.events)
            queue = await amqp.declare_events(listening, self.address)
        if alone and queue.declaration_result.consumer_count:
            raise LinkRefused(f"another coordinator listens to {self.address.events}: choose another uid")
        await amqp.consume(self.address, queue, self._inbox.put, self._ca)
        return publishing, listening

    def _on_closed(self, connection: AbstractConnection | None) -> None:
        """Of an older connection this is no news."""
        if connection is self._connection:
            self._connected.clear()
            self._lost.set()

    async def _keep_connected(self) -> None:
        while True:
            await self._lost.wait()
            self._lost.clear()
            if self._connected.is_set():
                continue
            if self._connection is not None:
                with contextlib.suppress(*amqp.BROKEN):
                    await self._connection.close()
            await self._reconnect()

    async def _reconnect(self) -> None:
        wait, longest = RECONNECT
        while True:
            try:
                await self._connect()
            except (LinkLost, LinkRefused) as error:
                if isinstance(error, QueueLost):  # nobody can tell which letters were in it
                    for peer in list(self._sessions.values()):
                        self._end(peer, str(error))
                log.warning("%s; trying again in %g s", error, wait)
                await asyncio.sleep(wait)
                wait = min(2 * wait, longest)
            else:
                log.info("connected to the broker again")
                return

    async def _publish(self, queue: str, letter: wire.Letter) -> None:
        """Say it for sure, however long the broker is away; raises Undeliverable."""
        while True:
            await self._connected.wait()
            connection, channel = self._connection, self._channel
            assert channel is not None
            try:
                return await amqp.publish(channel, queue, letter)
            except amqp.BROKEN as error:
                log.info("not published to %s yet: %s", queue, error)
                self._on_closed(connection)

    # -- what nodes say ------------------------------------------------------------------------------------

    async def _read_inbox(self) -> None:
        while True:
            letter = await self._inbox.get()
            try:
                await self._read(letter)
            except BadMessage as error:
                log.warning("a letter that is none goes to %s: %s", self.address.dead, error)
                await amqp.acknowledge(letter, good=False)

    async def _read(self, letter: AbstractIncomingMessage) -> None:
        match event := wire.decode_event(letter.body):
            case wire.Register():
                await self._on_register(event, letter)
            case wire.Join():
                await self._on_join(event, letter)
            case _:
                await self._on_counted(event, letter)

    async def _on_register(self, said: wire.Register, letter: AbstractIncomingMessage) -> None:
        node, own = said.registration.node, letter.reply_to or ""
        if said.session not in self._sessions:
            refused = await self._refusal(said)
            if refused is not None:
                await self._notify(own, refused)
                return await amqp.acknowledge(letter)
            now = asyncio.get_running_loop().time()
            self._sessions[said.session] = _Peer(node, said.session, own, said.registration, now)
        await self._notify(own, wire.Enable(queue=self.address.events, pulse=self.limits.pulse, blobs=self._blobs_url))
        await amqp.acknowledge(letter)

    async def _refusal(self, said: wire.Register) -> wire.Disable | None:
        registration = said.registration
        if registration.protocol != PROTOCOL:
            theirs = registration.protocol
            reason = f"this coordinator speaks protocol {PROTOCOL}, the node {theirs}: update the older one"
            return wire.Disable(reason=reason, fatal=True)
        if len(self._sessions) >= self.limits.nodes and registration.node not in self._nodes:
            return wire.Disable(reason=f"all {self.limits.nodes} places are taken: try again later")
        try:
            if (verdict := self._authenticate(registration.node, registration.token)) is not None:
                await verdict
        except Forbidden as error:
            if self._turned_away is not None:
                await self._turned_away(registration.node, str(error))
            return wire.Disable(reason=str(error), fatal=True)
        return None

    async def _on_join(self, said: wire.Join, letter: AbstractIncomingMessage) -> None:
        try:
            if self._admit is None:
                raise Forbidden("this coordinator takes in nobody through the broker")
            await self._admit(said.token, said.node, said.secret)
            answer: wire.Notice = wire.Joined(node=said.node)
        except TuttiError as error:
            answer = wire.Disable(reason=str(error)[:1000], fatal=True)
        await self._notify(letter.reply_to or "", answer)
        await amqp.acknowledge(letter)

    async def _on_counted(self, said: wire.Counted, letter: AbstractIncomingMessage) -> None:
        """In the order of their numbers, once each."""
        peer = self._sessions.get(said.session)
        if peer is None:
            reason = "the coordinator does not know this session (any more): register again"
            await self._notify(letter.reply_to or "", wire.Disable(reason=reason))
            return await amqp.acknowledge(letter)
        peer.heard_at = asyncio.get_running_loop().time()
        if said.seq <= peer.seq or said.seq in peer.early:
            return await amqp.acknowledge(letter)
        peer.early[said.seq] = said, letter
        while (following := peer.early.pop(peer.seq + 1, None)) is not None:
            peer.seq += 1
            peer.incoming.append(following)
        if len(peer.early) > self.limits.early:
            self._end(peer, "letters of this session were lost")
        elif peer.incoming and (peer.reader is None or peer.reader.done()):
            peer.reader = self._tasks.create_task(self._deal_with(peer))

    async def _deal_with(self, peer: _Peer) -> None:
        while peer.incoming:
            said, letter = peer.incoming.popleft()
            match said:
                case wire.Enabled(queue=queue):
                    peer.commands = queue
                    self._arrive(peer)
                case wire.Leave():
                    self._end(peer, "the node closed the connection", took_leave=True)
                case wire.Ask():
                    await self._notify(peer.own, await self._answer(peer, said))
                case wire.Beat() | wire.Done() | wire.Say() if self._nodes.get(peer.node) is peer:
                    await self._hand_over(peer, said, letter)
                    continue
                case _:
                    pass
            await amqp.acknowledge(letter)

    async def _hand_over(
        self, peer: _Peer, said: wire.Beat | wire.Done | wire.Say, letter: AbstractIncomingMessage
    ) -> None:
        match message := wire.report_in(said):
            case Submission(digest=digest) | Computed(digest=digest) if digest and self._depot is not None:
                try:
                    name = await self._depot.arrived(peer.node, digest, peer.place, digest)
                except TuttiError as error:  # the coordinator finds no such blob, and says what to do about it
                    log.warning("blob %s of %s: %s", digest, peer.node, error)
                else:
                    peer.stored |= name == peer.place
                    if name == digest:
                        self._tasks.create_task(self._depot.forget(peer.node, name))
        self._events.put_nowait((Said(peer.node, message), letter))

    async def _answer(self, peer: _Peer, asked: wire.Ask) -> wire.Answer:
        try:
            if self._depot is None:
                raise Conflict("this coordinator hands out blobs itself")
            if asked.store:
                link = await self._depot.upload(peer.node, asked.digest, asked.size)
            else:
                link = await self._depot.download(peer.node, asked.digest)
            return wire.Answer(id=asked.id, link=link)
        except TuttiError as error:
            status = next((code for kind, code in _STATUS if isinstance(error, kind)), 503)
            return wire.Answer(id=asked.id, status=status, reason=str(error)[:1000])

    def _arrive(self, peer: _Peer) -> None:
        if (before := self._nodes.get(peer.node)) is not None:
            reason = f"another process has connected as {peer.node}: give each node a name of its own"
            self._end(before, reason, fatal=True)
        self._nodes[peer.node] = peer
        self._say(peer, Registered(node=peer.node, version=__version__, heartbeat=self.limits.heartbeat))
        self._events.put_nowait((Arrived(peer.node, replace(peer.registration, token="")), None))

    def _end(self, peer: _Peer, reason: str, *, took_leave: bool = False, fatal: bool = False) -> None:
        """A session is over; after the first time this does nothing."""
        if self._sessions.pop(peer.session, None) is None:
            return
        if self._nodes.get(peer.node) is peer:
            del self._nodes[peer.node]
            self._events.put_nowait((Left(peer.node, reason, took_leave), None))
        for _, letter in [*peer.early.values(), *peer.incoming]:
            self._tasks.create_task(amqp.acknowledge(letter))
        peer.early.clear()
        peer.incoming.clear()
        peer.outgoing.clear()
        if peer.channel is not None:
            self._tasks.create_task(_close(peer.channel))
        if peer.stored and self._depot is not None:
            self._tasks.create_task(self._depot.forget(peer.node, peer.place))
        if not took_leave:
            self._tasks.create_task(self._notify(peer.own, wire.Disable(reason=reason[:1000], fatal=fatal)))

    # -- what nodes are told -------------------------------------------------------------------------------

    def _say(self, peer: _Peer, message: CoordinatorMessage) -> None:
        peer.outgoing.append(message)
        if peer.writer is None or peer.writer.done():
            peer.writer = self._tasks.create_task(self._write(peer))

    async def _write(self, peer: _Peer) -> None:
        """One after another: the next goes once the broker has the one before."""
        while peer.outgoing:
            message = peer.outgoing.popleft()
            peer.said += 1
            link, store = await self._links_for(peer, message)
            try:
                await self._command(peer, wire.commanded(peer.session, peer.said, message, link, store))
            except (Undeliverable, TimeoutError) as error:
                self._end(peer, f"does not read: {error or 'its queue does not answer'}")

    async def _command(self, peer: _Peer, letter: wire.Command) -> None:
        """Say it for sure, however long the broker is away; raises Undeliverable, or TimeoutError for a dead queue."""
        while True:
            if peer.channel is None:
                peer.channel = await self._open_channel()
            try:
                return await amqp.publish(peer.channel, peer.commands, letter)
            except TimeoutError:
                raise
            except amqp.BROKEN as error:
                log.info("not published to %s yet: %s", peer.commands, error)
                peer.channel = None

    async def _open_channel(self) -> AbstractChannel:
        while True:
            await self._connected.wait()
            connection = self._connection
            assert connection is not None
            try:
                return await amqp.open_channel(connection)
            except amqp.BROKEN:
                self._on_closed(connection)

    async def _links_for(self, peer: _Peer, message: CoordinatorMessage) -> tuple[str, str]:
        """Where work's model is, and where its update goes, which spares the node questions; it asks if this fails."""
        if self._depot is None or not isinstance(message, Start):
            return "", ""
        link = store = ""
        try:
            link = await self._depot.download(peer.node, message.weights)
            if message.task == "train":
                store = await self._depot.upload(peer.node, peer.place)
        except TuttiError as error:
            log.warning("no address for the work of %s yet: %s", peer.node, error)
        return link, store

    async def _notify(self, queue: str, notice: wire.Notice) -> None:
        """On the node's own queue; one that is gone is noticed by the pulse."""
        if queue:
            with contextlib.suppress(Undeliverable):
                await self._publish(queue, notice)

    async def _watch(self) -> None:
        """Feel every session's pulse."""
        while True:
            await asyncio.sleep(self.limits.pulse)
            now = asyncio.get_running_loop().time()
            for peer in list(self._sessions.values()):
                if now - peer.heard_at > 3 * self.limits.heartbeat:
                    self._end(peer, f"silent for {3 * self.limits.heartbeat:g} s")
            await asyncio.gather(*(self._pulse(peer) for peer in list(self._sessions.values())))

    async def _pulse(self, peer: _Peer) -> None:
        try:
            await self._publish(peer.own, wire.Pulse())
        except Undeliverable:
            self._end(peer, "the connection was lost")


_STATUS: tuple[tuple[type[TuttiError], int], ...] = ((NotFound, 404), (TooLarge, 413), (Conflict, 409))


async def _close(channel: AbstractChannel) -> None:
    with contextlib.suppress(*amqp.BROKEN):
        async with asyncio.timeout(amqp.CONNECT_SECONDS):
            await channel.close()
