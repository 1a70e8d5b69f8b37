"""The coordinator's side of the hub: nodes connect to one WebSocket address, and stay connected.

A channel comes as the two callables of ASGI (https://asgi.readthedocs.io/en/latest/specs/www.html#websocket), so any
ASGI server can carry it. A silent node costs one task, the server's own, which reads; a second one lives only
while messages to the node wait to be written.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import msgspec

from tutti.core.errors import Forbidden, Unavailable, Unproven
from tutti.domain.events import NodeId
from tutti.ports import Arrived, FabricEvent, Left, Said
from tutti.ports.blobs import Buffer
from tutti.version import __version__
from tutti.wire.messages import (
    MAX_ATTACHED,
    PROTOCOL,
    BadMessage,
    Computed,
    CoordinatorMessage,
    NodeMessage,
    Refusal,
    Registered,
    Registration,
    Start,
    Submission,
    attach,
    decode_from_node,
    detach,
    encode,
)

Frame: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Frame]]
Send: TypeAlias = Callable[[Frame], Awaitable[None]]
Authenticate: TypeAlias = Callable[[NodeId, str], Awaitable[None] | None]
TurnedAway: TypeAlias = Callable[[NodeId, str], Awaitable[None]]

NORMAL, GOING_AWAY, POLICY, TRY_LATER = 1000, 1001, 1008, 1013
"""Close codes of https://www.rfc-editor.org/rfc/rfc6455#section-7.4; a node that ends for good says GOING_AWAY."""

MAX_DETAIL = 500
"""Characters of an error that are sent back; what is wrong may be quoted in it."""

