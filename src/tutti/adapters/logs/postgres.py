"""The event log in one PostgreSQL table.

Only one process may own a log: it holds an advisory lock on the connection that writes, which the server drops with
that connection. A group of appends is one statement, so one trip and one flush. When the connection breaks in the
middle of one, nobody knows whether it was written; then it counts as failed, and is removed before anything else is
written, which is safe, for nobody has seen it: reading ends at the last offset that is known to be written.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import asyncpg

from tutti.adapters import postgres
from tutti.adapters.logs.codec import decode, type_of
from tutti.adapters.logs.group import Append, Appends, LogInUse, Outcome
from tutti.adapters.logs.tail import Tail, conflict
from tutti.adapters.migrations import Format, Step
from tutti.core.errors import StorageError
from tutti.domain.events import AnyEvent
from tutti.ports.log import Recorded

FORMAT = Format(
    "event log",
    (
        Step(
            up="""
            CREATE TABLE events (
                "offset" bigint PRIMARY KEY,
                stream text NOT NULL,
                version bigint NOT NULL,
                type text NOT NULL,
                data bytea NOT NULL,
                at double precision NOT NULL,
                UNIQUE (stream, version)
            );
            CREATE TABLE events_owner (opened bigint NOT NULL);
            INSERT INTO events_owner VALUES (0);
            """,
            down="DROP TABLE events; DROP TABLE events_owner;",
        ),
    ),
)
LOCK = "SELECT pg_try_advisory_lock(hashtext('tutti events ' || current_schema()))"
OPEN = "UPDATE events_owner SET opened = opened + 1 RETURNING opened"
OPENED = "SELECT opened FROM events_owner"
LAST = 'SELECT coalesce(max("offset"), 0) FROM events'
FORGET = 'DELETE FROM events WHERE "offset" > $1'
VERSIONS = "SELECT stream, max(version) AS version FROM events WHERE stream = ANY($1) GROUP BY stream"
INSERT = """INSERT INTO events
    SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[], $5::bytea[], $6::float8[])"""
READ = """SELECT "offset", stream, version, data FROM events
    WHERE "offset" > $1 AND "offset" <= $2 AND ($3::text IS NULL OR stream = $3) ORDER BY "offset" LIMIT $4"""


class PostgresLog:
    """An EventLog, made by `open`. It reconnects by itself; until then everything raises StorageError."""

    def __init__(self, url: str, db: "asyncpg.Connection[asyncpg.Record]", opened: int, last: int) -> None:
        self._url, self._where = url, postgres.shown(url)
        self._db: asyncpg.Connection[asyncpg.Record] | None = db
        self._opened, self._last = opened, last
        self._versions: dict[str, int] = {}
        self._readers: asyncpg.Pool[asyncpg.Record] | None = None
        self._tail = Tail(kept=1024)
        self._appends = Appends(self._commit, self._tail, self._where)

    @classmethod
    async def open(cls, url: str) -> "PostgresLog":
        """Open or make a log; raises LogInUse, FormatTooNew, UserError, or StorageError if the server is away."""
        db = await postgres.connect(url)
        try:
            await postgres.migrate(db, FORMAT, url)
            if not await db.fetchval(LOCK):
                where = postgres.shown(url)
                raise LogInUse(f"the event log {where} is in use by another process: stop it, or choose another")
            log = cls(url, db, await db.fetchval(OPEN), await db.fetchval(LAST))
            log._readers = await postgres.open_pool(url, 2)
        except BaseException:
            db.terminate()
            raise
        return log

    async def append(self, stream: str, version: int, events: Sequence[AnyEvent]) -> list[Recorded]:
        return await self._appends.append(stream, version, events)

    async def read(self, after: int = 0, *, stream: str | None = None, limit: int = 1000) -> list[Recorded]:
        if self._tail.closed or self._readers is None:
            raise StorageError(f"the event log {self._where} is closed")
        with postgres.errors(f"read the event log {self._where}"):
            rows = await self._readers.fetch(READ, after, self._last, stream, limit)
        return [Recorded(offset, name, version, decode(offset, data)) for offset, name, version, data in rows]

    def follow(self, after: int) -> AsyncIterator[list[Recorded]]:
        return self._tail.follow(self, after)

    async def close(self) -> None:
        """Finish what waits, then give the log free."""
        await self._appends.finish()
        self._tail.close()
        readers, self._readers = self._readers, None
        if readers is not None:
            readers.terminate()
        db, self._db = self._db, None
        if db is not None:
            with postgres.errors(f"leave the event log {self._where}"):
                await db.close(timeout=postgres.CONNECT_SECONDS)

    # -- writing -------------------------------------------------------------------------------------------

    async def _commit(self, group: Sequence[Append]) -> list[Outcome]:
        try:
            with postgres.errors(f"write the event log {self._where}"):
                db = self._db or await self._return()
                await self._know(db, {request.stream for request in group})
                placed = _place(group, self._last, self._versions)
                if placed.rows:
                    await db.execute(INSERT, *([*column] for column in zip(*placed.rows, strict=True)))
        except StorageError:
            self._part()
            raise
        self._last, self._versions = placed.last, self._versions | placed.versions
        return placed.outcomes

    async def _know(self, db: "asyncpg.Connection[asyncpg.Record]", streams: Iterable[str]) -> None:
        """Ask for the versions of streams that were not written to yet."""
        if unknown := [stream for stream in streams if stream not in self._versions]:
            found = {row[0]: row[1] for row in await db.fetch(VERSIONS, unknown)}
            self._versions |= dict.fromkeys(unknown, 0) | found

    def _part(self) -> None:
        """After an error, perhaps in the middle of a statement: a new connection must settle what is there."""
        if self._db is not None:
            self._db.terminate()
            self._db = None

    async def _return(self) -> "asyncpg.Connection[asyncpg.Record]":
        """Connect again, and remove what was written when the connection broke: its callers were told it was not."""
        db = await postgres.connect(self._url)
        try:
            if not await db.fetchval(LOCK):
                raise StorageError(f"the event log {self._where} is held by another connection: try again")
            if await db.fetchval(OPENED) != self._opened:
                raise StorageError(f"another process has used the event log {self._where} meanwhile: start this anew")
            await db.execute(FORGET, self._last)
        except BaseException:
            db.terminate()
            raise
        self._db = db
        return db


@dataclass(slots=True)
class _Placed:
    """What becomes of a group: outcomes, rows to insert, and the last offset and the versions after that."""

    last: int
    outcomes: list[Outcome] = field(default_factory=list)
    rows: list[tuple[int, str, int, str, bytes, float]] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)


def _place(group: Sequence[Append], last: int, versions: Mapping[str, int]) -> _Placed:
    placed = _Placed(last)
    for request in group:
        stream = request.stream
        present = placed.versions.get(stream, versions[stream])
        if present != request.version:
            placed.outcomes.append(conflict(stream, request.version, present))
            continue
        recorded = []
        for version, (data, event) in enumerate(request.events, start=present + 1):
            placed.last += 1
            placed.rows.append((placed.last, stream, version, type_of(event), data, event.at))
            recorded.append(Recorded(placed.last, stream, version, event))
        placed.versions[stream] = present + len(recorded)
        placed.outcomes.append(recorded)
    return placed
