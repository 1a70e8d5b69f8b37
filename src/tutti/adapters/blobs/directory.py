"""Blobs in a directory: `<root>/ab/abcd…`, one file a blob.

A blob is written to a file in `<root>/tmp/`, hashed on the way, synced, and renamed to its place: it is there
whole or not at all. Uploads that may be resumed grow in `<root>/partial/`.

    blobs = DirectoryBlobs(root)
    digest = await blobs.put(chunks, digest=None, limit=None)
    await blobs.verify(digest)                       # CorruptBlob if the disk lost bits
    partial = blobs.partial(digest, owner)           # owner: whoever sends, such as the node's name
    partial.size                                     # bytes that are here: where to continue
    done = await partial.write(chunks, offset=partial.size, total=total, limit=limit)
"""

import asyncio
import re
import secrets
import time
from collections.abc import Iterable
from contextlib import aclosing
from pathlib import Path

from blake3 import blake3

from tutti.adapters.blobs.partial import Partial
from tutti.adapters.blobs.sink import (
    BATCH,
    Sink,
    batches,
    remove_abandoned,
    remove_older,
    size_of,
    storage_errors,
    sync_directory,
)
from tutti.core.errors import CorruptBlob, NotFound
from tutti.domain.events import Digest, NodeId
from tutti.ports.blobs import BadDigest, Chunks

PARTIAL_KEPT = 24 * 3600.0
"""Seconds without a byte after which an unfinished upload is given up, at the next start."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


class DirectoryBlobs:
    """A BlobStore. What a killed process left half written is removed when the next one starts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._temporary, self._unfinished = root / "tmp", root / "partial"
        self._uploads: dict[Path, Sink] = {}
        with storage_errors(f"use the blob directory {root}"):
            self._temporary.mkdir(parents=True, exist_ok=True)
            self._unfinished.mkdir(exist_ok=True)
            for byte in range(256):
                (root / f"{byte:02x}").mkdir(exist_ok=True)
            sync_directory(root)
            sync_directory(root.parent)
            remove_abandoned(self._temporary)
            remove_older(self._unfinished, time.time() - PARTIAL_KEPT)

    async def put(self, chunks: Chunks, *, digest: Digest | None = None, limit: int | None = None) -> Digest:
        if digest is not None and await self.holds(digest):
            return digest
        sink = Sink(self._temporary / secrets.token_hex(16))
        try:
            last: list[memoryview] = []
            async with aclosing(batches(chunks, limit)) as incoming:
                async for batch in incoming:
                    if size_of(batch) < BATCH:
                        last = batch
                        break
                    await asyncio.to_thread(sink.write, batch)
            return await asyncio.to_thread(sink.land, self._place, digest, last)
        except BaseException:
            await asyncio.to_thread(sink.close, keep=False)
            raise

    async def path(self, digest: Digest) -> Path:
        place = self._place(digest)
        if not _is_file(place):
            raise NotFound(f"there is no blob {digest}")
        return place

    async def delete(self, *digests: Digest) -> None:
        places = [self._place(digest) for digest in digests]
        with storage_errors(f"delete blobs in {self.root}"):
            await asyncio.to_thread(_unlink, places)

    async def digests(self) -> list[Digest]:
        with storage_errors(f"list the blobs in {self.root}"):
            return await asyncio.to_thread(self._list)

    async def holds(self, digest: Digest) -> bool:
        """Whether the blob is here to stay: a name that another put gave it just now is synced first."""
        place = self._place(digest)
        if not _is_file(place):
            return False
        with storage_errors(f"sync {place.parent}"):
            await asyncio.to_thread(sync_directory, place.parent)
        return True

    async def verify(self, digest: Digest) -> None:
        """Hash the file again; raises CorruptBlob, NotFound."""
        place = await self.path(digest)
        with storage_errors(f"read blob {digest}"):
            found = await asyncio.to_thread(_hash_file, place)
        if found != digest:
            raise CorruptBlob(f"blob {digest} is damaged: its bytes now have digest {found}")

    def partial(self, digest: Digest, owner: NodeId) -> Partial:
        """The upload of this blob by this owner, begun or not; nobody can spoil somebody else's."""
        place = self._place(digest)
        name = f"{digest}.{blake3(owner.encode()).hexdigest()[:16]}"
        return Partial(digest, place, self._unfinished / name, self._uploads)

    def _place(self, digest: Digest) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise BadDigest(f"a blob is named by 64 hex digits (BLAKE3, lower case), not by {digest[:80]!r}")
        return self.root / digest[:2] / digest

    def _list(self) -> list[Digest]:
        return [path.name for path in self.root.glob("[0-9a-f][0-9a-f]/*") if _DIGEST.fullmatch(path.name)]


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _is_file(path: Path) -> bool:
    return path.is_file()


def _hash_file(path: Path) -> Digest:
    digest: Digest = blake3().update_mmap(path).hexdigest()
    return digest
