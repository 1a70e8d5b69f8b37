"""A blob that comes in pieces, each in a call of its own."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
from blake3 import blake3

from tutti.adapters.blobs.sink import BATCH, Sink, size_of
from tutti.core.errors import Conflict, CorruptBlob
from tutti.domain.events import Digest
from tutti.ports.blobs import Buffer


class MemorySink:
    """Receives a blob in memory, hashing it on the way. Methods run in worker threads, one at a time."""

    def __init__(self, size: int) -> None:
        self.data = np.empty(size, np.uint8).data  # takes no memory until bytes come
        self._size, self._hasher = 0, blake3()

    def write(self, batch: Sequence[memoryview]) -> None:
        for piece in batch:
            self.data[self._size : self._size + len(piece)] = piece
            self._size += len(piece)
            self._hasher.update(piece)

    def land(self, digest: Digest, batch: Sequence[memoryview]) -> None:
        self.write(batch)
        if (found := self._hasher.hexdigest()) != digest:
            raise CorruptBlob(f"expected bytes with digest {digest}, those that came have {found}: send them again")

    def close(self) -> None:
        pass


class FileSink:
    """Receives a blob in a file, which takes its place when it is whole."""

    def __init__(self, path: Path, place: Path) -> None:
        self._sink, self._place = Sink(path), place

    def write(self, batch: Sequence[memoryview]) -> None:
        self._sink.write(batch)

    def land(self, digest: Digest, batch: Sequence[memoryview]) -> None:
        self._sink.land(self._place, batch)

    def close(self) -> None:
        self._sink.close(keep=False)


class Pieces:
    """Pieces are taken in order, and may be handed in before those before them are stored.

    `came` bytes have been taken: where the next piece begins. `stored` is called once the blob is whole and right.
    """

    def __init__(
        self, digest: Digest, size: int, sink: MemorySink | FileSink, stored: Callable[[], Awaitable[None]]
    ) -> None:
        self.came = 0
        self._digest, self._size, self._sink, self._stored = digest, size, sink, stored
        self._batch: list[memoryview] = []
        self._turn = asyncio.Lock()
        self._over = False

    async def take(self, offset: int, piece: Buffer) -> bool:
        """True once the blob is stored. The piece must not change from now on.

        Raises Conflict for one that does not follow, or after `give_up`; CorruptBlob if the whole has another digest,
        StorageError. Nothing is left of the blob then.
        """
        if offset != self.came:
            raise Conflict(f"{self.came} bytes of this upload are here, so it cannot continue at {offset}")
        self.came += len(piece)
        self._batch.append(memoryview(piece))
        whole = self.came == self._size
        if not whole and size_of(self._batch) < BATCH:
            return False
        batch, self._batch = self._batch, []
        async with self._turn:  # in the order in which they came
            if self._over:
                raise Conflict("this upload was given up, or another one took it over")
            try:
                if not whole:
                    await asyncio.to_thread(self._sink.write, batch)
                    return False
                await asyncio.to_thread(self._sink.land, self._digest, batch)
                await self._stored()
            except BaseException:
                self.give_up()
                raise
        return True

    def give_up(self) -> None:
        self._over = True
        self._batch.clear()
        self._sink.close()
