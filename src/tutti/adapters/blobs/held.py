"""A member's blobs: what a round needs is held in memory while it does, the rest lies in a directory.

An update is handed in, summed and forgotten, and its node has it until the round is closed. So nothing is lost with a
process that held it, and writing it to a file would take longer than everything else.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.adapters.blobs.pieces import MemorySink, Pieces
from tutti.domain.events import Digest
from tutti.ports.blobs import Buffer, Mapped, check_digest

ROOM = 1 << 30
"""Bytes that are held; the oldest beyond them go to the directory."""

LARGEST = 1 << 26
"""Bytes of a blob that is held; a larger one goes to the directory as it comes."""

SPARE = 2
"""Blobs that others have too and that are held here: a model, and the one before."""


class HeldBlobs:
    """A BlobStore over a directory; `put` stores in the directory."""

    def __init__(self, disk: DirectoryBlobs, *, room: int = ROOM, largest: int = LARGEST) -> None:
        self.disk, self._room, self._largest = disk, room, largest
        self._held: dict[Digest, memoryview] = {}
        self._spare: dict[Digest, memoryview] = {}

    async def put(self, data: Buffer, *, digest: Digest | None = None, sync: bool = True) -> Digest:
        return await self.disk.put(data, digest=digest, sync=sync)

    async def read(self, digest: Digest) -> Mapped:
        held = self._in_memory(digest)
        return await self.disk.read(digest) if held is None else held

    async def size(self, digest: Digest) -> int:
        held = self._in_memory(digest)
        return await self.disk.size(digest) if held is None else len(held)

    @asynccontextmanager
    async def file(self, digest: Digest) -> AsyncIterator[Path]:
        await self.laid_down(digest)
        async with self.disk.file(digest) as path:
            yield path

    async def laid_down(self, digest: Digest) -> bool:
        """Whether it is here; in the directory, from now on. Raises BadDigest."""
        if self.disk.has(digest):
            return True
        if (held := self._in_memory(digest)) is None:
            return False
        await self.disk.put(held, digest=digest, sync=False)
        return True

    async def delete(self, *digests: Digest) -> None:
        for digest in digests:
            self._held.pop(digest, None)
            self._spare.pop(digest, None)
        await self.disk.delete(*digests)

    async def digests(self) -> list[Digest]:
        return [*{*await self.disk.digests(), *self._held, *self._spare}]

    def has(self, digest: Digest) -> bool:
        """Raises BadDigest."""
        return self._in_memory(digest) is not None or self.disk.has(digest)

    async def hold(self, digest: Digest, data: Buffer, *, spare: bool = False) -> None:
        """Have a blob whose bytes are known to be right, and will not change; it need not survive this process.

        Of those that are `spare`, because others have them, only the newest are held.
        """
        if spare:
            self._spare[digest] = memoryview(data).toreadonly()
            if len(self._spare) > SPARE:
                del self._spare[next(iter(self._spare))]
            return
        self._held[digest] = memoryview(data).toreadonly()
        while sum(map(len, self._held.values())) > self._room:
            oldest = next(iter(self._held))
            await self.disk.put(self._held[oldest], digest=oldest, sync=False)
            self._held.pop(oldest, None)

    def pieces(self, digest: Digest, size: int) -> Pieces:
        """A new upload of this blob of `size` bytes."""
        if size > self._largest:
            return self.disk.pieces(digest, size)
        check_digest(digest)
        sink = MemorySink(size)
        return Pieces(digest, size, sink, lambda: self.hold(digest, sink.data))

    async def part(self, digest: Digest, offset: int, size: int) -> tuple[int, Buffer]:
        """The blob's size, and at most `size` bytes of it from `offset` on; raises NotFound."""
        if (held := self._in_memory(digest)) is not None:
            return len(held), held[max(offset, 0) :][:size]
        return await asyncio.to_thread(_part, self.disk.path(digest), max(offset, 0), size)

    def _in_memory(self, digest: Digest) -> memoryview | None:
        held = self._held.get(digest)
        return self._spare.get(digest) if held is None else held


def _part(path: Path, offset: int, size: int) -> tuple[int, Buffer]:
    with path.open("rb", buffering=0) as file:
        whole = file.seek(0, 2)
        file.seek(min(offset, whole))
        part = np.empty(min(size, whole - file.tell()), np.uint8).data
        return whole, part[: file.readinto(part)]
