"""The ComputeNode service: a member of a ring and its blobs, as Thrift calls; and the same calls made to others."""

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tutti.adapters.blobs.held import HeldBlobs
from tutti.adapters.blobs.pieces import Pieces
from tutti.adapters.thrift.client import Channel, UnknownCall, Unreachable
from tutti.adapters.thrift.idl import (
    CHUNK,
    PROTOCOL,
    BadValue,
    compute_node,
    is_address,
    key_bytes,
    key_from,
    peer_from,
    peer_struct,
    training_node,
    view_from,
    view_struct,
)
from tutti.adapters.thrift.tls import caller, names
from tutti.core.errors import Conflict, NotFound, TuttiError
from tutti.domain.events import Digest
from tutti.ports.blobs import TooLarge
from tutti.ports.ring import Placement
from tutti.ring.identifiers import Peer, identifier
from tutti.ring.member import View

log = logging.getLogger(__name__)

MAX_UPLOADS = 64
SILENT = 60.0
WINDOW = 8
"""Parts of a blob that are on their way to a member at a time."""

MAX_DIGESTS = 4096

IDLE = 60.0
"""Seconds after which a channel that nobody uses is closed: members come and go, and strangers make addresses up."""


class Host(Protocol):
    """Whose calls these are; services.ring.RingMember is one."""

    async def asked(self, key: int, asker: Peer | None) -> View | None: ...
    async def told(self, peer: Peer) -> None: ...


class ComputeNode:
    """The handler of the service.

    Args:
        limit: The largest blob that may be stored, in bytes.
        members: Addresses that may be members; empty if any may.
    """

    def __init__(
        self, host: Host, blobs: HeldBlobs, *, limit: int = 2**31, members: Collection[str] = frozenset()
    ) -> None:
        self._host, self._blobs, self._limit, self._members = host, blobs, limit, members
        self._uploads: dict[Digest, Upload] = {}  # the longest silent first

    async def ask(self, protocol: int | None, key: bytes | None, asker: Any) -> Any:
        require_version(protocol)
        view = await self._host.asked(key_from(key), None if asker is None else reachable(asker, self._members))
        if view is None:
            raise compute_node.NotMember("this process has not joined the ring yet")
        return view_struct(view)

    async def tell(self, protocol: int | None, peer: Any) -> None:
        require_version(protocol)
        await self._host.told(reachable(peer, self._members))

    async def missing(self, digests: list[bytes] | None) -> list[bytes]:
        if len(digests or ()) > MAX_DIGESTS:
            raise compute_node.Refused(f"one call may name {MAX_DIGESTS} blobs, this one names {len(digests or ())}")
        return [digest for digest in digests or () if not self._blobs.has(digest.hex())]

    async def fetch(self, digest: bytes | None, offset: int | None) -> Any:
        try:
            return compute_node.Part(*await self._blobs.part((digest or b"").hex(), offset or 0, CHUNK))
        except TuttiError as error:
            raise compute_node.NotFound(str(error)) from None

    async def store(self, digest: bytes | None, size: int | None, offset: int | None, data: bytes | None) -> None:
        name, size, offset, data = (digest or b"").hex(), size or 0, offset or 0, data or b""
        if not 0 <= offset <= offset + len(data) <= size or len(data) > CHUNK:
            came = f"{len(data)} bytes at {offset} of {size}"
            raise compute_node.Refused(f"expected at most {CHUNK} bytes within the blob, came {came}")
        try:
            if not self._blobs.has(name) and await self._upload(name, size, offset).take(offset, data):
                self._uploads.pop(name, None)
        except TuttiError as error:
            self._give_up(name)
            raise compute_node.Refused(str(error)) from None

    def _upload(self, name: Digest, size: int, offset: int) -> Pieces:
        """All uploads of a blob are one: whoever sends next continues it, or begins it again. Raises Conflict."""
        now = asyncio.get_running_loop().time()
        upload = self._uploads.pop(name, None)
        if upload is not None and offset == 0:
            upload.pieces.give_up()
            upload = None
        if upload is None:
            if size > self._limit:
                raise TooLarge(f"at most {self._limit} bytes are allowed here, {size} were announced")
            self._make_room(now)
            upload = Upload(self._blobs.pieces(name, size), now)
        upload.heard_at = now
        self._uploads[name] = upload
        return upload.pieces

    def _make_room(self, now: float) -> None:
        """For one more upload, which may displace a silent one; raises Conflict."""
        if len(self._uploads) < MAX_UPLOADS:
            return
        silent, upload = next(iter(self._uploads.items()))
        if now - upload.heard_at < SILENT:
            raise Conflict(f"{MAX_UPLOADS} uploads are under way here: try again in {SILENT:g} s")
        self._give_up(silent)

    def _give_up(self, name: Digest) -> None:
        if (upload := self._uploads.pop(name, None)) is not None:
            upload.pieces.give_up()