FLUSH_SECONDS = 5.0
"""How long a closing connection may take to deliver what is queued."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubLimits:
    """What one hub bears. A node that is silent for three heartbeats is disconnected."""

    heartbeat: float = 15.0  # seconds
    register: float = 10.0  # seconds for the first message
    strangers: int = 2048  # connections that have not registered yet
    nodes: int = 12_000
    events: int = 4096  # waiting for the coordinator; more than this, and no further frames are read
    attached: int = 32 << 20  # bytes of updates that wait with them; likewise
    outgoing: int = 256  # messages waiting for one node
    bad_frames: int = 8  # of one connection
    frames: float = 1000.0  # a second of one node, and so many at once; further ones wait in its socket

    @property
    def silence(self) -> float:
        return 3 * self.heartbeat


class _Ended(Exception):
    """Why a connection is over, the code to close it with, and what to tell the node first."""

    def __init__(self, reason: str, code: int = NORMAL, refusal: Refusal | None = None) -> None:
        super().__init__(reason)
        self.reason, self.code, self.refusal = reason, code, refusal
        self.took_leave = False


def _refused(code: str, detail: str, *, fatal: bool = True) -> _Ended:
    return _Ended(f"refused: {detail}", POLICY if fatal else TRY_LATER, Refusal(code=code, detail=detail, fatal=fatal))


class _Disconnected(_Ended):
    """The peer, or the network, ended it: there is nobody to tell."""

    def __init__(self, code: int) -> None:
        super().__init__("the node closed the connection" if code == GOING_AWAY else "the connection was lost", code)
        self.took_leave = code == GOING_AWAY


class Traffic(Protocol):
    """Counters of the bytes of blobs that came in and went out, and of those among them that were compressed."""

    bytes_in: int
    bytes_out: int
    zstd_in: int
    zstd_out: int


@dataclass(slots=True)
class Pace:
    """How fast frames of one connection are read: `rate` a second, after as many at once. Times are in seconds."""

    rate: float
    left: float
    at: float

    def pause(self, now: float) -> float:
        """One more was read; how long to wait before the next."""
        self.left = min(self.rate, self.left + (now - self.at) * self.rate) - 1
        self.at = now
        return max(0.0, -self.left / self.rate)


class HubFabric:
    """Fabric over WebSockets. `turned_away` hears of whom `authenticate` refused, and why.

    That raises Forbidden, or Unavailable if it cannot tell now.
    """

    def __init__(
        self, authenticate: Authenticate, *, turned_away: TurnedAway | None = None, limits: HubLimits | None = None
    ) -> None:
        self.limits = limits or HubLimits()
        self._authenticate = authenticate
        self._turned_away = turned_away
        self._nodes: dict[NodeId, _Connection] = {}
        self._strangers = 0
        self._events: asyncio.Queue[FabricEvent] = asyncio.Queue()
        self._attached = 0  # bytes of updates in that queue
        self.traffic: Traffic | None = None
        self._room = asyncio.Event()
        self._room.set()

    # -- the port ------------------------------------------------------------------------------------------

    async def events(self) -> AsyncIterator[FabricEvent]:
        now = asyncio.get_running_loop().time()
        for node, connection in list(self._nodes.items()):
            if connection.heard_of and connection.registration is not None:
                yield Arrived(node, connection.registration, now - connection.since)
        while True:
            event = await self._events.get()
            if isinstance(event, Said):
                self._attached -= len(event.blob)
            if not self._full:
                self._room.set()
            if isinstance(event, Arrived) and event.node in self._nodes:
                self._nodes[event.node].heard_of = True
            yield event

    def send(self, node: NodeId, message: CoordinatorMessage, blob: Buffer = b"") -> bool:
        connection = self._nodes.get(node)
        if connection is None:
            return False
        if len(connection.outgoing) >= self.limits.outgoing:
            self.disconnect(node, f"does not read: {self.limits.outgoing} messages wait for it")
            return False
        sent = connection.say(message, blob if isinstance(message, Start) else b"")
        if self.traffic is not None:
            self.traffic.bytes_out += sent
        return True

    def disconnect(self, node: NodeId, reason: str) -> None:
        self._end(node, _Ended(reason))

    def depths(self) -> dict[str, int]:
        """How many messages wait in each queue: for the coordinator, and for all nodes together."""
        outgoing = sum(len(connection.outgoing) for connection in self._nodes.values())
        return {"events": self._events.qsize(), "outgoing": outgoing}

    def _end(self, node: NodeId, ended: _Ended) -> None:
        if (connection := self._nodes.get(node)) is not None:
            self._leave(connection, ended)
            connection.drop(ended)

    # -- one connection ------------------------------------------------------------------------------------

    async def serve(self, receive: Receive, send: Send) -> None:
        """Speak with one peer, which was accepted, until either side ends it. Returns when the channel is closed."""
        connection = _Connection(receive, send)
        ended = _Ended("the coordinator stops", GOING_AWAY)
        try:
            async with connection.deadline:
                await self._speak(connection)
        except TimeoutError:
            ended = connection.dropped or self._too_silent(connection)
        except _Ended as reason:
            ended = reason
        finally:
            self._leave(connection, ended)
        if not isinstance(ended, _Disconnected):
            await connection.close(ended)

    def _too_silent(self, connection: "_Connection") -> _Ended:
        seconds = self.limits.silence if connection.node else self.limits.register
        return _Ended(f"silent for {seconds:g} s", POLICY)

    async def _speak(self, connection: "_Connection") -> None:
        """The life of a connection; it ends by an exception."""
        self._admit(connection, await self._introduce(connection))
        bad, loop = 0, asyncio.get_running_loop()
        pace = Pace(self.limits.frames, self.limits.frames, loop.time())
        while True:
            connection.expect_within(self.limits.silence)
            try:
                self._hear(connection, *_understood(await connection.read()))
            except BadMessage as error:
                bad, detail = bad + 1, str(error)[:MAX_DETAIL]
                if bad >= self.limits.bad_frames:
                    raise _refused("message", f"{bad} bad messages, the last: {detail}", fatal=False) from None
                connection.say(Refusal(code="message", detail=detail))
            await self._make_room(connection)
            if pause := pace.pause(loop.time()):
                await asyncio.sleep(pause)

    async def _introduce(self, connection: "_Connection") -> Registration:
        """The first message, if it is a registration of somebody who may come in."""
        if self._strangers >= self.limits.strangers:
            raise _refused("busy", "too many nodes connect at once: try again in a moment", fatal=False)
        self._strangers += 1
        try:
            connection.expect_within(self.limits.register)
            registration = _registration(await connection.read())
        finally:
            self._strangers -= 1
        try:
            if (verdict := self._authenticate(registration.node, registration.token)) is not None:
                await verdict
        except Unavailable as error:
            raise _refused("busy", str(error), fatal=False) from None
        except Forbidden as error:
            fatal = not isinstance(error, Unproven)  # else it was a good proof, and a new one will do
            connection.say(Refusal(code="forbidden", detail=str(error), fatal=fatal))
            if self._turned_away is not None:
                await self._turned_away(registration.node, str(error))
            raise _Ended(f"refused: {error}", POLICY) from None
        await self._make_room(connection)
        return registration

    def _admit(self, connection: "_Connection", registration: Registration) -> None:
        node = registration.node
        detail = f"another process has connected as {node}: give each node a name of its own"
        self._end(node, _refused("replaced", detail))
        if len(self._nodes) >= self.limits.nodes:
            detail = f"all {self.limits.nodes} places are taken: try again later"
            raise _refused("full", detail, fatal=False)
        connection.node = node
        self._nodes[node] = connection
        connection.takes = registration.attached
        welcome = Registered(node=node, version=__version__, heartbeat=self.limits.heartbeat, attached=MAX_ATTACHED)
        connection.say(welcome)
        connection.since = asyncio.get_running_loop().time()
        connection.registration = msgspec.structs.replace(registration, attached=0, token="")
        self._events.put_nowait(Arrived(node, connection.registration))

    def _hear(self, connection: "_Connection", message: NodeMessage, blob: bytes) -> None:
        if isinstance(message, Registration):
            raise BadMessage("expected news of the work, and a second registration came on one connection")
        if self._nodes.get(connection.node) is connection:
            self._attached += len(blob)
            if self.traffic is not None:
                self.traffic.bytes_in += len(blob)
            self._events.put_nowait(Said(connection.node, message, blob))

    def _leave(self, connection: "_Connection", ended: _Ended) -> None:
        """Only the present connection of a node can take it away; for an older one this does nothing."""
        if self._nodes.get(connection.node) is connection:
            del self._nodes[connection.node]
            self._events.put_nowait(Left(connection.node, ended.reason, ended.took_leave))

    @property
    def _full(self) -> bool:
        return self._events.qsize() >= self.limits.events or self._attached >= self.limits.attached

    async def _make_room(self, connection: "_Connection") -> None:
        """Wait while the coordinator is behind; frames then wait in the node's socket, and its deadline with them.

        Events are put first and waited for after, so that the order of several events of one node is that of the
        calls; the queue can exceed its limit by a few events for each connection.
        """
        if self._full:
            self._room.clear()
            connection.expect_within(None)
            await self._room.wait()


class _Connection:
    """One channel: reads on the caller's task, writes what is queued on a task of its own that ends when it is done."""

    __slots__ = (
        "_receive",
        "_send",
        "_writer",
        "deadline",
        "dropped",
        "heard_of",
        "node",
        "outgoing",
        "registration",
        "since",
        "takes",
    )

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._writer: asyncio.Task[None] | None = None
        self.deadline = asyncio.timeout(None)
        self.dropped: _Ended | None = None
        self.node: NodeId = ""
        self.registration: Registration | None = None
        self.since = 0.0
        self.heard_of = False  # whether somebody was told of it
        self.takes = 0  # bytes of a blob with a message
        self.outgoing: list[Frame] = []  # an empty list is small, and there may be ten thousand connections

    async def read(self) -> str | bytes:
        frame = await self._receive()
        if frame["type"] == "websocket.disconnect":
            raise _Disconnected(frame.get("code", 1005))
        text: str | bytes | None = frame.get("text")
        return text if text is not None else frame.get("bytes") or b""

    def expect_within(self, seconds: float | None) -> None:
        """End the connection unless this is called again in time. A connection that was dropped stays so."""
        if self.dropped is None:
            self.deadline.reschedule(None if seconds is None else asyncio.get_running_loop().time() + seconds)

    def drop(self, ended: _Ended) -> None:
        """End the connection now, from another task."""
        if not self.deadline.expired():
            self.dropped = ended
            self.deadline.reschedule(asyncio.get_running_loop().time())

    def say(self, message: CoordinatorMessage, blob: Buffer = b"") -> int:
        """Queue a message; how many bytes of a blob go along."""
        if blob and len(blob) <= self.takes:
            self._queue({"type": "websocket.send", "bytes": attach(message, blob)})
            return len(blob)
        self._queue({"type": "websocket.send", "text": encode(message).decode()})
        return 0

    async def close(self, ended: _Ended) -> None:
        """Deliver what is queued, as far as the peer takes it in time, and close."""
        if ended.refusal is not None:
            self.say(ended.refusal)
        self._queue({"type": "websocket.close", "code": ended.code, "reason": _short(ended.reason)})
        if self._writer is not None:
            await asyncio.wait((self._writer,), timeout=FLUSH_SECONDS)
            self._writer.cancel()

    def _queue(self, frame: Frame) -> None:
        self.outgoing.append(frame)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())

    async def _write(self) -> None:
        try:
            while self.outgoing:
                await self._send(self.outgoing.pop(0))
        except (OSError, RuntimeError):
            # The channel closed meanwhile (uvicorn says so by RuntimeError if it was the one to close it);
            # the reading side hears of it too, and ends the connection.
            self.outgoing.clear()


