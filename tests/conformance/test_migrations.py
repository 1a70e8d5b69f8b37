"""Formats of databases, up and down, with data in them, on SQLite and PostgreSQL."""

import sqlite3
from contextlib import closing

import asyncpg
import pytest

from support.services import database
from tutti.adapters import postgres, sqlite
from tutti.adapters.accounts import postgres as postgres_accounts
from tutti.adapters.accounts import sqlite as sqlite_accounts
from tutti.adapters.ledgers import postgres as postgres_ledger
from tutti.adapters.ledgers import sqlite as sqlite_ledger
from tutti.adapters.logs import postgres as postgres_log
from tutti.adapters.logs import sqlite as sqlite_log
from tutti.adapters.migrations import Format, FormatTooNew, Step, scripts
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


async def test_events_survive_a_step_down_and_up_again():
    async with database() as url:
        log = await postgres_log.PostgresLog.open(url)
        recorded = await log.append("a", 0, EVENTS)
        await log.close()
        db = await asyncpg.connect(url)
        await postgres.migrate(db, postgres_log.FORMAT, url, 1)
        assert await db.fetchval("SELECT count(*) FROM events") == len(EVENTS)
        await db.close()
        log = await postgres_log.PostgresLog.open(url)
        assert await log.read() == recorded
        await log.close()


@pytest.mark.parametrize("format", [sqlite_log.FORMAT, sqlite_accounts.FORMAT, sqlite_ledger.FORMAT])
def test_every_format_of_sqlite_can_be_undone(tmp_path, format):
    with closing(sqlite3.connect(path := tmp_path / "store", isolation_level=None)) as db:
        for _ in range(2):
            sqlite.migrate(db, format, path)
            sqlite.migrate(db, format, path, 0)
        assert db.execute("SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'").fetchall() == []


@pytest.mark.parametrize("format", [postgres_log.FORMAT, postgres_accounts.FORMAT, postgres_ledger.FORMAT])
async def test_every_format_of_postgres_can_be_undone(format):
    async with database() as url:
        db = await asyncpg.connect(url)
        for _ in range(2):
            await postgres.migrate(db, format, url)
            await postgres.migrate(db, format, url, 0)
        tables = await db.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        assert [name for (name,) in tables] == ["tutti_formats"]
        await db.close()
