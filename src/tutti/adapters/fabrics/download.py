"""A blob on its way into a file: it grows in `<name>.part`, and takes its name only when its digest is right."""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

import zstandard
from blake3 import blake3

from tutti.core.errors import CorruptBlob, StorageError
from tutti.domain.events import Digest


class Download:
    """One attempt; `size` is how much of the blob an earlier one left in the part file.

    Large writes run in threads, so that a slow disk does not keep the node from answering. Raises StorageError if
    the disk fails, CorruptBlob for bytes with another digest (the part file is then removed).
    """

    def __init__(self, into: Path, digest: Digest) -> None:
        self.digest = digest
        self._into = into
        self._part = into.with_name(f"{into.name}.part")
        self.size = self._part.stat().st_size if self._part.exists() else 0
        self._hasher = blake3()
        self._file: IO[bytes] | None = None
        self._decode: Callable[[bytes], int] = self.write

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def store(self, body: bytes) -> None:
        """The whole of a small blob at once."""
        self._hasher.update(body)
        with self._disk():
            self._part.write_bytes(body)
            self._name()

    async def begin(self, *, from_start: bool, zstd: bool) -> None:
        """Open the part file; what it holds is kept unless the bytes come from the start."""
        with self._disk():
            if self.size and not from_start:
                await asyncio.to_thread(self._hasher.update_mmap, self._part)
            self._file = self._part.open("wb" if from_start else "ab")
        self._decode = zstandard.ZstdDecompressor().stream_writer(cast(IO[bytes], self)).write if zstd else self.write

    async def add(self, chunk: bytes) -> None:
        with self._disk():
            await asyncio.to_thread(self._decode, chunk)

    async def finish(self) -> None:
        """All has come: verify it, and give it its name."""
        with self._disk():
            if self._file is None:
                await asyncio.to_thread(self._hasher.update_mmap, self._part)
            else:
                self._file.close()
            self._name()

    def write(self, data: bytes) -> int:
        """Append plain bytes; this is what a decoder writes to."""
        assert self._file is not None
        self._hasher.update(data)
        return self._file.write(data)

    def _name(self) -> None:
        found = self._hasher.hexdigest()
        if found != self.digest:
            self._part.unlink(missing_ok=True)
            raise CorruptBlob(f"expected blob {self.digest}, got bytes with digest {found}: they were thrown away")
        os.replace(self._part, self._into)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"cannot write {self._part}: {error.strerror}") from error
        except zstandard.ZstdError as error:
            self._part.unlink(missing_ok=True)
            raise CorruptBlob(f"expected blob {self.digest} compressed with zstd: {error}") from None
