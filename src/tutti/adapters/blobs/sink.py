"""One file being received: hashed while it is written, and renamed into place when it is right."""

import errno
import fcntl
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import TypeAlias

from blake3 import blake3

from tutti.core.errors import Conflict, CorruptBlob, StorageError
from tutti.ports.blobs import Buffer, TooLarge

Chunks: TypeAlias = AsyncIterator[Buffer]
"""A stream of bytes in pieces of any size; a piece must not change after it was handed over."""

BATCH = 2 << 20
"""Bytes gathered before a worker thread hashes and writes them; a smaller blob is stored in one go."""

_HINTS = {
    errno.ENOSPC: "free some space, then try again",
    errno.EDQUOT: "free some space or raise the quota, then try again",
    errno.EROFS: "mount the disk writable, or choose another directory",
    errno.EACCES: "allow this user to write there, or choose another directory",
}


async def batches(chunks: Chunks, limit: int) -> AsyncGenerator[list[memoryview], None]:
    """Chunks in groups of at least BATCH bytes, but for the last; raises TooLarge past `limit` bytes in all."""
    batch: list[memoryview] = []
    total = size = 0
    async for chunk in chunks:
        if not chunk:
            continue
        view = memoryview(chunk).cast("B")
        total, size = total + len(view), size + len(view)
        if total > limit:
            raise TooLarge(f"at most {limit} bytes were expected, and more came")
        batch.append(view)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def size_of(batch: Sequence[memoryview]) -> int:
    return sum(map(len, batch))


class Sink:
    """Methods run in worker threads; a lock makes `close` safe while another thread still writes.

    `size` bytes that the file has already are kept and hashed, the rest is cut off. The open file is locked
    (flock), as a sign that somebody lives behind it.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path = path
        self.size = size
        self.closed = False
        self._file: int | None = None
        self._hasher = blake3()
        self._lock = Lock()

    def write(self, batch: Sequence[memoryview]) -> None:
        """Append; raises Conflict if the sink was closed by somebody else, StorageError if the disk fails."""
        with self._lock, storage_errors(f"write {self.path}"):
            self._write(batch)

    def land(self, place: Path, batch: Sequence[memoryview] = ()) -> None:
        """Append the last batch, and move the file to its place; the sink is closed then. Nothing is synced.

        Raises CorruptBlob if the bytes are not those that the place is named by. A blob that is there already stays.
        """
        with self._lock, storage_errors(f"store {self.path}"):
            self._write(batch)
            found = self._hasher.hexdigest()
            if found != place.name:
                raise CorruptBlob(
                    f"expected bytes with digest {place.name}, those that came have {found}: send them again"
                )
            known = place.exists()
            if not known:
                self.path.rename(place)
            self._close(keep=not known)

    def close(self, *, keep: bool) -> None:
        """Close the file, and remove it unless it is to be resumed; closing twice is no error."""
        with self._lock:
            self._close(keep)

    def _close(self, keep: bool) -> None:
        self.closed = True
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if not keep:
            self.path.unlink(missing_ok=True)

    def _write(self, batch: Sequence[memoryview]) -> None:
        if self.closed:
            raise Conflict("another connection took this upload over")
        file = self._open() if self._file is None else self._file
        for chunk in batch:
            self._hasher.update(chunk)
            _write_all(file, chunk)
            self.size += len(chunk)

    def _open(self) -> int:
        start = 0 if self.size else os.O_TRUNC
        file = self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | start, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if self.size:
            os.ftruncate(file, self.size)
            os.lseek(file, 0, os.SEEK_END)
            self._hasher.update_mmap(self.path)
        return file


def _write_all(file: int, chunk: memoryview) -> None:
    while chunk:
        chunk = chunk[os.write(file, chunk) :]


def write_file(place: Path, temporary: Path, data: memoryview, *, sync: bool) -> None:
    """A whole file at once: written beside its place, synced if asked, and moved there."""
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # somebody lives behind it, see remove_abandoned
        _write_all(file, data)
        if sync:
            os.fsync(file)
        temporary.rename(place)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(file)
    if sync:
        sync_directory(place.parent)


def sync_file(path: Path) -> None:
    """The bytes and the name of a file that is there."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Names in a directory survive loss of power only after this."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def remove_abandoned(directory: Path) -> None:
    """Remove the files behind which nobody lives any more: their process was killed."""
    for path in directory.iterdir():
        with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def remove_older(directory: Path, than: float) -> None:
    """Remove the files that nobody wrote to since a time (seconds since the epoch)."""
    for path in directory.iterdir():
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < than:
                path.unlink()


@contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Turn what the operating system refuses into a StorageError that says what to do about it."""
    try:
        yield
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "look after the disk, then try again")
        raise StorageError(f"cannot {doing}: {error.strerror or error}; nothing was stored: {hint}") from error
