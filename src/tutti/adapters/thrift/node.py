"""The ComputeNode service: a member of a ring and its blobs, as Thrift calls; and the same calls made to others."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from typing import Any, Protocol

from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.adapters.thrift.client import Channel, UnknownCall, Unreachable
from tutti.adapters.thrift.idl import (
    CHUNK,
    PROTOCOL,
    BadValue,
    compute_node,
    key_bytes,
    key_from,
    peer_from,
    peer_struct,
    training_node,
    view_from,
    view_struct,
)
from tutti.core.errors import Conflict, NotFound, TuttiError
from tutti.ring.identifiers import Peer, identifier
from tutti.ring.member import View

MAX_UPLOADS = 64
SILENT = 60.0
OWNER = "ring"  # all uploads of a blob are one: whoever sends next continues it
MAX_DIGESTS = 4096


class Host(Protocol):
    """Whose calls these are; services.ring.RingMember is one."""

    async def asked(self, key: int, asker: Peer | None) -> View | None: ...
    async def told(self, peer: Peer) -> None: ...


class ComputeNode:
    """The handler of the service. `limit` is the largest blob that may be stored, in bytes."""

    def __init__(self, host: Host, blobs: DirectoryBlobs, *, limit: int = 2**31) -> None:
        self._host, self._blobs, self._limit = host, blobs, limit
        self._unfinished: dict[bytes, float] = {}  # when each heard of last, the longest silent first

    async def ask(self, protocol: int | None, key: bytes | None, asker: Any) -> Any:
        require_version(protocol)
        view = await self._host.asked(key_from(key), None if asker is None else genuine(asker))
        if view is None:
            raise compute_node.NotMember("this process has not joined the ring yet")
        return view_struct(view)

    async def tell(self, protocol: int | None, peer: Any) -> None:
        require_version(protocol)
        await self._host.told(genuine(peer))

    async def missing(self, digests: list[bytes] | None) -> list[bytes]:
        if len(digests or ()) > MAX_DIGESTS:
            raise compute_node.Refused(f"one call may name {MAX_DIGESTS} blobs, this one names {len(digests or ())}")
        here = set(await self._blobs.digests())
        return [digest for digest in digests or () if digest.hex() not in here]

    async def fetch(self, digest: bytes | None, offset: int | None) -> Any:
        try:
            path = self._blobs.path((digest or b"").hex())
        except TuttiError as error:
            raise compute_node.NotFound(str(error)) from None
        size, data = await asyncio.to_thread(_part, path, offset or 0)
        return compute_node.Part(size, data)

    async def store(self, digest: bytes | None, size: int | None, offset: int | None, data: bytes | None) -> None:
        digest, size, offset, data = digest or b"", size or 0, offset or 0, data or b""
        if not 0 <= offset <= offset + len(data) <= size or len(data) > CHUNK:
            came = f"{len(data)} bytes at {offset} of {size}"
            raise compute_node.Refused(f"expected at most {CHUNK} bytes within the blob, came {came}")
        try:
            upload = self._blobs.partial(digest.hex(), f"{OWNER} of {digest.hex()}")  # members upload side by side
            self._make_room(digest)
            stored = await upload.write(_stream(data), offset=offset, total=size, limit=self._limit)
        except TuttiError as error:
            self._unfinished.pop(digest, None)
            raise compute_node.Refused(str(error)) from None
        if stored:
            self._unfinished.pop(digest, None)

    def _make_room(self, digest: bytes) -> None:
        """Count this upload among the unfinished, of which a silent one may be displaced; raises Conflict."""
        now = asyncio.get_running_loop().time()
        self._unfinished.pop(digest, None)
        if len(self._unfinished) >= MAX_UPLOADS:
            silent, since = next(iter(self._unfinished.items()))
            if now - since < SILENT:
                raise Conflict(f"{MAX_UPLOADS} uploads are under way here: try again in {SILENT:g} s")
            del self._unfinished[silent]  # what came of it waits on disk, to be continued or removed at a later start
        self._unfinished[digest] = now


async def _stream(data: bytes) -> AsyncIterator[bytes]:
    yield data


class ThriftPeers:
    """ports.ring.Peers over Thrift, and blobs from and to other members.

    Args:
        within: Seconds for one call. A peer that takes longer counts as dead.
    """

    def __init__(self, *, within: float = 1.0, tls: ssl.SSLContext | None = None) -> None:
        self._within, self._tls = within, tls
        self._channels: dict[str, Channel] = {}

    async def ask(self, peer: Peer, key: int, asker: Peer | None) -> View | None:
        struct = None if asker is None else peer_struct(asker)
        try:
            view = view_from(await self._call(peer, "ask", PROTOCOL, key_bytes(key), struct))
        except (Unreachable, UnknownCall, BadValue, compute_node.NotMember, compute_node.Refused):
            return None
        return view if view.peer.id == peer.id else None

    async def tell(self, peer: Peer, me: Peer) -> None:
        try:
            await self._call(peer, "tell", PROTOCOL, peer_struct(me))
        except (Unreachable, UnknownCall, compute_node.Refused):
            return  # whoever did not hear it asks, or is asked, in the next round

    async def missing(self, peer: Peer, digests: list[bytes]) -> list[bytes]:
        return list(await self._call(peer, "missing", digests))

    async def fetch(self, peer: Peer, digest: bytes) -> AsyncIterator[bytes]:
        """A blob in chunks; raises NotFound, Unreachable. The bytes are not verified here."""
        size, offset = 1, 0
        while offset < size:
            part = await self.part(peer, digest, offset)
            if part.size > offset and not part.data:
                raise Unreachable(f"{peer.address} sends no more than {offset} of {part.size} bytes")
            size, offset = part.size, offset + len(part.data)
            yield part.data

    async def part(self, peer: Peer, digest: bytes, offset: int) -> Any:
        """The part of a blob that begins at `offset`; raises NotFound, Unreachable."""
        try:
            return await self._call(peer, "fetch", digest, offset)
        except compute_node.NotFound as error:
            raise NotFound(f"{peer.address}: {error.reason}") from None

    async def store(self, peer: Peer, digest: bytes, data: bytes | memoryview) -> None:
        """Store a blob at a peer; raises compute_node.Refused, Unreachable."""
        for offset in range(0, max(len(data), 1), CHUNK):
            await self._call(peer, "store", digest, len(data), offset, bytes(data[offset : offset + CHUNK]))

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()

    # -- training: these raise Unreachable, UnknownCall, compute_node.Refused -------------------------------

    async def agree(self, peer: Peer, me: Peer, message: bytes) -> None:
        await self._call(peer, "agree", PROTOCOL, peer_struct(me), message)

    async def attach(self, peer: Peer, me: Peer, session: int, registration: bytes) -> None:
        await self._call(peer, "attach", PROTOCOL, peer_struct(me), session, registration)

    async def say(self, peer: Peer, session: int, message: bytes) -> None:
        await self._call(peer, "say", session, message)

    async def hear(self, peer: Peer, me: Peer, session: int, message: bytes) -> None:
        await self._call(peer, "hear", peer_struct(me), session, message)

    async def place(self, peer: Peer, digest: bytes) -> None:
        await self._call(peer, "place", PROTOCOL, digest)

    async def submit(self, peer: Peer, key: str, job: bytes) -> str:
        return str(await self._call(peer, "submit", PROTOCOL, key, job))

    async def progress(self, peer: Peer, job: str) -> tuple[bytes, bytes]:
        """The job and its rounds, as JSON; raises NotFound too."""
        try:
            found = await self._call(peer, "progress", PROTOCOL, job)
        except compute_node.NotFound as error:
            raise NotFound(f"{peer.address}: {error.reason}") from None
        return found.job, found.rounds

    async def show(self, peer: Peer) -> bytes:
        return bytes(await self._call(peer, "show", PROTOCOL))

    async def reform(self, peer: Peer) -> None:
        await self._call(peer, "reform", PROTOCOL)

    async def _call(self, peer: Peer, name: str, *arguments: Any) -> Any:
        channel = self._channels.get(peer.address)
        if channel is None:
            host, _, port = peer.address.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 65536:
                raise Unreachable(f"expected an address such as 127.0.0.1:5001, came {peer.address!r}")
            channel = self._channels[peer.address] = Channel(training_node.TrainingNode, host, int(port), tls=self._tls)
        return await channel.call(name, *arguments, within=self._within)


def peer_at(address: str, incarnation: int = 0) -> Peer:
    """The peer of an address: its identifier follows from it."""
    return Peer(identifier(address), address, incarnation)


def require_version(protocol: int | None) -> None:
    """Raises Refused for a caller of another version."""
    if protocol != PROTOCOL:
        raise compute_node.Refused(f"this member speaks protocol {PROTOCOL}, the caller {protocol}: use one version")


def genuine(struct: Any) -> Peer:
    """A caller whose identifier is that of its address: nobody chooses its place; raises Refused."""
    if struct is None:
        raise compute_node.Refused("the call does not say who calls")
    peer = peer_from(struct)
    if peer.id != identifier(peer.address):
        raise compute_node.Refused(f"the identifier {peer.id:x} is not that of {peer.address!r}")
    return peer


def _part(path: Any, offset: int) -> tuple[int, bytes]:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, min(offset, size)))
        return size, file.read(CHUNK)
