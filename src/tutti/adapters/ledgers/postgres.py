"""The entries of a ledger in one PostgreSQL table.

Nobody owns it: an entry's number is the table's key, so that of two processes that add to the same chain one is
refused by the server, and nothing else need be agreed on.
"""

import asyncio
from collections.abc import Sequence

import asyncpg
import msgspec

from tutti.adapters import postgres
from tutti.adapters.addresses import shown
from tutti.adapters.ledgers.signed import Decide, Overtaken, decoded
from tutti.adapters.migrations import Format, Step
from tutti.core.errors import StorageError
from tutti.domain.ledger import Entry

FORMAT = Format(
    "ledger",
    (
        Step(
            up="CREATE TABLE ledger (seq bigint PRIMARY KEY, key text NOT NULL UNIQUE, entry bytea NOT NULL)",
            down="DROP TABLE ledger",
        ),
    ),
)
INSERT = "INSERT INTO ledger SELECT * FROM unnest($1::bigint[], $2::text[], $3::bytea[])"
READ = "SELECT entry FROM ledger WHERE seq > $1 ORDER BY seq LIMIT $2"
FIND = """SELECT coalesce(max(seq), -1),
    (SELECT coalesce(array_agg(entry), '{}') FROM ledger WHERE key = ANY($1)) FROM ledger"""


class PostgresEntries:
    """Entries, for a SignedLedger."""

    def __init__(self, url: str) -> None:
        self._url, self.where = url, shown(url)
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None

    async def open(self) -> None:
        db = await postgres.connect(self._url)
        try:
            await postgres.migrate(db, FORMAT, self._url)
        finally:
            db.terminate()
        self._pool = await postgres.open_pool(self._url, 2)

    async def read(self, after: int, limit: int) -> list[Entry]:
        with postgres.errors(f"read the ledger {self.where}"):
            rows = await self._present().fetch(READ, after, limit)
        return [decoded(entry) for (entry,) in rows]

    async def extend(self, after: int, keys: Sequence[str], decide: Decide) -> None:
        pool, overtaken = self._present(), Overtaken(f"another process has written to the ledger {self.where}")
        with postgres.errors(f"write the ledger {self.where}", writing=True):
            ((newest, found),) = await pool.fetch(FIND, keys)
            if newest != after:
                raise overtaken
            made = await asyncio.to_thread(decide, {entry.key: entry for entry in map(decoded, found)})
            rows = [(entry.seq, entry.key, msgspec.json.encode(entry)) for entry in made]
            try:
                if rows:
                    await pool.execute(INSERT, *map(list, zip(*rows, strict=True)))
            except asyncpg.UniqueViolationError:
                raise overtaken from None

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.terminate()

    def _present(self) -> "asyncpg.Pool[asyncpg.Record]":
        if self._pool is None:
            raise StorageError(f"the ledger {self.where} is closed")
        return self._pool
