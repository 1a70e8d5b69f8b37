"""Accounts in one SQLite file, readable by its owner only; every write is on the disk when it returns."""

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from tutti.adapters.accounts.codec import decode_entry, decode_record
from tutti.adapters.migrations import Format, Step
from tutti.adapters.sqlite import migrate
from tutti.core.errors import StorageError
from tutti.domain.accounts import AuditEntry, Record, key_of

T = TypeVar("T")

FORMAT = Format(
    "account store",
    (
        Step(
            up="""
            CREATE TABLE records (
                kind TEXT NOT NULL,
                id TEXT NOT NULL,
                data BLOB NOT NULL,
                PRIMARY KEY (kind, id)
            ) WITHOUT ROWID;
            CREATE TABLE audit (
                number INTEGER PRIMARY KEY AUTOINCREMENT,
                organisation TEXT NOT NULL,
                who TEXT NOT NULL,
                data BLOB NOT NULL
            );
            CREATE INDEX audit_by_organisation ON audit (organisation, number);
            CREATE INDEX audit_by_person ON audit (who, number);
            """,
            down="DROP TABLE audit; DROP TABLE records;",
        ),
    ),
)
LOAD = "SELECT data FROM records"
PUT = "INSERT INTO records (kind, id, data) VALUES (?, ?, ?) ON CONFLICT (kind, id) DO UPDATE SET data = excluded.data"
DELETE = "DELETE FROM records WHERE kind = ? AND id = ?"
NOTE = "INSERT INTO audit (organisation, who, data) VALUES (?, ?, ?)"
AUDIT = (
    "SELECT number, data FROM audit WHERE number > :after"
    " AND (:organisation IS NULL OR organisation = :organisation) AND (:who IS NULL OR who = :who)"
    " ORDER BY number LIMIT :limit"
)
NEWEST = (
    "SELECT number, data FROM audit WHERE (:after = 0 OR number < :after)"
    " AND (:organisation IS NULL OR organisation = :organisation) AND (:who IS NULL OR who = :who)"
    " ORDER BY number DESC LIMIT :limit"
)


class SqliteAccounts:
    """An AccountStore, made by `open`. One thread does all the work, in the order it was asked for."""

    def __init__(self, path: Path, db: sqlite3.Connection, thread: ThreadPoolExecutor) -> None:
        self._path, self._db, self._thread = path, db, thread
        self._closed = False

    @classmethod
    async def open(cls, path: Path) -> "SqliteAccounts":
        """Open or make a store; raises StorageError if it cannot be used, FormatTooNew if a later version wrote it."""
        thread = ThreadPoolExecutor(1, "accounts")
        try:
            db = await asyncio.get_running_loop().run_in_executor(thread, _open, path)
        except BaseException:
            thread.shutdown()
            raise
        return cls(path, db, thread)

    async def load(self) -> list[Record]:
        rows = await self._do(lambda: self._db.execute(LOAD).fetchall())
        return [decode_record(data, str(self._path)) for (data,) in rows]

    async def write(
        self, put: Sequence[Record] = (), *, delete: Sequence[Record] = (), audit: Sequence[AuditEntry] = ()
    ) -> None:
        def work() -> None:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany(DELETE, map(key_of, delete))
                self._db.executemany(PUT, [(*key_of(record), msgspec.json.encode(record)) for record in put])
                self._db.executemany(NOTE, [(e.organisation, e.who, msgspec.json.encode(e)) for e in audit])

        await self._do(work)

    async def audit(
        self,
        after: int = 0,
        limit: int = 100,
        *,
        organisation: str | None = None,
        who: str | None = None,
        newest: bool = False,
    ) -> list[tuple[int, AuditEntry]]:
        wanted = {"after": after, "limit": limit, "organisation": organisation, "who": who}
        rows = await self._do(lambda: self._db.execute(NEWEST if newest else AUDIT, wanted).fetchall())
        return [(number, decode_entry(data, str(self._path))) for number, data in rows]

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._thread.shutdown)
            self._db.close()

    async def _do(self, work: Callable[[], T]) -> T:
        if self._closed:
            raise StorageError(f"the account store {self._path} is closed")

        def guarded() -> T:
            with _storage_errors(self._path):
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._thread, guarded)


def _open(path: Path) -> sqlite3.Connection:
    with _storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        db = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
        try:
            _prepare(db, path)
        except BaseException:
            db.close()
            raise
        return db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    migrate(db, FORMAT, path)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StorageError(
            f"cannot use the account store {path}: {error}; nothing was recorded: look after the disk"
        ) from error
    except OSError as error:
        raise StorageError(f"cannot use the account store {path}: {error.strerror or error}") from error
