"""The entries of a ledger in one SQLite file. One process owns it (flock on `<file>.lock`)."""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import msgspec

from tutti.adapters.ledgers.signed import Decide, decoded
from tutti.adapters.migrations import Format, Step
from tutti.adapters.sqlite import migrate
from tutti.core.errors import Conflict, StorageError
from tutti.domain.ledger import Entry

FORMAT = Format(
    "ledger",
    (
        Step(
            up="""
            CREATE TABLE IF NOT EXISTS entries (
                seq INTEGER PRIMARY KEY,
                key TEXT NOT NULL UNIQUE,
                entry BLOB NOT NULL
            );
            """,
            down="DROP TABLE entries;",
        ),
    ),
)
INSERT = "INSERT INTO entries (seq, key, entry) VALUES (?, ?, ?)"
READ = "SELECT entry FROM entries WHERE seq > ? ORDER BY seq LIMIT ?"
FIND = "SELECT entry FROM entries WHERE key = ?"


class LedgerInUse(Conflict):
    """Another process owns this ledger."""


class SqliteEntries:
    """Entries, for a SignedLedger."""

    def __init__(self, path: Path) -> None:
        self.path, self.where = path, str(path)
        self._files = ExitStack()
        self._db: sqlite3.Connection

    async def open(self) -> None:
        await asyncio.to_thread(self._open)

    async def read(self, after: int, limit: int) -> list[Entry]:
        return await asyncio.to_thread(read_entries, self.path, after, limit)

    async def extend(self, after: int, keys: Sequence[str], decide: Decide) -> None:
        await asyncio.to_thread(self._extend, keys, decide)  # nobody else writes

    async def close(self) -> None:
        self._files.close()

    def _open(self) -> None:
        with _storage_errors("open", self.path), ExitStack() as stack:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _lock(self.path, stack)
            self._db = sqlite3.connect(self.path, timeout=5.0, isolation_level=None, check_same_thread=False)
            stack.enter_context(closing(self._db))
            migrate(self._db, FORMAT, self.path)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._files = stack.pop_all()

    def _extend(self, keys: Sequence[str], decide: Decide) -> None:
        with _storage_errors("write", self.path), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            found = [decoded(entry) for key in keys for (entry,) in self._db.execute(FIND, (key,))]
            made = decide({entry.key: entry for entry in found})
            self._db.executemany(INSERT, [(entry.seq, entry.key, msgspec.json.encode(entry)) for entry in made])


def read_entries(path: Path, after: int = -1, limit: int = -1) -> list[Entry]:
    """Entries of a ledger, in order, whoever owns it; all, or those behind a number. Raises StorageError."""
    with _storage_errors("read", path), closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
        return [decoded(entry) for (entry,) in db.execute(READ, (after, limit))]


def holds_tokens(path: Path) -> bool:
    """Whether anything was booked in this file, which need not be there; the first entry only says whose it is."""
    return path.exists() and len(read_entries(path, limit=2)) > 1


def _lock(path: Path, stack: ExitStack) -> None:
    file = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LedgerInUse(f"the ledger {path} is in use by another process: stop it first") from None


@contextmanager
def _storage_errors(doing: str, path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StorageError(f"cannot {doing} the ledger {path}: {error}; nothing was recorded") from error
    except OSError as error:
        raise StorageError(f"cannot {doing} the ledger {path}: {error.strerror or error}") from error
