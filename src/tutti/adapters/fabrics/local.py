"""A fabric within one process, for simulation and tests: messages are passed as values, blobs copied through a store.

Faults are part of it: `LocalLink.drop` cuts a connection as a network would, and a link whose `fabric` is set to
None finds no coordinator, until it is set to a fabric again (a restarted coordinator brings a new one).
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

from blake3 import blake3
from msgspec.structs import replace

from tutti.core.errors import Conflict, CorruptBlob, Forbidden, StorageError, TuttiError, Unavailable, UserError
from tutti.domain.events import Digest, NodeId
from tutti.ports import Arrived, BlobStore, FabricEvent, Left, LinkBusy, LinkLost, LinkRefused, Said
from tutti.ports.blobs import Buffer, TooLarge
from tutti.version import __version__
from tutti.wire.messages import (
    MAX_MESSAGE,
    PROTOCOL,
    CoordinatorMessage,
    NodeMessage,
    Registered,
    Registration,
    Submission,
    encode,
)

Authenticate: TypeAlias = Callable[[NodeId, str], Awaitable[None] | None]


class LocalFabric:
    """A Fabric. `authenticate` raises Forbidden; `incoming` and `outgoing` are messages that may wait, per node.

    `limit` is the largest blob in bytes that a node may store now, 0 if none is expected of it; without it, any.
    `uploads` is where it goes, if not to `blobs`.
    `heartbeat` is the seconds between two heartbeats that nodes are asked for.
    """

    def __init__(
        self,
        authenticate: Authenticate,
        blobs: BlobStore,
        *,
        limit: Callable[[NodeId], int] | None = None,
        incoming: int = 64,
        outgoing: int = 256,
        heartbeat: float = 15.0,
        uploads: Callable[[NodeId], BlobStore] | None = None,
    ) -> None:
        self.blobs = blobs
        self._uploads = uploads or (lambda node: blobs)
        self._limit = limit
        self._authenticate = authenticate
        self._incoming, self._outgoing, self._heartbeat = incoming, outgoing, heartbeat
        self._nodes: dict[NodeId, _Connection] = {}
        self._events: asyncio.Queue[tuple[FabricEvent, _Connection]] = asyncio.Queue()

    async def events(self) -> AsyncIterator[FabricEvent]:
        now = asyncio.get_running_loop().time()
        for node, connection in list(self._nodes.items()):
            if connection.heard_of:
                yield Arrived(node, connection.registration, now - connection.since)
        while True:
            event, connection = await self._events.get()
            if isinstance(event, Said):
                connection.room.release()
            connection.heard_of = True
            yield event

    def send(self, node: NodeId, message: CoordinatorMessage, blob: Buffer = b"") -> bool:
        connection = self._nodes.get(node)
        if connection is None:
            return False
        if connection.messages.qsize() >= self._outgoing:
            self.disconnect(node, f"does not read: {self._outgoing} messages wait for it")
            return False
        connection.messages.put_nowait(message)
        return True

    def disconnect(self, node: NodeId, reason: str) -> None:
        if (connection := self._nodes.get(node)) is not None:
            connection.end(reason)

    # -- for LocalLink -------------------------------------------------------------------------------------

    async def _admit(self, registration: Registration) -> "_Connection":
        node = registration.node
        if registration.protocol != PROTOCOL:
            raise LinkRefused(f"this coordinator speaks protocol {PROTOCOL}, the node {registration.protocol}")
        await self._prove(registration)
        if (before := self._nodes.get(node)) is not None:
            reason = f"another process has connected as {node}: give each node a name of its own"
            before.end(reason, tell=LinkRefused(reason))
        known = replace(registration, token="")
        connection = self._nodes[node] = _Connection(self, known, self._incoming)
        connection.messages.put_nowait(Registered(node=node, version=__version__, heartbeat=self._heartbeat))
        self._events.put_nowait((Arrived(node, known), connection))
        return connection

    async def _prove(self, registration: Registration) -> None:
        try:
            if (verdict := self._authenticate(registration.node, registration.token)) is not None:
                await verdict
        except Unavailable as error:
            raise LinkBusy(str(error)) from None
        except Forbidden as error:
            raise LinkRefused(str(error)) from None

    async def _store(self, registration: Registration, blob: Buffer, digest: Digest) -> None:
        await self._prove(registration)
        limit = None if self._limit is None else self._limit(registration.node)
        if limit == 0:
            raise Conflict(
                f"no update of {registration.node} is expected now: its round has closed, or it was not asked"
            )
        if limit is not None and len(blob) > limit:
            raise TooLarge(f"at most {limit} bytes are allowed here, {len(blob)} came")
        await self._uploads(registration.node).put(blob, digest=digest, sync=False)

    def _leave(self, connection: "_Connection", left: Left) -> None:
        del self._nodes[left.node]
        self._events.put_nowait((left, connection))


class LocalLink:
    """A Link. Set `fabric` to None for a coordinator that is away, to another one for one that came back."""

    def __init__(self, fabric: LocalFabric | None) -> None:
        self.fabric = fabric
        self._registration: Registration | None = None
        self._connection: _Connection | None = None

    async def connect(self, registration: Registration) -> AsyncIterator[CoordinatorMessage]:
        self.drop()
        fabric = self._reach()
        self._connection = connection = await fabric._admit(registration)
        self._registration = registration
        return self._messages(connection)

    async def send(self, message: NodeMessage) -> None:
        if isinstance(message, Submission) and (size := len(encode(message))) > MAX_MESSAGE:  # no other can be so long
            raise UserError(f"a message may have {MAX_MESSAGE} bytes, this {type(message).__name__} has {size}")
        if (connection := self._connection) is None:
            raise LinkLost("there is no connection to the coordinator")
        await connection.say(message)

    async def fetch(self, digest: Digest) -> Buffer:
        async with self._reach().blobs.file(digest) as source:
            return await asyncio.to_thread(_copied, source, digest)

    async def store(self, blob: Buffer, digest: Digest) -> None:
        fabric = self._reach()
        if self._registration is None:
            raise LinkLost("this node has not been connected to the coordinator yet")
        await fabric._store(self._registration, blob, digest)

    def drop(self) -> None:
        """Lose the connection, as when a cable is pulled: both sides notice at once."""
        self._end("the connection was lost", took_leave=False)

    def close(self) -> None:
        """Say goodbye: the coordinator does not wait for this node to return."""
        self._end("the node closed the connection", took_leave=True)

    def _end(self, reason: str, *, took_leave: bool) -> None:
        if self._connection is not None:
            self._connection.end(reason, took_leave=took_leave)
            self._connection = None

    def _reach(self) -> LocalFabric:
        if self.fabric is None:
            raise LinkLost("the coordinator is away")
        return self.fabric

    async def _messages(self, connection: "_Connection") -> AsyncIterator[CoordinatorMessage]:
        try:
            while not isinstance(message := await connection.messages.get(), TuttiError):
                yield message
            raise message
        finally:
            connection.end("the connection was lost")


class _Connection:
    """The messages to one node, and the room for its own. What is queued when it ends is still delivered."""

    def __init__(self, fabric: LocalFabric, registration: Registration, room: int) -> None:
        self.node, self.registration = registration.node, registration
        self.since = asyncio.get_running_loop().time()
        self.heard_of = False  # whether somebody was told of it
        self.room = asyncio.Semaphore(room)
        self.messages: asyncio.Queue[CoordinatorMessage | LinkLost | LinkRefused] = asyncio.Queue()
        self._ended: str | None = None
        self._fabric = fabric

    async def say(self, message: NodeMessage) -> None:
        await self.room.acquire()
        if self._ended is not None:
            self.room.release()  # the next one who waits for room sees the end too
            raise LinkLost(self._ended)
        self._fabric._events.put_nowait((Said(self.node, message), self))

    def end(self, reason: str, *, took_leave: bool = False, tell: LinkRefused | None = None) -> None:
        """The node hears `tell`, else that the connection is lost. After the first time this does nothing."""
        if self._ended is None:
            self._ended = f"the connection to the coordinator ended: {reason}"
            self.messages.put_nowait(tell or LinkLost(self._ended))
            self.room.release()
            self._fabric._leave(self, Left(self.node, reason, took_leave))


def _copied(source: Path, digest: Digest) -> bytes:
    """The file as it is now: what a node gets that does not share the coordinator's memory."""
    try:
        blob = source.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read blob {digest}: {error.strerror or error}") from error
    if (found := blake3(blob).hexdigest()) != digest:
        raise CorruptBlob(f"expected blob {digest}, got bytes with digest {found}: they were thrown away")
    return blob
