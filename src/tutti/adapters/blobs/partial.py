"""Uploads that survive broken connections and restarts."""

import asyncio
from contextlib import aclosing
from pathlib import Path

from tutti.adapters.blobs.sink import Chunks, Sink, batches, size_of
from tutti.core.errors import Conflict, CorruptBlob
from tutti.domain.events import Digest
from tutti.ports.blobs import TooLarge


class Partial:
    """One blob on its way from one owner. If two connections write, the one that began last counts."""

    def __init__(self, digest: Digest, place: Path, path: Path, uploads: dict[Path, Sink], sound: set[Digest]) -> None:
        self._digest = digest
        self._place = place
        self._path = path
        self._uploads = uploads
        self._sound = sound

    @property
    def size(self) -> int:
        """Bytes that are here: where to continue. 0 if none are, or if the blob is complete."""
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    async def write(self, chunks: Chunks, *, offset: int, total: int, limit: int | None = None) -> bool:
        """Continue at `offset`, dropping what is here beyond it; True once all `total` bytes are stored as the blob.

        If the stream ends or breaks early, what came is kept for the next call. Raises Conflict if `offset` is
        past the end, or when another connection takes the upload over; TooLarge if `total` is above `limit`, or
        more bytes come than announced; CorruptBlob if the bytes have another digest (they are removed);
        StorageError. The blob survives the end of this process, not a loss of power (see BlobStore.put).
        A blob that is stored already costs nothing: no chunk is read.
        """
        if limit is not None and total > limit:
            raise TooLarge(f"at most {limit} bytes are allowed here, {total} were announced")
        sink = Sink(self._path, offset)
        before, self._uploads[self._path] = self._uploads.get(self._path), sink
        try:
            if before is not None:
                await asyncio.to_thread(before.close, keep=True)
            return await self._receive(sink, chunks, total)
        except CorruptBlob:
            await asyncio.to_thread(sink.close, keep=False)
            raise
        finally:
            if not sink.closed:
                await asyncio.to_thread(sink.close, keep=True)
            if self._uploads.get(self._path) is sink:  # only now: whoever takes over in between closes it too
                del self._uploads[self._path]

    async def _receive(self, sink: Sink, chunks: Chunks, total: int) -> bool:
        if self._place.is_file():
            await asyncio.to_thread(sink.close, keep=False)
            return True
        if sink.size > self.size:
            raise Conflict(f"{self.size} bytes of this upload are here, so it cannot continue at {sink.size}")
        last: list[memoryview] = []
        breaks: list[Exception] = []
        async with aclosing(batches(_until_broken(chunks, breaks), total - sink.size)) as incoming:
            async for batch in incoming:
                if sink.size + size_of(batch) == total:
                    last = batch
                    break
                await asyncio.to_thread(sink.write, batch)
        if sink.size + size_of(last) == total:
            await asyncio.to_thread(sink.land, self._place, last)
            self._sound.add(self._digest)
            return True
        for error in breaks:
            raise error
        return False


async def _until_broken(chunks: Chunks, breaks: list[Exception]) -> Chunks:
    """The stream up to where it breaks, so that what came before is written; the error goes to `breaks`."""
    try:
        async for chunk in chunks:
            yield chunk
    except Exception as error:
        breaks.append(error)