@dataclass(slots=True, eq=False)
class Upload:
    pieces: Pieces
    heard_at: float


class ThriftPeers:
    """ports.ring.Peers over Thrift, and blobs from and to other members.

    Args:
        within: Seconds for one call. A peer that takes longer counts as dead.
        clock: Seconds, of a clock that does not go back.

    Attributes:
        chain: The ring of this member, as in a View. To it, members of another ring in use are as good as dead.
    """

    def __init__(
        self, *, within: float = 1.0, tls: ssl.SSLContext | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._within, self._tls, self._clock = within, tls, clock
        self.chain: Callable[[], str] = lambda: ""
        self._channels: dict[str, tuple[Channel, float]] = {}  # and since when unused; the longest first
        self._refusals: dict[str, str] = {}

    async def ask(self, peer: Peer, key: int, asker: Peer | None) -> View | None:
        view = await self.view(peer, key, asker)
        return None if view is None or apart(view.chain, self.chain()) else view

    async def view(self, peer: Peer, key: int, asker: Peer | None = None) -> View | None:
        """As `ask`, also of a member of another ring."""
        struct = None if asker is None else peer_struct(asker)
        try:
            view = view_from(await self._call(peer, "ask", PROTOCOL, key_bytes(key), struct))
        except (Unreachable, UnknownCall, BadValue, compute_node.NotMember):
            return None
        except compute_node.Refused as refused:
            self._note(peer, refused.reason)
            return None
        return view if view.peer.id == peer.id else None

    async def tell(self, peer: Peer, me: Peer) -> None:
        try:
            await self._call(peer, "tell", PROTOCOL, peer_struct(me))
        except (Unreachable, UnknownCall):
            return  # whoever did not hear it asks, or is asked, in the next round
        except compute_node.Refused as refused:
            self._note(peer, refused.reason)

    def _note(self, peer: Peer, reason: str) -> None:
        """Say once that a member refuses this one: it will not be in the ring."""
        if self._refusals.get(peer.address) != reason:
            self._refusals[peer.address] = reason
            log.error("%s refuses this member: %s", peer.address, reason)

    async def refusal(self, peer: Peer) -> str | None:
        """Why the peer refuses whoever speaks this version; empty if it does not, None if it gives no answer."""
        try:
            await self._call(peer, "ask", PROTOCOL, key_bytes(peer.id), None)
        except (Unreachable, UnknownCall, compute_node.NotMember):
            return None
        except compute_node.Refused as refused:
            return str(refused.reason)
        return ""

    async def is_member(self, peer: Peer) -> bool | None:
        """Whether it is in a ring; None if it cannot be reached, or refuses."""
        try:
            await self._call(peer, "ask", PROTOCOL, key_bytes(peer.id), None)
        except compute_node.NotMember:
            return False
        except (Unreachable, UnknownCall, compute_node.Refused):
            return None
        return True

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
        view = memoryview(data)
        offsets = iter(range(0, max(len(view), 1), CHUNK))

        async def send() -> None:
            for offset in offsets:
                part = view[offset : offset + CHUNK]
                await self._call(peer, "store", digest, len(view), offset, part)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(WINDOW, -(-len(view) // CHUNK) or 1)):
                    group.create_task(send())
        except BaseExceptionGroup as failed:  # the others follow from the first
            raise failed.exceptions[0] from None

    async def close(self) -> None:
        for channel, _ in [*self._channels.values()]:
            await channel.close()

    # -- training: these raise Unreachable, UnknownCall, compute_node.Refused, training_node.NotNow ----------

    async def agree(self, peer: Peer, me: Peer, message: bytes) -> None:
        await self._call(peer, "agree", PROTOCOL, peer_struct(me), message)

    async def attach(self, peer: Peer, me: Peer, session: int, registration: bytes) -> None:
        await self._call(peer, "attach", PROTOCOL, peer_struct(me), session, registration)

    async def say(self, peer: Peer, session: int, message: bytes) -> None:
        await self._call(peer, "say", session, message)

    async def leave(self, peer: Peer, session: int) -> None:
        await self._call(peer, "leave", session)

    async def hear(self, peer: Peer, me: Peer, session: int, message: bytes) -> None:
        await self._call(peer, "hear", peer_struct(me), session, message)

    async def over(self, peer: Peer, me: Peer, session: int, reason: str, *, replaced: bool) -> None:
        await self._call(peer, "over", peer_struct(me), session, reason, replaced)

    async def keep(self, peer: Peer, placement: Placement, digests: Sequence[Digest]) -> list[Digest]:
        struct = training_node.Placement(placement.name, placement.content, placement.at)
        lacking = await self._call(peer, "keep", PROTOCOL, struct, [bytes.fromhex(digest) for digest in digests])
        return [digest.hex() for digest in lacking]

    async def kept(
        self, peer: Peer, placement: Placement, digests: Sequence[Digest]
    ) -> tuple[list[Digest], tuple[Peer, ...]]:
        """Raises BadValue too."""
        struct = training_node.Placement(placement.name, placement.content, placement.at)
        word = await self._call(peer, "kept", PROTOCOL, struct, [bytes.fromhex(digest) for digest in digests])
        return [digest.hex() for digest in word.safe], tuple(map(peer_from, word.holders))

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
        await self._close_idle()
        if peer.address in self._channels:
            channel, _ = self._channels.pop(peer.address)
        else:
            channel = self._channel(peer.address)
        self._channels[peer.address] = channel, self._clock()
        return await channel.call(name, *arguments, within=self._within)

    def _channel(self, address: str) -> Channel:
        if not is_address(address):
            raise Unreachable(f"expected an address such as 127.0.0.1:5001, came {address!r}")
        host, _, port = address.rpartition(":")
        return Channel(training_node.TrainingNode, host, int(port), tls=self._tls)

    async def _close_idle(self) -> None:
        """Those on which no call can be under way any more."""
        before = self._clock() - IDLE - self._within
        while self._channels:
            address, (channel, used_at) = next(iter(self._channels.items()))
            if used_at >= before:
                return
            del self._channels[address]
            self._refusals.pop(address, None)
            await channel.close()


def apart(one: str, other: str) -> bool:
    """Whether two chains, as in a View, are those of two rings that have been used: they never become one."""
    return bool(one and other) and one != other


def peer_at(address: str, incarnation: int = 0) -> Peer:
    """The peer of an address: its identifier follows from it."""
    return Peer(identifier(address), address, incarnation)


def require_version(protocol: int | None) -> None:
    """Raises Refused for a caller of another version."""
    if protocol != PROTOCOL:
        raise compute_node.Refused(f"this member speaks protocol {PROTOCOL}, the caller {protocol}: use one version")


def reachable(struct: Any, members: Collection[str]) -> Peer:
    """A genuine caller that wants a place in the ring, so that others can call it; raises Refused."""
    if struct is not None and not is_address(address := peer_from(struct).address):
        raise compute_node.Refused(f"expected an address such as 127.0.0.1:5001, came {address!r}")
    return genuine(struct, members)


def genuine(struct: Any, members: Collection[str]) -> Peer:
    """A caller that is who it says; raises Refused.

    Its identifier is that of its address: nobody chooses its place. The address is one of `members`, if there are any.
    If callers show certificates, its own is for the host of this address.
    """
    if struct is None:
        raise compute_node.Refused("the call does not say who calls")
    peer = peer_from(struct)
    if peer.id != identifier(peer.address):
        raise compute_node.Refused(f"the identifier {peer.id:x} is not that of {peer.address!r}")
    if members and peer.address not in members:
        raise compute_node.Refused(f"{peer.address} is not among the {len(members)} of the members file: add it there")
    certificate = caller.get()
    if certificate is not None and not names(certificate, peer.address.rpartition(":")[0]):
        raise compute_node.Refused(f"the caller's certificate is not for the host of {peer.address!r}")
    return peer
