"""The ComputeNode service: a member of a ring and its blobs, as Thrift calls; and the same calls made to others."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from typing import Any, Protocol

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
    view_from,
    view_struct,
)
from tutti.core.errors import NotFound, TuttiError
from tutti.ports import BlobStore
from tutti.ring.identifiers import Peer, identifier
from tutti.ring.member import View

MAX_UPLOADS = 8
MAX_DIGESTS = 4096


class Host(Protocol):
    """Whose calls these are; services.ring.RingMember is one."""

    async def asked(self, key: int, asker: Peer | None) -> View | None: ...
    async def told(self, peer: Peer) -> None: ...


class ComputeNode:
    """The handler of the service. `limit` is the largest blob that may be stored, in bytes."""

    def __init__(self, host: Host, blobs: BlobStore, *, limit: int = 2**31) -> None:
        self._host, self._blobs, self._limit = host, blobs, limit
        self._uploads: dict[bytes, _Upload] = {}

    async def ask(self, protocol: int | None, key: bytes | None, asker: Any) -> Any:
        _require(protocol)
        view = await self._host.asked(key_from(key), None if asker is None else _genuine(asker))
        if view is None:
            raise compute_node.NotMember("this process has not joined the ring yet")
        return view_struct(view)

    async def tell(self, protocol: int | None, peer: Any) -> None:
        _require(protocol)
        await self._host.told(_genuine(peer))

    async def missing(self, digests: list[bytes] | None) -> list[bytes]:
        if len(digests or ()) > MAX_DIGESTS:
            raise compute_node.Refused(f"one call may name {MAX_DIGESTS} blobs, this one names {len(digests or ())}")
        here = set(await self._blobs.digests())
        return [digest for digest in digests or () if digest.hex() not in here]

    async def fetch(self, digest: bytes | None, offset: int | None) -> Any:
        try:
            path = await self._blobs.path((digest or b"").hex())
        except TuttiError as error:
            raise compute_node.NotFound(str(error)) from None
        size, data = await asyncio.to_thread(_part, path, offset or 0)
        return compute_node.Part(size, data)

    async def store(self, digest: bytes | None, size: int | None, offset: int | None, data: bytes | None) -> None:
        digest, size, offset, data = digest or b"", size or 0, offset or 0, data or b""
        if not 0 <= size <= self._limit or len(data) > CHUNK:
            limits = f"a blob may have {self._limit} bytes and a call {CHUNK} of them"
            raise compute_node.Refused(f"{limits}, came {len(data)} of {size}")
        if offset == 0:
            await self._begin(digest, size)
        upload = self._uploads.get(digest)
        if upload is None or upload.size != size or upload.come != offset or offset + len(data) > size:
            expected = "offset 0" if upload is None else f"offset {upload.come} of {upload.size} bytes"
            raise compute_node.Refused(f"expected {expected}, came {len(data)} bytes at offset {offset} of {size}")
        try:
            if await upload.take(data):
                del self._uploads[digest]
        except TuttiError as error:
            self._uploads.pop(digest, None)
            raise compute_node.Refused(str(error)) from None

    async def close(self) -> None:
        """Give unfinished uploads up."""
        for upload in self._uploads.values():
            await upload.cancel()
        self._uploads.clear()

    async def _begin(self, digest: bytes, size: int) -> None:
        """Begin an upload, or begin it anew; of too many, the one that began first is given up."""
        oldest = list(self._uploads)[: max(0, len(self._uploads) - MAX_UPLOADS + 1)]
        stale = [digest] if digest in self._uploads else oldest
        for each in stale:
            await self._uploads.pop(each).cancel()
        self._uploads[digest] = _Upload(self._blobs, digest.hex(), size)


class _Upload:
    """Chunks on their way into the blob store, one at a time."""

    def __init__(self, blobs: BlobStore, digest: str, size: int) -> None:
        self.size, self.come = size, 0
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self._storing = asyncio.create_task(blobs.put(self._stream(), digest=digest, limit=size))

    async def take(self, data: bytes) -> bool:
        """Whether that was the last chunk, and the blob is stored; raises what the store raises."""
        self.come += len(data)
        last = self.come == self.size
        for chunk in (data, None) if last else (data,):
            putting = asyncio.create_task(self._chunks.put(chunk))
            await asyncio.wait((putting, self._storing), return_when=asyncio.FIRST_COMPLETED)
            if not putting.done():
                putting.cancel()
        if last or self._storing.done():
            await self._storing
        return last

    async def cancel(self) -> None:
        self._storing.cancel()
        await asyncio.wait([self._storing])

    async def _stream(self) -> AsyncIterator[bytes]:
        while (chunk := await self._chunks.get()) is not None:
            yield chunk


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
            try:
                part = await self._call(peer, "fetch", digest, offset)
            except compute_node.NotFound as error:
                raise NotFound(f"{peer.address}: {error.reason}") from None
            if part.size > offset and not part.data:
                raise Unreachable(f"{peer.address} sends no more than {offset} of {part.size} bytes")
            size, offset = part.size, offset + len(part.data)
            yield part.data

    async def store(self, peer: Peer, digest: bytes, data: bytes | memoryview) -> None:
        """Store a blob at a peer; raises compute_node.Refused, Unreachable."""
        for offset in range(0, max(len(data), 1), CHUNK):
            await self._call(peer, "store", digest, len(data), offset, bytes(data[offset : offset + CHUNK]))

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()

    async def _call(self, peer: Peer, name: str, *arguments: Any) -> Any:
        channel = self._channels.get(peer.address)
        if channel is None:
            host, _, port = peer.address.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 65536:
                raise Unreachable(f"expected an address such as 127.0.0.1:5001, came {peer.address!r}")
            channel = self._channels[peer.address] = Channel(compute_node.ComputeNode, host, int(port), tls=self._tls)
        return await channel.call(name, *arguments, within=self._within)


def peer_at(address: str, incarnation: int = 0) -> Peer:
    """The peer of an address: its identifier follows from it."""
    return Peer(identifier(address), address, incarnation)


def _require(protocol: int | None) -> None:
    if protocol != PROTOCOL:
        raise compute_node.Refused(f"this member speaks protocol {PROTOCOL}, the caller {protocol}: use one version")


def _genuine(struct: Any) -> Peer:
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
