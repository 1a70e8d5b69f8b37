"""A blob on its way into memory; what an interrupted attempt brought is there for the next one."""

import asyncio
from collections.abc import Callable
from typing import IO, cast

import numpy as np
import zstandard
from blake3 import blake3

from tutti.core.errors import CorruptBlob
from tutti.domain.events import Digest
from tutti.ports.blobs import Buffer

IN_THREAD = 1 << 18
"""Bytes from which on hashing and decoding take long enough to be left to a thread."""


class Download:
    """The bytes of one blob, as far as they have come; `size` is where to continue, `resumed` whether that was done.

    Raises CorruptBlob for bytes with another digest, and forgets them then.
    """

    def __init__(self, digest: Digest) -> None:
        self.digest = digest
        self.resumed = False
        self._bytes = np.empty(0, np.uint8)
        self._size = 0
        self._decode: Callable[[bytes], int] | None = None

    @property
    def size(self) -> int:
        return self._size

    def begin(self, coming: int | None, *, from_start: bool, zstd: bool) -> None:
        """Bytes will come, from the start or from `size` on; `coming` is how many, if that is known."""
        if from_start:
            self._forget()
        self.resumed = not from_start
        if coming is not None and not zstd:
            self._reserve(self._size + coming)
        self._decode = zstandard.ZstdDecompressor().stream_writer(cast(IO[bytes], self)).write if zstd else None

    async def add(self, chunk: bytes) -> None:
        if self._decode is None:
            self.write(chunk)
            return
        try:
            await asyncio.to_thread(self._decode, chunk)
        except zstandard.ZstdError as error:
            self._forget()
            raise CorruptBlob(f"expected blob {self.digest} compressed with zstd: {error}") from None

    def write(self, data: Buffer) -> int:
        """Append plain bytes; this is what a decoder writes to."""
        stop = self._size + len(data)
        if stop > len(self._bytes):
            self._reserve(max(stop, 2 * len(self._bytes)))
        self._bytes[self._size : stop] = np.frombuffer(data, np.uint8)
        self._size = stop
        return len(data)

    async def finish(self) -> memoryview:
        """All has come: the bytes, verified."""
        whole = self._bytes[: self._size].data.toreadonly()
        found = _digest(whole) if self._size < IN_THREAD else await asyncio.to_thread(_digest, whole)
        if found != self.digest:
            self._forget()
            raise CorruptBlob(f"expected blob {self.digest}, got bytes with digest {found}: they were thrown away")
        return whole

    def _reserve(self, size: int) -> None:
        if size > len(self._bytes):
            room = np.empty(size, np.uint8)
            room[: self._size] = self._bytes[: self._size]
            self._bytes = room

    def _forget(self) -> None:
        self._bytes, self._size = np.empty(0, np.uint8), 0


def _digest(data: Buffer) -> Digest:
    found: Digest = blake3(data).hexdigest()
    return found
