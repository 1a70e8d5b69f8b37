"""Formats of databases, up and down, with data in them, on SQLite and PostgreSQL."""

import sqlite3
from contextlib import closing

import asyncpg
import pytest

from support.services import database
from tutti.adapters import postgres, sqlite
from tutti.adapters.accounts import postgres as postgres_accounts
from tutti.adapters.accounts import sqlite as sqlite_accounts
from tutti.adapters.identities.ed25519 import Ed25519Key
from tutti.adapters.ledgers import postgres as postgres_ledger
from tutti.adapters.ledgers import sqlite as sqlite_ledger
from tutti.adapters.ledgers.signed import SignedLedger
from tutti.adapters.logs import postgres as postgres_log
from tutti.adapters.logs import sqlite as sqlite_log
from tutti.adapters.migrations import Format, FormatTooNew, Step, scripts
from tutti.domain.ledger import Mint, Order
from tutti.testing.accounts import RECORDS, entry, sorted_by_key
from tutti.testing.logs import EVENTS

PEOPLE = Format(
    "book",
    (
        Step("CREATE TABLE people (name TEXT);", "DROP TABLE people;"),
        Step("ALTER TABLE people ADD COLUMN age INTEGER DEFAULT 7;", "ALTER TABLE people DROP COLUMN age;"),
        Step("CREATE TABLE pets (owner TEXT);", "DROP TABLE pets;"),
    ),
)
BROKEN = Format("book", (*PEOPLE.steps, Step("CREATE TABLE toys (a TEXT); SELECT nonsense;", "")))


def test_scripts_lead_up_and_down():
    ups, downs = [step.up for step in PEOPLE.steps], [step.down for step in PEOPLE.steps]
    assert scripts(PEOPLE, 0) == ups
    assert scripts(PEOPLE, 1, 3) == ups[1:]
    assert scripts(PEOPLE, 3, 1) == [downs[2], downs[1]]
    assert scripts(PEOPLE, 3) == scripts(PEOPLE, 2, 2) == []
    with pytest.raises(FormatTooNew, match="format 4, this program knows formats up to 3: upgrade"):
        scripts(PEOPLE, 4)


def test_sqlite_up_and_down_with_data(tmp_path):
    with closing(sqlite3.connect(path := tmp_path / "book", isolation_level=None)) as db:
        sqlite.migrate(db, PEOPLE, path, 1)
        db.execute("INSERT INTO people VALUES ('Ada')")
        sqlite.migrate(db, PEOPLE, path)
        assert db.execute("SELECT * FROM people").fetchall() == [("Ada", 7)]
        with pytest.raises(sqlite3.OperationalError, match="nonsense"):
            sqlite.migrate(db, BROKEN, path)
        assert db.execute("PRAGMA user_version").fetchone() == (3,)
        sqlite.migrate(db, PEOPLE, path, 1)
        assert db.execute("SELECT * FROM people").fetchall() == [("Ada",)]
        sqlite.migrate(db, PEOPLE, path, 0)
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == []


async def test_postgres_up_and_down_with_data():
    async with database() as url:
        db = await asyncpg.connect(url)
        await postgres.migrate(db, PEOPLE, url, 1)
        await db.execute("INSERT INTO people VALUES ('Ada')")
        await postgres.migrate(db, PEOPLE, url)
        assert [tuple(row) for row in await db.fetch("SELECT * FROM people")] == [("Ada", 7)]
        with pytest.raises(Exception, match="nonsense"):
            await postgres.migrate(db, BROKEN, url)
        assert await db.fetchval("SELECT version FROM tutti_formats WHERE name = 'book'") == 3
        assert await db.fetchval("SELECT to_regclass('toys')") is None
        await postgres.migrate(db, PEOPLE, url, 1)
        assert [tuple(row) for row in await db.fetch("SELECT * FROM people")] == [("Ada",)]
        await postgres.migrate(db, PEOPLE, url, 0)
        assert await db.fetchval("SELECT to_regclass('people')") is None
        await db.close()


async def of_log(log, write):
    if write:
        await log.append("a", 0, EVENTS)
    return await log.read()


async def of_accounts(store, write):
    if write:
        await store.write(RECORDS, audit=[entry(1)])
    return sorted_by_key(await store.load()), await store.audit()


async def of_ledger(ledger, write):
    if write:
        await ledger.post(Order("first", Mint(to="ada", amount=7)))
    return await ledger.read(-1, 10), await ledger.account("ada")


def signed(entries):
    return lambda place: SignedLedger(entries(place), Ed25519Key(b"k" * 32), lambda: 1_700_000_000_000).open()


ON_SQLITE = {
    "log": (sqlite_log.FORMAT, sqlite_log.SqliteLog.open, of_log),
    "accounts": (sqlite_accounts.FORMAT, sqlite_accounts.SqliteAccounts.open, of_accounts),
    "ledger": (sqlite_ledger.FORMAT, signed(sqlite_ledger.SqliteEntries), of_ledger),
}
ON_POSTGRES = {
    "log": (postgres_log.FORMAT, postgres_log.PostgresLog.open, of_log),
    "accounts": (postgres_accounts.FORMAT, postgres_accounts.PostgresAccounts.open, of_accounts),
    "ledger": (postgres_ledger.FORMAT, signed(postgres_ledger.PostgresEntries), of_ledger),
}


async def everything(opened, contents, *, write=False):
    """What a store gives out once it has the newest format."""
    store = await opened
    try:
        return await contents(store, write)
    finally:
        await store.close()


@pytest.mark.parametrize("kind", ON_SQLITE)
async def test_a_store_in_a_file_survives_each_step_down_and_up_again(tmp_path, kind):
    format, opened, contents = ON_SQLITE[kind]
    before = await everything(opened(path := tmp_path / "store.sqlite"), contents, write=True)
    for target in reversed(range(1, format.newest + 1)):
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            sqlite.migrate(db, format, path, target)
            assert db.execute("PRAGMA user_version").fetchone() == (target,)
        assert await everything(opened(path), contents) == before


@pytest.mark.parametrize("kind", ON_POSTGRES)
async def test_a_store_in_postgres_survives_each_step_down_and_up_again(kind):
    format, opened, contents = ON_POSTGRES[kind]
    async with database() as url:
        before = await everything(opened(url), contents, write=True)
        for target in reversed(range(1, format.newest + 1)):
            db = await asyncpg.connect(url)
            await postgres.migrate(db, format, url, target)
            assert await db.fetchval(postgres.PRESENT, format.name) == target
            await db.close()
            assert await everything(opened(url), contents) == before


@pytest.mark.parametrize("format", [format for format, *_ in ON_SQLITE.values()], ids=ON_SQLITE)
def test_every_format_of_sqlite_can_be_undone(tmp_path, format):
    with closing(sqlite3.connect(path := tmp_path / "store", isolation_level=None)) as db:
        for _ in range(2):
            sqlite.migrate(db, format, path)
            sqlite.migrate(db, format, path, 0)
        assert db.execute("SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'").fetchall() == []


@pytest.mark.parametrize("format", [format for format, *_ in ON_POSTGRES.values()], ids=ON_POSTGRES)
async def test_every_format_of_postgres_can_be_undone(format):
    async with database() as url:
        db = await asyncpg.connect(url)
        for _ in range(2):
            await postgres.migrate(db, format, url)
            await postgres.migrate(db, format, url, 0)
        tables = await db.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        assert [name for (name,) in tables] == ["tutti_formats"]
        await db.close()
