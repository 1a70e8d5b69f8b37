"""A member's blobs, and those of the others: what is not here is fetched by its digest from whoever has it."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from tutti.adapters.blobs import handover
from tutti.adapters.blobs.held import HeldBlobs
from tutti.adapters.thrift.client import UnknownCall, Unreachable
from tutti.adapters.thrift.idl import CHUNK, compute_node
from tutti.adapters.thrift.node import ThriftPeers, peer_at
from tutti.core.errors import CorruptBlob, NotFound
from tutti.domain.events import Digest
from tutti.ports.blobs import Buffer, Mapped
from tutti.wire import tensors

log = logging.getLogger(__name__)

STRIPES = 4
"""Members from which the parts of one blob are fetched at a time."""

AT_ONCE = 2
"""Parts that are asked of one of them at a time."""

LARGEST = 1 << 31
"""Bytes of a blob that is fetched."""

GIVEN = 1000
"""Newest blobs that are remembered as given, so that they are not given twice."""

AWAY = (Unreachable, UnknownCall)
UNAVAILABLE = (*AWAY, NotFound, compute_node.Refused, compute_node.NotFound)


class HolderAway(NotFound):
    """No member that answers has the blob, and one that does not answer may have it."""


class RingBlobs:
    """The BlobStore of the member `me`. `holders`: others that may have a blob, the likeliest first."""

    def __init__(self, me: str, here: HeldBlobs, peers: ThriftPeers, holders: Callable[[], list[str]]) -> None:
        self.me, self.here, self._peers, self._holders = me, here, peers, holders
        self.sent = self.resent = 0
        """Bytes given to other members, and those of them that had been given to some before."""
        self._given: dict[Digest, set[str]] = {}

    async def put(self, data: Buffer, *, digest: Digest | None = None, sync: bool = True) -> Digest:
        return await self.here.put(data, digest=digest, sync=sync)

    async def read(self, digest: Digest) -> Mapped:
        try:
            return await self.here.read(digest)
        except CorruptBlob:
            await self.here.delete(digest)
        except NotFound:
            pass
        await self.obtain(digest)
        return await self.here.read(digest)

    async def size(self, digest: Digest) -> int:
        await self.obtain(digest)
        return await self.here.size(digest)

    @asynccontextmanager
    async def file(self, digest: Digest) -> AsyncIterator[Path]:
        await self.obtain(digest)
        async with self.here.file(digest) as path:
            yield path

    async def delete(self, *digests: Digest) -> None:
        await self.here.delete(*digests)

    async def digests(self) -> list[Digest]:
        """None: what a leader does not know of yet may be an update of the open round. Members tidy up by record."""
        return []

    async def obtain(self, digest: Digest, *, spare: bool = True) -> None:
        """Have the blob here; raises NotFound if no member has it, HolderAway if one may, CorruptBlob.

        One that is not `spare` stays until it is deleted, whatever else is fetched.
        """
        if self.here.has(digest):
            return
        for address in self._holders():
            with suppress(CorruptBlob):
                if (mapped := await handover.take(address, digest)) is not None:
                    await self.here.hold(digest, mapped, spare=spare)
                    return
        await self.here.hold(digest, await collect(self._peers, self._holders(), digest), spare=spare)

    async def obtain_update(self, digest: Digest) -> None:
        """As `obtain`; it is read more than once until its round is closed, and deleted then."""
        await self.obtain(digest, spare=False)

    async def spread(self, digest: Digest, data: Buffer, to: list[str], copies: int) -> int:
        """Store a blob at so many of the members that can be reached, the first ones; how many have it then."""
        candidates = iter(to)
        given = self._given.pop(digest, set())
        parcel = _Parcel(digest, data, again=bool(given))

        async def place() -> int:
            for address in candidates:
                if await self._give(address, parcel):
                    given.add(address)
                    return 1
            return 0

        try:
            return sum(await asyncio.gather(*(place() for _ in range(copies))))
        finally:
            parcel.close()
            self._given[digest] = given
            if len(self._given) > GIVEN:
                del self._given[next(iter(self._given))]

    async def still_held(self, digest: Digest, to: Sequence[str]) -> bool:
        """Whether one of these was given the blob by this member, and has it still: the others can fetch it there."""
        given = self._given.get(digest, ())
        asks = [asyncio.create_task(self.lacked(address, [digest])) for address in to if address in given]
        try:
            for ask in asyncio.as_completed(asks):
                with suppress(*AWAY):
                    if not await ask:
                        return True
            return False
        finally:
            for task in asks:
                task.cancel()

    async def given(self, others: Sequence[str], digests: Sequence[Digest], *, silent: float) -> dict[str, bool]:
        """Of these members, those who live, and whether they have any of the blobs.

        Who gives no answer may be busy with them, for so many seconds.
        """
        began = time.monotonic()

        async def has(other: str) -> bool | None:
            try:
                return await self.lacked(other, digests) < len(digests)
            except (*AWAY, compute_node.Refused) as error:
                gone = isinstance(error, Unreachable) and error.refused
                return None if gone or time.monotonic() - began > silent else True

        answers = zip(others, await asyncio.gather(*map(has, others)), strict=True)
        return {other: answer for other, answer in answers if answer is not None}

    async def lacked(self, address: str, digests: Sequence[Digest]) -> int:
        """How many of these blobs a member, which may be the one here, has not; raises Unreachable, UnknownCall."""
        if address == self.me:
            return sum(not self.here.has(digest) for digest in digests)
        return len(await self._peers.missing(peer_at(address), [bytes.fromhex(digest) for digest in digests]))

    async def _give(self, address: str, parcel: "_Parcel") -> bool:
        """Whether the member, which may be the one here, has the blob now; raises CorruptBlob."""
        if address == self.me:
            await self.here.hold(parcel.digest, parcel.data)
            return True
        peer, name = peer_at(address), bytes.fromhex(parcel.digest)
        try:
            if await self._peers.missing(peer, [name]):
                if not await parcel.handed_over(address):
                    await self._peers.store(peer, name, memoryview(parcel.data))
                self.sent += len(parcel.data)
                self.resent += len(parcel.data) if parcel.again else 0
        except AWAY:
            return False
        except compute_node.Refused as refused:
            if (came := await asyncio.to_thread(tensors.digest, parcel.data)) != parcel.digest:
                raise CorruptBlob(f"expected bytes with digest {parcel.digest}, came {came}") from None
            log.warning("%s takes no blob now: %s", address, refused.reason)
            return False
        return True


class _Parcel:
    """A blob on its way to several members: those on this machine are handed one file.

    `again`: it was given to some before.
    """

    def __init__(self, digest: Digest, data: Buffer, *, again: bool) -> None:
        self.digest, self.data, self.again = digest, data, again
        self._sealed: handover.Sealed | None = None
        self._turn = asyncio.Lock()

    async def handed_over(self, address: str) -> bool:
        """Whether the member has it now; False if it has to be sent."""
        if len(self.data) < handover.LARGE or not await handover.near(address):
            return False
        async with self._turn:
            if self._sealed is None:
                self._sealed = await asyncio.to_thread(handover.sealed, self.data)
        try:
            await handover.give(address, self.digest, self._sealed)
        except (OSError, handover.NotHandedOver) as error:
            log.warning("sending blob %s, which could not be handed over: %s", self.digest, error)
            return False
        return True

    def close(self) -> None:
        if self._sealed is not None:
            self._sealed.close()


async def collect(peers: ThriftPeers, holders: list[str], digest: Digest) -> memoryview:
    """A blob's bytes, its parts from several holders at a time, verified.

    If some holder's bytes are wrong, all is fetched from one holder after another. Raises NotFound if none has it,
    HolderAway if one that does not answer may, CorruptBlob.
    """
    number, first = await _first(peers, holders, digest)
    blob = await _filled(peers, holders[number : number + STRIPES], digest, first)
    wrong = [] if await _is(blob, digest) else holders[number:]
    for address in wrong:
        with suppress(NotFound):
            blob = await _filled(peers, [address], digest, (await _first(peers, [address], digest))[1])
            if await _is(blob, digest):
                return blob
            log.warning("%s has other bytes under the name of blob %s", address, digest)
    if wrong:
        raise CorruptBlob(f"every copy of blob {digest} that can be reached is damaged: they were thrown away")
    return blob


async def _is(blob: memoryview, digest: Digest) -> bool:
    return await asyncio.to_thread(tensors.digest, blob) == digest


async def _first(peers: ThriftPeers, holders: list[str], digest: Digest) -> tuple[int, Any]:
    """The first of these that has the blob, and its first part; raises NotFound, HolderAway."""
    away = False
    for number, address in enumerate(holders):
        try:
            part = await peers.part(peer_at(address), bytes.fromhex(digest), 0)
        except UNAVAILABLE as error:
            away = away or isinstance(error, AWAY)
            continue
        if len(part.data) <= part.size <= LARGEST:
            return number, part
        log.warning("%s says that blob %s has %d bytes", address, digest, part.size)
    kind = HolderAway if away else NotFound
    raise kind(f"no member of the ring that can be reached has blob {digest}")


async def _filled(peers: ThriftPeers, holders: list[str], digest: Digest, first: Any) -> memoryview:
    """The blob of which the first part is there; raises HolderAway."""
    blob = np.empty(first.size, np.uint8).data  # a bytearray would be filled with zeros first
    blob[: len(first.data)] = first.data
    offsets = list(range(CHUNK, first.size, CHUNK))[::-1]

    async def take(address: str) -> None:
        while offsets and address in able:
            offset = offsets.pop()
            try:
                part = await peers.part(peer_at(address), bytes.fromhex(digest), offset)
                blob[offset : offset + CHUNK] = part.data
            except (*UNAVAILABLE, ValueError):  # it went away, or has another blob under this name
                offsets.append(offset)
                able.discard(address)

    able = set(holders)
    while offsets and able:  # what was asked of one that went away is asked of the others
        await asyncio.gather(*map(take, [*able] * AT_ONCE))
    if offsets:
        raise HolderAway(f"the members that have blob {digest} went away while it was fetched")
    return blob
