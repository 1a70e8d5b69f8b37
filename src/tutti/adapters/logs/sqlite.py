"""The event log in one SQLite file: WAL, every commit on the disk, one writer that commits what waits together.

Only one process may own a log. It holds a lock (flock) on `<file>.lock`, which the kernel drops when it dies.
"""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tutti.adapters.logs.codec import decode, type_of
from tutti.adapters.logs.group import Append, Appends, LogInUse, Outcome
from tutti.adapters.logs.tail import Tail, conflict
from tutti.adapters.migrations import Format, Step
from tutti.adapters.sqlite import migrate
from tutti.core.errors import StorageError
from tutti.domain.events import AnyEvent
from tutti.ports.log import Recorded

FORMAT = Format(
    "event log",
    (
        Step(
            up="""CREATE TABLE events (
                offset INTEGER PRIMARY KEY AUTOINCREMENT,
                stream TEXT NOT NULL,
                version INTEGER NOT NULL,
                type TEXT NOT NULL,
                data BLOB NOT NULL,
                at REAL NOT NULL,
                UNIQUE (stream, version)
            );""",
            down="DROP TABLE events;",
        ),
    ),
)
INSERT = "INSERT INTO events (stream, version, type, data, at) VALUES (?, ?, ?, ?, ?)"
VERSION = "SELECT coalesce(max(version), 0) FROM events WHERE stream = ?"
READ = "SELECT offset, stream, version, data FROM events WHERE offset > ? ORDER BY offset LIMIT ?"
READ_STREAM = "SELECT offset, stream, version, data FROM events WHERE offset > ? AND stream = ? ORDER BY offset LIMIT ?"

TRIM = "DELETE FROM events WHERE stream = ? AND version < ?"

BUSY_SECONDS = 5.0
"""How long to wait for a reader from outside, such as a backup, that locks the file."""


class SqliteLog:
    """An EventLog, made by `open`. An append that is cancelled may or may not have been written."""

    def __init__(self, path: Path, files: "_Files") -> None:
        self.path = path
        self._files = files
        self._writing = ThreadPoolExecutor(1, "event-log-writer")
        self._reading = ThreadPoolExecutor(1, "event-log-reader")
        self._tail = Tail(kept=1024)
        self._appends = Appends(self._commit, self._tail, str(path))

    @classmethod
    async def open(cls, path: Path) -> "SqliteLog":
        """Open or make a log; raises LogInUse, FormatTooNew, or StorageError if it cannot be written or is damaged."""
        return cls(path, await asyncio.to_thread(_open, path))

    async def append(self, stream: str, version: int, events: Sequence[AnyEvent]) -> list[Recorded]:
        return await self._appends.append(stream, version, events)

    async def read(self, after: int = 0, *, stream: str | None = None, limit: int = 1000) -> list[Recorded]:
        if self._tail.closed:
            raise StorageError(f"the event log {self.path} is closed")
        loop = asyncio.get_running_loop()
        with _storage_errors("read", self.path):
            recorded = await loop.run_in_executor(self._reading, _read, self._files.reader, after, stream, limit)
        return recorded

    async def trim(self, stream: str, before: int) -> None:
        if self._tail.closed:
            raise StorageError(f"the event log {self.path} is closed")
        with _storage_errors("trim", self.path):
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._writing, self._files.writer.execute, TRIM, (stream, before))

    def follow(self, after: int) -> AsyncIterator[list[Recorded]]:
        return self._tail.follow(self, after)

    async def close(self) -> None:
        """Finish what waits, then give the file free."""
        await self._appends.finish()
        self._tail.close()
        await asyncio.to_thread(self._shut)

    def _shut(self) -> None:
        self._reading.shutdown()
        self._writing.shutdown()
        self._files.stack.close()

    def _commit(self, group: Sequence[Append]) -> "asyncio.Future[list[Outcome]]":
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._writing, _commit, self._files.writer, self.path, group)


# -- in the threads ----------------------------------------------------------------------------------


def _commit(db: sqlite3.Connection, path: Path, group: Sequence[Append]) -> list[Outcome]:
    """Write all appends of a group, but for those whose version is not that of their stream."""
    with _storage_errors("write", path), db:
        db.execute("BEGIN IMMEDIATE")
        return [_insert(db, request) for request in group]


def _insert(db: sqlite3.Connection, request: Append) -> Outcome:
    (present,) = db.execute(VERSION, (request.stream,)).fetchone()
    if present != request.version:
        return conflict(request.stream, request.version, present)
    recorded = []
    for version, (data, event) in enumerate(request.events, start=present + 1):
        offset = db.execute(INSERT, (request.stream, version, type_of(event), data, event.at)).lastrowid
        recorded.append(Recorded(offset or 0, request.stream, version, event))
    return recorded


def _read(db: sqlite3.Connection, after: int, stream: str | None, limit: int) -> list[Recorded]:
    if stream is None:
        rows = db.execute(READ, (after, limit)).fetchall()
    else:
        rows = db.execute(READ_STREAM, (after, stream, limit)).fetchall()
    return [Recorded(offset, stream, version, decode(offset, data)) for offset, stream, version, data in rows]


# -- opening -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Files:
    writer: sqlite3.Connection
    reader: sqlite3.Connection
    stack: ExitStack


def _open(path: Path) -> _Files:
    with _storage_errors("open", path), ExitStack() as stack:
        path.parent.mkdir(parents=True, exist_ok=True)
        _lock(path, stack)
        writer = stack.enter_context(closing(_connect(path)))
        _prepare(writer, path)
        reader = stack.enter_context(closing(_connect(path)))
        reader.execute("PRAGMA query_only = ON")
        return _Files(writer, reader, stack.pop_all())


def _lock(path: Path, stack: ExitStack) -> None:
    file = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(file, 20, 0).decode(errors="replace")
        raise LogInUse(
            f"the event log {path} is in use by process {owner}: stop it, or choose another data directory"
        ) from None
    os.ftruncate(file, 0)
    os.pwrite(file, str(os.getpid()).encode(), 0)


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    migrate(db, FORMAT, path)
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StorageError(f"the event log {path} needs SQLite's WAL mode, came {mode!r}: choose a local disk")
    db.execute("PRAGMA synchronous = FULL")


_HINTS = {
    sqlite3.SQLITE_FULL: "free some space",
    sqlite3.SQLITE_READONLY: "make the file and its directory writable",
    sqlite3.SQLITE_CANTOPEN: "check that its directory exists and is writable",
    sqlite3.SQLITE_BUSY: "close the program that locks it",
    sqlite3.SQLITE_CORRUPT: "it is damaged, restore it from a copy",
    sqlite3.SQLITE_NOTADB: "it is damaged or no event log, restore it from a copy",
}


@contextmanager
def _storage_errors(doing: str, path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        hint = _HINTS.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, "look after the disk")
        raise StorageError(f"cannot {doing} the event log {path}: {error}; nothing was recorded: {hint}") from error
    except OSError as error:
        raise StorageError(f"cannot {doing} the event log {path}: {error.strerror or error}") from error
