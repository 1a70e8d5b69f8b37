"""What a member of a ring trains on: data of its own, or those parts of what was placed on the ring that it owns."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from tutti.adapters.blobs.held import HeldBlobs
from tutti.adapters.datasets import parts
from tutti.adapters.thrift.node import ThriftPeers
from tutti.adapters.thrift.training import ThriftKeepers
from tutti.apps.nodes import load_data
from tutti.core.errors import Conflict, CorruptBlob, Forbidden, NotFound, StorageError
from tutti.core.registry import Choice
from tutti.domain.events import Digest
from tutti.ports.ring import Placement
from tutti.ports.training import Data
from tutti.ring.identifiers import Peer
from tutti.services.placing import Keeper
from tutti.services.ring import RingMember

log = logging.getLogger(__name__)

LOOK_EVERY = 0.1
SETTLED = 5
"""Looks for which what it owns must stay the same, and its node be idle, before it is loaded anew."""

PATIENCE = 100
"""Looks after which a node that is never idle has to begin again."""


class Kept(msgspec.Struct, frozen=True):
    """The shelf on disk."""

    placement: Placement
    digests: tuple[Digest, ...]


class MemberData:
    """`data` is what there is to train on, None for nothing; `changed` is set whenever it is another.

    Args:
        own: Data of the member's own; None for what is placed on the ring.
        busy: Whether the node works at something just now.
    """

    def __init__(
        self, folder: Path, own: Choice | None, blobs: HeldBlobs, peers: ThriftPeers, busy: Callable[[], bool]
    ) -> None:
        self._file, self._own, self._blobs, self._busy = folder / "shelf.json", own, blobs, busy
        self._peers = ThriftKeepers(peers, blobs.read)
        self.keeper: Keeper | None = None
        self.data: Data | None = None
        self.changed = asyncio.Event()
        self.wanted: frozenset[Digest] = frozenset()
        """The shelf, and what is said to come: who places parts names them first, and they may take a while."""
        self._placement = ""
        self._turn = asyncio.Lock()

    async def load(self) -> None:
        """Data of the member's own; raises UserError."""
        if self._own is not None:
            self._set(await asyncio.to_thread(load_data, self._own))

    def join(self, ring: RingMember) -> None:
        """Raises StorageError for a shelf that cannot be read."""
        try:
            kept = msgspec.json.decode(self._file.read_bytes(), type=Kept) if self._file.exists() else None
        except (OSError, msgspec.MsgspecError) as error:
            raise StorageError(
                f"cannot read {self._file}: {error}; remove it, and others send its parts anew"
            ) from None
        if kept is not None:
            self.wanted, self._placement = frozenset(kept.digests), kept.placement.content
        if self._own is not None:
            return
        here = tuple(digest for digest in kept.digests if self._blobs.has(digest)) if kept else ()
        self.keeper = Keeper(
            ring,
            self._peers,
            kept.placement if kept else None,
            here,
            have=self._blobs.laid_down,
            save=self._save,
            forget=self._forget,
        )

    async def run(self) -> None:
        """Until cancelled."""
        if self.keeper is None:
            await asyncio.Event().wait()
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self.keeper.run())
            group.create_task(self._follow(self.keeper))

    async def _follow(self, keeper: Keeper) -> None:
        loaded: tuple[Digest, ...] = ()
        wanted, looks = loaded, 0
        while True:
            await asyncio.sleep(LOOK_EVERY)
            owned = keeper.owned
            wanted, looks = (owned, looks + 1) if owned == wanted else (owned, 0)
            ready = looks >= SETTLED and (not self._busy() or looks >= PATIENCE)
            if wanted != loaded and ready and (blobs := await self._read(keeper, wanted)) is not None:
                self._set(await self._joined(blobs))
                loaded = wanted

    async def _joined(self, blobs: list[memoryview]) -> Data | None:
        try:
            return await asyncio.to_thread(parts.joined, blobs) if blobs else None
        except parts.BadPart as error:
            log.error("what was placed on this ring cannot be trained on: %s", error)
            return None

    async def _read(self, keeper: Keeper, digests: Sequence[Digest]) -> list[memoryview] | None:
        """These parts; None if one is gone or damaged. It is kept no more then, until others bring it again."""
        read: list[memoryview] = []
        lost: set[Digest] = set()
        for digest in digests:
            try:
                read.append(memoryview(await self._blobs.read(digest)))
            except (NotFound, CorruptBlob) as error:
                log.warning("a part of the data is lost here: %s", error)
                lost.add(digest)
        if lost:
            await keeper.lose(lost)
        return None if lost else read

    def _set(self, data: Data | None) -> None:
        self.data = data
        self.changed.set()

    async def keep(self, placement: Placement, digests: Sequence[Digest]) -> list[Digest]:
        async with self._turn:
            lacking = await self._shelf().keep(placement, digests)
            same = self._placement == placement.content
            self._placement, self.wanted = placement.content, (self.wanted if same else frozenset()).union(digests)
        return lacking

    async def kept(self, digests: Sequence[Digest]) -> tuple[list[Digest], tuple[Peer, ...]]:
        return self._shelf().kept(digests)

    def _shelf(self) -> Keeper:
        if self._own is not None:
            raise Forbidden(f"this member trains on data of its own, {self._own}")
        if self.keeper is None:
            raise Conflict("this member has not joined the ring yet: try again")
        return self.keeper

    def _save(self, placement: Placement, digests: Sequence[Digest]) -> None:
        partial = self._file.with_suffix(".tmp")
        try:
            partial.write_bytes(msgspec.json.encode(Kept(placement, tuple(digests))))
            partial.replace(self._file)
        except OSError as error:
            raise StorageError(f"cannot write {self._file}: {error.strerror or error}") from None

    async def _forget(self, digests: set[Digest]) -> None:
        self.wanted -= digests
        await self._blobs.delete(*digests)

    async def delete_unwanted(self, digests: set[Digest]) -> None:
        """Delete these, but none that is wanted here; what is being looked for is here or not."""
        async with self._turn:
            await self._blobs.delete(*(digests - self.wanted))
