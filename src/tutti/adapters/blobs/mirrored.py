"""Blobs in a directory, and what must last in a store far away too: for a coordinator that hands out files itself."""

from pathlib import Path

from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.adapters.blobs.s3 import S3Blobs
from tutti.core.errors import NotFound, StorageError
from tutti.domain.events import Digest, NodeId
from tutti.ports.blobs import Buffer, Mapped


class MirroredBlobs(DirectoryBlobs):
    """A BlobStore. The directory may be lost, and with it only updates, which are stored without `sync`."""

    def __init__(self, root: Path, far: S3Blobs) -> None:
        super().__init__(root)
        self.far = far

    async def put(self, data: Buffer, *, digest: Digest | None = None, sync: bool = True) -> Digest:
        if not sync:
            return await super().put(data, digest=digest, sync=False)
        digest = await self.far.put(data, digest=digest)
        return await super().put(data, digest=digest, sync=False)

    async def read(self, digest: Digest) -> Mapped:
        await self.fetched(digest)
        return await super().read(digest)

    async def size(self, digest: Digest) -> int:
        try:
            return await super().size(digest)
        except NotFound:
            return await self.far.size(digest)

    async def fetched(self, digest: Digest) -> Path:
        try:
            return self.path(digest)
        except NotFound:
            await super().put(memoryview(await self.far.read(digest)), digest=digest, sync=False)
            return self.path(digest)

    async def take_in(self, digest: Digest, node: NodeId, name: str, limit: int) -> None:
        """Make a blob of what a node uploaded to the store, without `sync`.

        Raises NotFound if nothing was, CorruptBlob if it is something else, TooLarge, StorageError.
        """
        size, chunks = await self.far.uploaded(node, name)
        if not await self.partial(digest, node).write(chunks, offset=0, total=size, limit=limit):
            raise StorageError(f"upload {name} of {node} ended early: it is read again when the node hands it in again")

    async def delete(self, *digests: Digest) -> None:
        await self.far.delete(*digests)
        await super().delete(*digests)

    async def digests(self) -> list[Digest]:
        return list({*await super().digests(), *await self.far.digests()})
