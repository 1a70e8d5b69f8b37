"""The TrainingNode service: what members say to one another while they train, and what clients ask of them."""

import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from mmap import mmap
from typing import Any, Protocol

import msgspec

from tutti.adapters.blobs.held import HeldBlobs
from tutti.adapters.thrift.client import UnknownCall, Unreachable
from tutti.adapters.thrift.idl import BadValue, compute_node, peer_struct, training_node
from tutti.adapters.thrift.node import MAX_DIGESTS, ComputeNode, ThriftPeers, genuine, peer_at, require_version
from tutti.adapters.thrift.node import Host as RingHost
from tutti.core.errors import Conflict, CorruptBlob, NotFound, StorageError, TuttiError
from tutti.domain.events import Digest
from tutti.ports import LinkLost
from tutti.ports.blobs import Buffer, check_digest
from tutti.ports.ring import Placement
from tutti.ring.consensus import AnyMessage
from tutti.ring.identifiers import Peer

log = logging.getLogger(__name__)


class Host(RingHost, Protocol):
    """Whose calls these are; apps.ringnode.RingNode is one. A TuttiError that it raises is told to the caller."""

    async def agree(self, message: AnyMessage) -> None: ...
    async def attach(self, address: str, session: int, frame: bytes) -> None: ...
    async def say(self, session: int, frame: bytes) -> None: ...
    def leave(self, session: int) -> None: ...
    def hear(self, leader: str, session: int, frame: bytes) -> None: ...
    def over(self, leader: str, session: int, reason: str, *, replaced: bool) -> None: ...
    async def keep(self, placement: Placement, digests: list[Digest]) -> list[Digest]: ...
    async def kept(self, placement: Placement, digests: list[Digest]) -> tuple[list[Digest], tuple[Peer, ...]]: ...
    async def submit(self, key: str, job: bytes) -> str: ...
    async def progress(self, job: str) -> tuple[bytes, bytes]: ...
    def show(self) -> bytes: ...
    async def reform(self) -> None: ...


class TrainingNode(ComputeNode):
    """The handler of the service."""

    def __init__(
        self, host: Host, blobs: HeldBlobs, *, limit: int = 2**31, members: Collection[str] = frozenset()
    ) -> None:
        super().__init__(host, blobs, limit=limit, members=members)
        self._trains = host

    async def agree(self, protocol: int | None, sender: Any, message: bytes | None) -> None:
        require_version(protocol)
        said = message_from(message or b"")
        if said.sender != genuine(sender, self._members).address:
            raise compute_node.Refused(f"the message is said to be of {said.sender!r}, {sender.address!r} calls")
        await self._trains.agree(said)

    async def attach(self, protocol: int | None, sender: Any, session: int | None, registration: bytes | None) -> None:
        require_version(protocol)
        peer = genuine(sender, self._members)
        with _refusing(), _later():
            await self._trains.attach(peer.address, session or 0, registration or b"")

    async def say(self, session: int | None, message: bytes | None) -> None:
        with _refusing(), _later():
            await self._trains.say(session or 0, message or b"")

    async def leave(self, session: int | None) -> None:
        self._trains.leave(session or 0)

    async def hear(self, leader: Any, session: int | None, message: bytes | None) -> None:
        peer = genuine(leader, self._members)
        with _refusing(), _later():
            self._trains.hear(peer.address, session or 0, message or b"")

    async def over(self, leader: Any, session: int | None, reason: str | None, replaced: bool | None) -> None:
        peer = genuine(leader, self._members)
        self._trains.over(peer.address, session or 0, reason or "", replaced=bool(replaced))

    async def keep(self, protocol: int | None, placement: Any, digests: list[bytes] | None) -> list[bytes]:
        require_version(protocol)
        with _refusing():
            lacking = await self._trains.keep(*_parts(placement, digests))
        return [bytes.fromhex(digest) for digest in lacking]

    async def kept(self, protocol: int | None, placement: Any, digests: list[bytes] | None) -> Any:
        require_version(protocol)
        with _refusing():
            safe, holders = await self._trains.kept(*_parts(placement, digests))
        return training_node.Kept([bytes.fromhex(digest) for digest in safe], list(map(peer_struct, holders)))

    async def submit(self, protocol: int | None, key: str | None, job: bytes | None) -> str:
        require_version(protocol)
        with _refusing(), _later():
            return await self._trains.submit(key or "", job or b"")

    async def progress(self, protocol: int | None, job: str | None) -> Any:
        require_version(protocol)
        try:
            return training_node.Progress(*await self._trains.progress(job or ""))
        except NotFound as error:
            raise compute_node.NotFound(str(error)) from None

    async def show(self, protocol: int | None) -> bytes:
        require_version(protocol)
        return self._trains.show()

    async def reform(self, protocol: int | None) -> None:
        require_version(protocol)
        with _refusing():
            await self._trains.reform()


