"""The TrainingNode service: what members say to one another while they train, and what clients ask of them."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec

from tutti.adapters.blobs.held import HeldBlobs
from tutti.adapters.thrift.client import UnknownCall, Unreachable
from tutti.adapters.thrift.idl import BadValue, compute_node, training_node
from tutti.adapters.thrift.node import ComputeNode, ThriftPeers, genuine, peer_at, require_version
from tutti.adapters.thrift.node import Host as RingHost
from tutti.core.errors import NotFound, TuttiError
from tutti.ring.consensus import AnyMessage
from tutti.ring.identifiers import Peer

log = logging.getLogger(__name__)


class Host(RingHost, Protocol):
    """Whose calls these are; apps.ringnode.RingNode is one. A TuttiError that it raises is told to the caller."""

    async def agree(self, message: AnyMessage) -> None: ...
    async def attach(self, address: str, session: int, frame: bytes) -> None: ...
    async def say(self, session: int, frame: bytes) -> None: ...
    def hear(self, leader: str, session: int, frame: bytes) -> None: ...
    async def place(self, digest: bytes) -> None: ...
    async def submit(self, key: str, job: bytes) -> str: ...
    async def progress(self, job: str) -> tuple[bytes, bytes]: ...
    def show(self) -> bytes: ...
    async def reform(self) -> None: ...


class TrainingNode(ComputeNode):
    """The handler of the service."""

    def __init__(self, host: Host, blobs: HeldBlobs, *, limit: int = 2**31) -> None:
        super().__init__(host, blobs, limit=limit)
        self._trains = host

    async def agree(self, protocol: int | None, sender: Any, message: bytes | None) -> None:
        require_version(protocol)
        said = message_from(message or b"")
        if said.sender != genuine(sender).address:
            raise compute_node.Refused(f"the message is said to be of {said.sender!r}, {sender.address!r} calls")
        await self._trains.agree(said)

    async def attach(self, protocol: int | None, sender: Any, session: int | None, registration: bytes | None) -> None:
        require_version(protocol)
        peer = genuine(sender)
        with _refusing():
            await self._trains.attach(peer.address, session or 0, registration or b"")

    async def say(self, session: int | None, message: bytes | None) -> None:
        with _refusing():
            await self._trains.say(session or 0, message or b"")

    async def hear(self, leader: Any, session: int | None, message: bytes | None) -> None:
        peer = genuine(leader)
        with _refusing():
            self._trains.hear(peer.address, session or 0, message or b"")

    async def place(self, protocol: int | None, digest: bytes | None) -> None:
        require_version(protocol)
        with _refusing():
            await self._trains.place(digest or b"")

    async def submit(self, protocol: int | None, key: str | None, job: bytes | None) -> str:
        require_version(protocol)
        with _refusing():
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


@contextmanager
def _refusing() -> Iterator[None]:
    """Tells the caller why its call cannot be carried out."""
    try:
        yield
    except TuttiError as error:
        raise compute_node.Refused(str(error)) from None


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
