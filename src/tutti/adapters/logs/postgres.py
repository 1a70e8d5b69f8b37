"""The event log in one PostgreSQL table.

Only one process may own a log. Its fencing token is `events_owner.opened`, which each new owner raises, and every
statement that writes is refused by the server unless it carries the present one. Two things tell others that the owner
is gone: the advisory lock on the connection that writes, which the server drops with that connection, so at once when a
process is killed; and the lease, which lapses by the server's clock when a machine is cut off or stands still.

A group of appends is one statement, so one trip and one flush. When the connection breaks in the middle of one, nobody
knows whether it was written; then it counts as failed, and is removed before anything else is written, which is safe,
for nobody has seen it: reading ends at the last offset that is known to be written.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import asyncpg

from tutti.adapters import postgres
from tutti.adapters.addresses import shown
from tutti.adapters.logs.codec import decode, type_of
from tutti.adapters.logs.group import Append, Appends, LogInUse, Outcome
from tutti.adapters.logs.tail import Tail, conflict
from tutti.adapters.migrations import Format, Step
from tutti.core.errors import StorageError
from tutti.domain.events import AnyEvent
from tutti.ports.log import LogLost, Owner, Recorded

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
        Step(
            up="ALTER TABLE events_owner ADD COLUMN until timestamptz NOT NULL DEFAULT '-infinity'",
            down="ALTER TABLE events_owner DROP COLUMN until",
        ),
        Step(
            up="ALTER TABLE events_owner ADD COLUMN settled bigint NOT NULL DEFAULT 0",
            down="ALTER TABLE events_owner DROP COLUMN settled",
        ),
        Step(
            up="""ALTER TABLE events_owner ADD COLUMN name text NOT NULL DEFAULT '';
            ALTER TABLE events_owner ADD COLUMN url text NOT NULL DEFAULT ''""",
            down="ALTER TABLE events_owner DROP COLUMN name; ALTER TABLE events_owner DROP COLUMN url",
        ),
    ),
)
LEASE_SECONDS = 5.0
"""How long an owner that cannot be heard keeps its log: more than an event loop ever stands still."""

RENEWALS = 5
"""In that time, tried so often."""

LOOK_SECONDS = 0.1
"""Between two looks of a standby at whether the log still has an owner: one small question on an open connection."""

LOCK = "SELECT pg_try_advisory_lock(hashtext('tutti events ' || current_schema()))"
WAIT_FOR_LOCK = LOCK.replace("_try", "")
OPEN = """UPDATE events_owner SET opened = opened + 1, until = clock_timestamp() + make_interval(secs => $1),
    name = $2, url = $3 RETURNING opened"""
RENEW = """UPDATE events_owner SET until = clock_timestamp() + make_interval(secs => $1), settled = $3
    WHERE opened = $2 RETURNING opened"""
HAS_LAPSED = "SELECT until < clock_timestamp() FROM events_owner"
LOCKED = """pg_locks JOIN pg_database ON pg_database.oid = database
    WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND datname = current_database()
    AND (classid::bigint << 32) | objid::bigint = hashtext('tutti events ' || current_schema())"""
EVICT = f"SELECT pg_terminate_backend(pid) FROM {LOCKED}"  # noqa: S608 - our own words
LOOK = f"""SELECT settled, until < clock_timestamp() OR NOT EXISTS (SELECT FROM {LOCKED}) AS free, opened, name, url
    FROM events_owner"""  # noqa: S608
OPENED = "SELECT opened FROM events_owner FOR UPDATE"
LAST = 'SELECT coalesce(max("offset"), 0) FROM events'
FORGET = 'DELETE FROM events WHERE "offset" > $1'
VERSIONS = "SELECT stream, max(version) AS version FROM events WHERE stream = ANY($1) GROUP BY stream"
INSERT = """WITH fence AS (SELECT FROM events_owner WHERE opened = $1 FOR SHARE)
    INSERT INTO events SELECT news.* FROM fence,
    unnest($2::bigint[], $3::text[], $4::bigint[], $5::text[], $6::bytea[], $7::float8[]) AS news"""
NOTHING = "INSERT 0 0"
TRIM = """WITH fence AS (SELECT FROM events_owner WHERE opened = $1 FOR SHARE)
    DELETE FROM events USING fence WHERE stream = $2 AND version < $3"""
READ = """SELECT "offset", stream, version, data FROM events
    WHERE "offset" > $1 AND "offset" <= $2 AND ($3::text IS NULL OR stream = $3) ORDER BY "offset" LIMIT $4"""


log = logging.getLogger(__name__)


class PostgresLog:
    """An EventLog. It reconnects by itself; until then everything raises StorageError.

    `open` makes one that is ours, `beside` one that may become ours by `stand_by`.

    Keep `keep` running beside it, or others may take the log over.
    """

    def __init__(self, url: str, db: "asyncpg.Connection[asyncpg.Record]", name: str, at: str) -> None:
        self._url, self._where = url, shown(url)
        self._name, self._at = name, at
        self._db: asyncpg.Connection[asyncpg.Record] | None = db
        self._opened, self._last = -1, 0
        self._until = 0.0
        self._versions: dict[str, int] = {}
        self._readers: asyncpg.Pool[asyncpg.Record] | None = None
        self._tail = Tail(kept=1024)
        self._appends = Appends(self._commit, self._tail, self._where)

    @classmethod
    async def open(cls, url: str) -> "PostgresLog":
        """Open or make a log; raises LogInUse, FormatTooNew, UserError, or StorageError if the server is away."""
        log = await cls.beside(url)
        try:
            with postgres.errors(f"open the event log {log._where}"):
                if not await log._seize():
                    raise LogInUse(
                        f"the event log {log._where} is in use by another process: stop it, or choose another"
                    )
        except BaseException:
            log._part()
            raise
        return log

    @classmethod
    async def beside(cls, url: str, name: str = "", at: str = "") -> "PostgresLog":
        """A log that another process may own: it can be read as far as that one has settled it. Raises as `open`.

        Once it is ours, others learn the name of this process from it, and `at` which address it can be reached.
        """
        db = await postgres.connect(url)
        try:
            await postgres.migrate(db, FORMAT, url)
            log = cls(url, db, name, at)
            log._readers = await postgres.open_pool(url, 3)
        except BaseException:
            db.terminate()
            raise
        return log

    async def stand_by(self, waits: Callable[[], None], meanwhile: Callable[[Owner], Awaitable[None]]) -> None:
        """Own the log once nobody else does; else `waits` is called, and `meanwhile` now and then with the last owner.

        A server that goes away meanwhile is waited for.
        """
        waited, trouble = False, ""
        while True:
            try:
                with postgres.errors(f"stand by at the event log {self._where}"):
                    db = self._db = self._db or await postgres.connect(self._url)
                    settled, free, *owner = await db.fetchrow(LOOK) or (0, False, 0, "", "")
                    if free and await self._seize():
                        return
                self._settle(settled)
                await meanwhile(Owner(*owner))
                trouble = ""
            except StorageError as error:
                self._part()
                if str(error) != trouble:
                    log.warning("%s", error)
                trouble = str(error)
            if not waited:
                waits()
                waited = True
            await asyncio.sleep(LOOK_SECONDS)

    async def _seize(self) -> bool:
        """Become the owner, unless there is another one whose lease has not lapsed."""
        db = self._db
        assert db is not None
        async with db.transaction():
            await db.execute(postgres.ONE_AT_A_TIME)
            if not await db.fetchval(LOCK):
                if not await db.fetchval(HAS_LAPSED):
                    return False
                await db.fetch(EVICT)
                await db.execute(WAIT_FOR_LOCK)
            self._until = asyncio.get_running_loop().time() + LEASE_SECONDS
            self._opened = await db.fetchval(OPEN, LEASE_SECONDS, self._name, self._at)
        self._settle(await db.fetchval(LAST))
        return True

    def heard(self, recorded: Recorded) -> None:
        """While the log is another's: what its owner says that it has written."""
        if recorded.offset == self._last + 1:
            self._last = recorded.offset
            self._tail.grow([recorded])
        else:
            self._settle(recorded.offset)

    def _settle(self, last: int) -> None:
        """Let what its owner has written be read."""
        if last > self._last:
            self._last = last
            self._tail.skip()

    async def keep(self, *, replaceable: bool = False) -> None:
        """Renew the lease for ever; raises LogLost once another process owns the log.

        `replaceable`: also once the lease may have lapsed because the server is out of reach. Somebody else may then
        reach it, and what is connected here had better go there.
        """
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        while not self._tail.closed:
            await asyncio.sleep(LEASE_SECONDS / RENEWALS)
            if self._readers is None:
                return
            asked = loop.time()
            try:
                async with asyncio.timeout(LEASE_SECONDS / 2):
                    with postgres.errors(f"renew the lease of the event log {self._where}"):
                        kept = await self._readers.fetchval(RENEW, LEASE_SECONDS, self._opened, self._last)
            except (StorageError, TimeoutError) as error:
                if replaceable and loop.time() - renewed > LEASE_SECONDS:
                    raise self._lost("may have taken over") from error
                continue
            if kept is None:
                raise self._lost("has taken over")
            renewed = asked
            self._until = asked + LEASE_SECONDS

    def _lost(self, what: str) -> LogLost:
        return LogLost(f"another process {what} the event log {self._where}: start this anew")

    @property
    def token(self) -> int:
        return self._opened

    @property
    def lease_left(self) -> float:
        return self._until - asyncio.get_running_loop().time()

    async def append(self, stream: str, version: int, events: Sequence[AnyEvent]) -> list[Recorded]:
        return await self._appends.append(stream, version, events)

    async def read(self, after: int = 0, *, stream: str | None = None, limit: int = 1000) -> list[Recorded]:
        if self._tail.closed or self._readers is None:
            raise StorageError(f"the event log {self._where} is closed")
        with postgres.errors(f"read the event log {self._where}"):
            rows = await self._readers.fetch(READ, after, self._last, stream, limit)
        return [Recorded(offset, name, version, decode(offset, data)) for offset, name, version, data in rows]

    async def trim(self, stream: str, before: int) -> None:
        if self._tail.closed or self._readers is None:
            raise StorageError(f"the event log {self._where} is closed")
        with postgres.errors(f"trim the event log {self._where}"):
            await self._readers.execute(TRIM, self._opened, stream, before)

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
            with postgres.errors(f"write the event log {self._where}", writing=True):
                db = self._db or await self._return()
                await self._know(db, {request.stream for request in group})
                placed = _place(group, self._last, self._versions)
                if placed.rows:
                    columns = ([*column] for column in zip(*placed.rows, strict=True))
                    if await db.execute(INSERT, self._opened, *columns) == NOTHING:
                        raise self._lost("has taken over")
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
            async with db.transaction():
                if await db.fetchval(OPENED) != self._opened:
                    raise self._lost("has taken over")
                if not await db.fetchval(LOCK):
                    raise StorageError(f"the event log {self._where} is held by another connection: try again")
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
