"""A ring's chain in SQLite: a table of records, and one row for promise and vote."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from tutti.core.errors import StorageError
from tutti.ring.consensus import NOTHING, Durable
from tutti.ring.record import Record

_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (height INTEGER PRIMARY KEY, record BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS durable (one INTEGER PRIMARY KEY CHECK (one = 1), value BLOB NOT NULL);
"""


class SqliteChain:
    """A ChainStore. May be used from one thread at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._errors("open"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)

    def load(self) -> tuple[list[Record], Durable]:
        with self._errors("read"):
            rows = self._db.execute("SELECT record FROM records ORDER BY height").fetchall()
            kept = self._db.execute("SELECT value FROM durable").fetchone()
            records = [msgspec.msgpack.decode(row, type=Record) for (row,) in rows]
            return records, msgspec.msgpack.decode(kept[0], type=Durable) if kept else NOTHING

    def save(self, records: Sequence[Record], durable: Durable) -> None:
        with self._errors("write"), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            if records:
                self._db.execute("DELETE FROM records WHERE height >= ?", (records[0].height,))
            rows = [(record.height, msgspec.msgpack.encode(record)) for record in records]
            self._db.executemany("INSERT INTO records VALUES (?, ?)", rows)
            self._db.execute("INSERT OR REPLACE INTO durable VALUES (1, ?)", (msgspec.msgpack.encode(durable),))

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, msgspec.MsgspecError) as error:
            raise StorageError(f"cannot {doing} the ring's chain {self.path}: {error}; look after the disk") from error