def _parts(placement: Any, digests: list[bytes] | None) -> tuple[Placement, list[Digest]]:
    """Raises BadValue, BadDigest, and Conflict for too many."""
    if placement is None:
        raise BadValue("the call does not say of which data set the parts are")
    names = [digest.hex() for digest in digests or ()]
    if len(names) > MAX_DIGESTS:
        raise Conflict(f"one call may name {MAX_DIGESTS} parts, this one names {len(names)}")
    for name in (placement.content, *names):
        check_digest(name)
    return Placement(placement.name, placement.content, placement.at), names


@contextmanager
def _refusing() -> Iterator[None]:
    """Tells the caller why its call cannot be carried out."""
    try:
        yield
    except TuttiError as error:
        raise compute_node.Refused(str(error)) from None


@contextmanager
def _later() -> Iterator[None]:
    """Tells the caller to ask again, where that will help."""
    try:
        yield
    except (LinkLost, StorageError) as error:
        raise training_node.NotNow(str(error)) from None


def message_from(data: bytes) -> AnyMessage:
    """A message of agreement; raises BadValue."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadValue(f"not a message of agreement: {error}") from None


_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


class ThriftVoices:
    """ports.ring.Voices over Thrift. `lost` hears of addresses that take no connections."""

    def __init__(self, me: Peer, peers: ThriftPeers) -> None:
        self.me, self._peers = me, peers
        self.lost: Callable[[str], None] = lambda address: None

    async def agree(self, address: str, message: AnyMessage) -> None:
        try:
            await self._peers.agree(peer_at(address), self.me, msgspec.msgpack.encode(message))
        except Unreachable as error:
            if error.refused:
                self.lost(address)
        except (UnknownCall, compute_node.Refused) as error:
            log.warning("%s refuses a message of agreement: %s", address, getattr(error, "reason", error))


class ThriftKeepers:
    """ports.ring.Keepers over Thrift. `read`: the bytes of a blob that is here."""

    def __init__(self, peers: ThriftPeers, read: Callable[[Digest], Awaitable[Buffer | mmap]]) -> None:
        self._peers, self._read = peers, read

    async def keep(self, peer: Peer, placement: Placement, digests: Sequence[Digest]) -> list[Digest] | None:
        try:
            return await self._peers.keep(peer, placement, digests)
        except NO_ANSWER:
            return None

    async def give(self, peer: Peer, digest: Digest) -> bool:
        try:
            await self._peers.store(peer, bytes.fromhex(digest), memoryview(await self._read(digest)))
        except (*NO_ANSWER, NotFound, CorruptBlob):
            return False
        return True

    async def kept(
        self, peer: Peer, placement: Placement, digests: Sequence[Digest]
    ) -> tuple[list[Digest], tuple[Peer, ...]] | None:
        try:
            return await self._peers.kept(peer, placement, digests)
        except NO_ANSWER:
            return None


NO_ANSWER = (Unreachable, UnknownCall, BadValue, compute_node.Refused)
