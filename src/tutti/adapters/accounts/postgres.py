"""Accounts in PostgreSQL; every write is one transaction."""

from collections.abc import Sequence

import asyncpg
import msgspec

from tutti.adapters import postgres
from tutti.adapters.accounts.codec import decode_entry, decode_record
from tutti.adapters.addresses import shown
from tutti.adapters.migrations import Format, Step
from tutti.core.errors import StorageError
from tutti.domain.accounts import AuditEntry, Record, key_of

FORMAT = Format(
    "account store",
    (
        Step(
            up="""
            CREATE TABLE records (kind text, id text, data bytea NOT NULL, PRIMARY KEY (kind, id));
            CREATE TABLE audit (
                number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                organisation text NOT NULL,
                who text NOT NULL,
                data bytea NOT NULL
            );
            CREATE INDEX audit_by_organisation ON audit (organisation, number);
            CREATE INDEX audit_by_person ON audit (who, number);
            """,
            down="DROP TABLE audit; DROP TABLE records;",
        ),
    ),
)
LOAD = "SELECT data FROM records"
PUT = "INSERT INTO records VALUES ($1, $2, $3) ON CONFLICT (kind, id) DO UPDATE SET data = excluded.data"
DELETE = "DELETE FROM records WHERE kind = $1 AND id = $2"
NOTE = "INSERT INTO audit (organisation, who, data) VALUES ($1, $2, $3)"
IN_ORDER = "SELECT pg_advisory_xact_lock(hashtext('tutti audit ' || current_schema()))"
AUDIT = """SELECT number, data FROM audit WHERE number > $1
    AND ($2::text IS NULL OR organisation = $2) AND ($3::text IS NULL OR who = $3) ORDER BY number LIMIT $4"""
NEWEST = """SELECT number, data FROM audit WHERE ($1::bigint = 0 OR number < $1)
    AND ($2::text IS NULL OR organisation = $2) AND ($3::text IS NULL OR who = $3) ORDER BY number DESC LIMIT $4"""


class PostgresAccounts:
    """An AccountStore, made by `open`."""

    def __init__(self, url: str, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._where = shown(url)
        self._pool: asyncpg.Pool[asyncpg.Record] | None = pool

    @classmethod
    async def open(cls, url: str) -> "PostgresAccounts":
        """Open or make a store; raises UserError, FormatTooNew, or StorageError if the server is away."""
        db = await postgres.connect(url)
        try:
            await postgres.migrate(db, FORMAT, url)
        finally:
            db.terminate()
        return cls(url, await postgres.open_pool(url, 4))

    async def load(self) -> list[Record]:
        with postgres.errors(f"read the account store {self._where}"):
            rows = await self._open().fetch(LOAD)
        return [decode_record(data, self._where) for (data,) in rows]

    async def write(
        self, put: Sequence[Record] = (), *, delete: Sequence[Record] = (), audit: Sequence[AuditEntry] = ()
    ) -> None:
        with postgres.errors(f"write the account store {self._where}", writing=True):
            async with self._open().acquire() as db, db.transaction():
                await db.executemany(DELETE, [key_of(record) for record in delete])
                await db.executemany(PUT, [(*key_of(record), msgspec.json.encode(record)) for record in put])
                if audit:  # numbers become visible in order, so that who reads on misses none
                    await db.execute(IN_ORDER)
                    await db.executemany(NOTE, [(e.organisation, e.who, msgspec.json.encode(e)) for e in audit])

    async def audit(
        self,
        after: int = 0,
        limit: int = 100,
        *,
        organisation: str | None = None,
        who: str | None = None,
        newest: bool = False,
    ) -> list[tuple[int, AuditEntry]]:
        with postgres.errors(f"read the account store {self._where}"):
            rows = await self._open().fetch(NEWEST if newest else AUDIT, after, organisation, who, limit)
        return [(number, decode_entry(data, self._where)) for number, data in rows]

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.terminate()

    def _open(self) -> "asyncpg.Pool[asyncpg.Record]":
        if self._pool is None:
            raise StorageError(f"the account store {self._where} is closed")
        return self._pool
