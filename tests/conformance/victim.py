"""A process to kill or to starve: it stores things, and prints a line for each that was acknowledged.

python victim.py log|blobs DIRECTORY                 for ever, until it is killed
python victim.py log|blobs DIRECTORY limit BYTES     while no file may grow beyond BYTES; then once without that limit
python victim.py log|blobs DIRECTORY ballast BYTES   while only BYTES are free on that disk; then once with all of it
"""

import asyncio
import os
import resource
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.adapters.logs.sqlite import SqliteLog
from tutti.core.errors import StorageError
from tutti.testing.logs import news

EVENTS_IN_BATCH = 3


def pattern(i: int) -> bytes:
    """The i-th blob: 0.3 to 1.5 MB, so that some are stored in one go and some in pieces."""
    return bytes([i % 256]) * (300_000 * (1 + i % 5) + i)


async def append(log: SqliteLog, stream: str, i: int) -> None:
    await log.append(stream, i * EVENTS_IN_BATCH, news(EVENTS_IN_BATCH, first=i))
    print(stream, i, flush=True)


async def put(blobs: DirectoryBlobs, i: int) -> None:
    print(await blobs.put(pattern(i)), i, flush=True)


async def log_for_ever(log: SqliteLog) -> None:
    async def one(stream: str) -> None:
        for i in range(1_000_000):
            await append(log, stream, i)

    await asyncio.gather(*(one(stream) for stream in "abcd"))


async def put_for_ever(blobs: DirectoryBlobs) -> None:
    for i in range(0, 1_000_000, 2):
        await asyncio.gather(put(blobs, i), put(blobs, i + 1))


@contextmanager
def no_file_may_grow_beyond(size: int):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@contextmanager
def all_but_some_space_taken(ballast: Path, free: int):
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(ballast.parent).free - free)
    yield
    ballast.unlink()


async def starve(store, shortage) -> None:
    """Store until that fails, say so, and store once more when there is space again."""
    i = 0
    with shortage:
        try:
            while True:
                await store(i)
                i += 1
        except StorageError as error:
            print("full", error, flush=True)
    await store(i)


def shortage(directory: Path, how: str, size: int):
    return no_file_may_grow_beyond(size) if how == "limit" else all_but_some_space_taken(directory / "ballast", size)


async def main(kind: str, directory: Path, how: str = "", size: str = "0") -> None:
    if kind == "log":
        log = await SqliteLog.open(directory / "events.db")
        if not how:
            await log_for_ever(log)
        await starve(lambda i: append(log, "a", i), shortage(directory, how, int(size)))
        print("holds", len(await log.read(limit=1_000_000)))
        await log.close()
    else:
        blobs = DirectoryBlobs(directory)
        if not how:
            await put_for_ever(blobs)
        await starve(lambda i: put(blobs, i), shortage(directory, how, int(size)))
        for digest in (held := await blobs.digests()):
            await blobs.read(digest)
        print("holds", len(held))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]))
