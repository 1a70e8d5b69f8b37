"""Blobs in a directory: `<root>/ab/abcd…`, one file a blob.

A blob is written to a file in `<root>/tmp/`, hashed on the way, synced, and renamed to its place: it is there
whole or not at all. Uploads that may be resumed grow in `<root>/partial/`.

    blobs = DirectoryBlobs(root)
    digest = await blobs.put(data, digest=None)
    data = await blobs.read(digest)                  # mapped, verified once
    partial = blobs.partial(digest, owner)           # owner: whoever sends, such as the node's name
    partial.size                                     # bytes that are here: where to continue
    done = await partial.write(chunks, offset=partial.size, total=total, limit=limit)
"""

import asyncio
import mmap
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from tutti.adapters.blobs.partial import Partial
from tutti.adapters.blobs.pieces import FileSink, Pieces
from tutti.adapters.blobs.sink import (
    Sink,
    remove_abandoned,
    remove_older,
    storage_errors,
    sync_directory,
    sync_file,
    write_file,
)
from tutti.core.errors import CorruptBlob, NotFound
from tutti.domain.events import Digest, NodeId
from tutti.ports.blobs import Buffer, Mapped, check_digest, is_digest

PARTIAL_KEPT = 24 * 3600.0
"""Seconds without a byte after which an unfinished upload is given up, at the next start."""

GROUP = 32
"""Blobs that one worker thread stores in one go."""

MAPPED = 1 << 16
"""Bytes from which on a blob is mapped, not loaded."""


@dataclass(frozen=True, slots=True, eq=False)
class _Put:
    data: Buffer
    digest: Digest | None
    sync: bool
    done: "asyncio.Future[Digest]"


class DirectoryBlobs:
    """A BlobStore. What a killed process left half written is removed when the next one starts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._temporary, self._unfinished = root / "tmp", root / "partial"
        self._uploads: dict[Path, Sink] = {}
        self._waiting: list[_Put] = []
        self._storing: asyncio.Task[None] | None = None
        self._sound: set[Digest] = set()
        self._begun: dict[NodeId, Path] = {}
        with storage_errors(f"use the blob directory {root}"):
            self._temporary.mkdir(parents=True, exist_ok=True)
            self._unfinished.mkdir(exist_ok=True)
            for byte in range(256):
                (root / f"{byte:02x}").mkdir(exist_ok=True)
            sync_directory(root)
            sync_directory(root.parent)
            remove_abandoned(self._temporary)
            remove_older(self._unfinished, time.time() - PARTIAL_KEPT)

    async def put(self, data: Buffer, *, digest: Digest | None = None, sync: bool = True) -> Digest:
        """What is put while a thread stores what came before shares the next trip to a thread."""
        if digest is not None:
            self._place(digest)
        request = _Put(data, digest, sync, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        if self._storing is None:
            self._storing = asyncio.create_task(self._store_waiting())
        return await request.done

    async def _store_waiting(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting[:GROUP], self._waiting[GROUP:]
                for request, outcome in zip(group, await asyncio.to_thread(self._store_all, group), strict=True):
                    if request.done.cancelled():
                        continue
                    if isinstance(outcome, Exception):
                        request.done.set_exception(outcome)
                    else:
                        request.done.set_result(outcome)
        finally:
            self._storing = None

    def _store_all(self, group: Sequence[_Put]) -> list[Digest | Exception]:
        """In a thread: each of them, or why it is not stored."""
        outcomes: list[Digest | Exception] = []
        for request in group:
            try:
                outcomes.append(self._store(memoryview(request.data).cast("B"), request.digest, request.sync))
            except Exception as error:
                outcomes.append(error)
        return outcomes

    def _store(self, data: memoryview, digest: Digest | None, sync: bool) -> Digest:
        """A blob that is there stays; it is synced, for it may have been stored without that, or just now."""
        found: Digest = blake3(data).hexdigest()
        if digest is not None and found != digest:
            raise CorruptBlob(f"expected bytes with digest {digest}, those that came have {found}: send them again")
        place = self._place(found)
        with storage_errors(f"store {place}"):
            if not _is_file(place):
                write_file(place, self._temporary / secrets.token_hex(16), data, sync=sync)
                self._sound.add(found)
            elif sync:
                sync_file(place)
        return found

    async def read(self, digest: Digest) -> Mapped:
        place = self._place(digest)
        with storage_errors(f"read blob {digest}"):
            try:
                if digest in self._sound:
                    return _load(place)
                data = await asyncio.to_thread(_load_sound, place)
            except FileNotFoundError:
                raise NotFound(f"there is no blob {digest}") from None
        self._sound.add(digest)
        return data

    async def size(self, digest: Digest) -> int:
        with storage_errors(f"look at blob {digest}"):
            return self.path(digest).stat().st_size

    @asynccontextmanager
    async def file(self, digest: Digest) -> AsyncIterator[Path]:
        yield await self.fetched(digest)

    async def fetched(self, digest: Digest) -> Path:
        """As `path`, of a blob that is kept elsewhere too."""
        return self.path(digest)

    def path(self, digest: Digest) -> Path:
        """Where a blob lies; raises NotFound. Not verified."""
        if not self.has(digest):
            raise NotFound(f"there is no blob {digest}")
        return self._place(digest)

    async def delete(self, *digests: Digest) -> None:
        places = [self._place(digest) for digest in digests]
        self._sound.difference_update(digests)
        with storage_errors(f"delete blobs in {self.root}"):
            await asyncio.to_thread(_unlink, places)

    async def digests(self) -> list[Digest]:
        with storage_errors(f"list the blobs in {self.root}"):
            return await asyncio.to_thread(self._list)

    def partial(self, digest: Digest, owner: NodeId) -> Partial:
        """The upload of this blob by this owner, begun or not; nobody can spoil somebody else's.

        An owner has one at a time: what it began before, and does not write to now, is given up.
        """
        place = self._place(digest)
        name = f"{digest}.{blake3(owner.encode()).hexdigest()[:16]}"
        before, self._begun[owner] = self._begun.get(owner), self._unfinished / name
        if before is not None and before != self._begun[owner] and before not in self._uploads:
            before.unlink(missing_ok=True)
        return Partial(digest, place, self._unfinished / name, self._uploads, self._sound)

    def pieces(self, digest: Digest, size: int) -> Pieces:
        """A new upload of this blob of `size` bytes, which ends with this process."""

        async def stored() -> None:
            self._sound.add(digest)

        sink = FileSink(self._temporary / secrets.token_hex(16), self._place(digest))
        return Pieces(digest, size, sink, stored)

    def has(self, digest: Digest) -> bool:
        return _is_file(self._place(digest))

    def _place(self, digest: Digest) -> Path:
        check_digest(digest)
        return self.root / digest[:2] / digest

    def _list(self) -> list[Digest]:
        return [path.name for path in self.root.glob("[0-9a-f][0-9a-f]/*") if is_digest(path.name)]


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _is_file(path: Path) -> bool:
    return path.is_file()


def _load(path: Path) -> Mapped:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size < MAPPED:
            return file.read()
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _load_sound(path: Path) -> Mapped:
    """Raises CorruptBlob if the bytes are not those that gave the file its name."""
    data = _load(path)
    found = blake3(data).hexdigest()
    if found != path.name:
        raise CorruptBlob(f"blob {path.name} has been damaged on disk: its bytes now have digest {found}")
    return data
