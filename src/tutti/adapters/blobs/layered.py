"""A store of one's own before one that others share: what is put, or forgotten, here is so for nobody else."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tutti.core.errors import NotFound
from tutti.domain.events import Digest
from tutti.ports import BlobStore
from tutti.ports.blobs import Buffer, Mapped


class LayeredBlobs:
    """A BlobStore over two."""

    def __init__(self, own: BlobStore, shared: BlobStore) -> None:
        self._own, self._shared = own, shared

    async def put(self, data: Buffer, *, digest: Digest | None = None, sync: bool = True) -> Digest:
        return await self._own.put(data, digest=digest, sync=sync)

    async def read(self, digest: Digest) -> Mapped:
        try:
            return await self._own.read(digest)
        except NotFound:
            return await self._shared.read(digest)

    async def size(self, digest: Digest) -> int:
        try:
            return await self._own.size(digest)
        except NotFound:
            return await self._shared.size(digest)

    @asynccontextmanager
    async def file(self, digest: Digest) -> AsyncIterator[Path]:
        async with AsyncExitStack() as stack:
            try:
                path = await stack.enter_async_context(self._own.file(digest))
            except NotFound:
                path = await stack.enter_async_context(self._shared.file(digest))
            yield path

    async def delete(self, *digests: Digest) -> None:
        await self._own.delete(*digests)

    async def digests(self) -> list[Digest]:
        return await self._own.digests()