def _understood(frame: str | bytes) -> tuple[NodeMessage, bytes]:
    """A message, and the update attached to it. Raises BadMessage."""
    if isinstance(frame, str):
        return decode_from_node(frame), b""
    text, blob = detach(frame)
    message = decode_from_node(text)
    if len(blob) > MAX_ATTACHED or not isinstance(message, Submission | Computed):
        raise BadMessage(
            f"expected a submission or a result with at most {MAX_ATTACHED} bytes attached, "
            f"came {type(message).__name__.lower()} with {len(blob)}"
        )
    return message, blob


class _Spoken(msgspec.Struct):
    protocol: int


def _registration(frame: str | bytes) -> Registration:
    """Raises _Ended with the reason. A node of another protocol hears of that first, whatever else it says."""
    try:
        protocol = msgspec.json.decode(frame, type=_Spoken).protocol
    except (msgspec.DecodeError, UnicodeDecodeError):
        protocol = PROTOCOL
    if protocol != PROTOCOL:
        detail = f"this coordinator speaks protocol {PROTOCOL}, the node {protocol}: update the older one"
        raise _refused("protocol", detail)
    try:
        message = decode_from_node(frame)
    except BadMessage as error:
        raise _refused("message", f"expected a registration: {error}"[:MAX_DETAIL]) from None
    if not isinstance(message, Registration):
        raise _refused("message", f"expected a registration first, got {type(message).__name__.lower()}")
    return message


def _short(reason: str) -> str:
    """The reason of a close frame may have 123 bytes."""
    return reason.encode()[:120].decode(errors="ignore")
