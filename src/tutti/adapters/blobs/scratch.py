"""Blobs in a directory that nobody needs tomorrow: not synced, so that simulations do not wait for a disk."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from blake3 import blake3

from tutti.core.errors import CorruptBlob, NotFound, StorageError
from tutti.domain.events import Digest
from tutti.ports.blobs import Buffer, check_digest, is_digest


class ScratchBlobs:
    """A BlobStore: all its promises but durability."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    async def put(self, data: Buffer, *, digest: Digest | None = None, sync: bool = True) -> Digest:
        if digest is not None:
            self._place(digest)
        data = memoryview(data).cast("B")
        found: Digest = blake3(data).hexdigest()
        if digest is not None and found != digest:
            raise CorruptBlob(f"expected blob {digest}, got bytes with digest {found}: they were thrown away")
        place = self._place(found)
        if not place.exists():
            partial = self.root / f"{found}.part"
            try:
                partial.write_bytes(data)
                partial.replace(place)
            except OSError as error:
                raise StorageError(f"cannot store blob {found} in {self.root}: {error.strerror or error}") from error
        return found

    async def read(self, digest: Digest) -> bytes:
        async with self.file(digest) as path:
            data = path.read_bytes()
        if blake3(data).hexdigest() != digest:
            raise CorruptBlob(f"blob {digest} in {self.root} has been damaged")
        return data

    async def size(self, digest: Digest) -> int:
        async with self.file(digest) as path:
            return path.stat().st_size

    @asynccontextmanager
    async def file(self, digest: Digest) -> AsyncIterator[Path]:
        if not (place := self._place(digest)).exists():
            raise NotFound(f"there is no blob {digest}")
        yield place

    async def delete(self, *digests: Digest) -> None:
        for place in [self._place(digest) for digest in digests]:
            place.unlink(missing_ok=True)

    async def digests(self) -> list[Digest]:
        return [file.name for file in self.root.iterdir() if is_digest(file.name)]

    def _place(self, digest: Digest) -> Path:
        check_digest(digest)
        return self.root / digest
