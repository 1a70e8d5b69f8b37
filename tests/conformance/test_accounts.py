"""Every account store against the suite, and what is particular to the one on a disk."""

import asyncio
import sqlite3
from contextlib import closing

import pytest

from support.services import database
from tutti.adapters.accounts.argon2 import Argon2Passwords
from tutti.adapters.accounts.memory import MemoryAccounts
from tutti.adapters.accounts.postgres import PostgresAccounts
from tutti.adapters.accounts.sqlite import FORMAT, SqliteAccounts
from tutti.core.errors import StorageError, UserError
from tutti.testing import AccountSuite
from tutti.testing.accounts import ADA, HOME, RECORDS, entry, sorted_by_key


class TestMemoryAccounts(AccountSuite):
    @pytest.fixture
    async def store(self):
        store = MemoryAccounts()
        yield store
        await store.close()


class TestSqliteAccounts(AccountSuite):
    @pytest.fixture
    async def store(self, tmp_path):
        store = await SqliteAccounts.open(tmp_path / "accounts.sqlite")
        yield store
        await store.close()


class TestPostgresAccounts(AccountSuite):
    @pytest.fixture
    async def store(self):
        async with database() as url:
            store = await PostgresAccounts.open(url)
            yield store
            await store.close()


async def test_everything_is_there_after_a_restart(tmp_path):
    path = tmp_path / "accounts.sqlite"
    store = await SqliteAccounts.open(path)
    await store.write(RECORDS, audit=[entry(1)])
    await store.close()
    again = await SqliteAccounts.open(path)
    assert sorted_by_key(await again.load()) == sorted_by_key(list(RECORDS))
    assert [e for _, e in await again.audit()] == [entry(1)]
    await again.close()


async def test_only_its_owner_can_read_it(tmp_path):
    store = await SqliteAccounts.open(tmp_path / "accounts.sqlite")
    await store.write([ADA])
    assert {file.stat().st_mode & 0o077 for file in tmp_path.iterdir()} == {0}
    await store.close()


async def test_a_write_that_fails_leaves_nothing(tmp_path):
    path = tmp_path / "accounts.sqlite"
    store = await SqliteAccounts.open(path)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    with pytest.raises(StorageError, match="disk full; nothing was recorded"):
        await store.write([HOME, ADA], audit=[entry(1)])
    assert await store.load() == []
    await store.close()


async def test_files_that_cannot_be_used(tmp_path):
    newer = tmp_path / "newer.sqlite"
    with closing(sqlite3.connect(newer)) as db:
        db.execute(f"PRAGMA user_version = {FORMAT.newest + 1}")
    with pytest.raises(UserError, match="upgrade it"):
        await SqliteAccounts.open(newer)
    garbage = tmp_path / "garbage.sqlite"
    garbage.write_bytes(b"not a database, but long enough to be looked at" * 10)
    with pytest.raises(StorageError, match="cannot use the account store"):
        await SqliteAccounts.open(garbage)


async def test_argon2_hashes_differ_and_verify():
    passwords = Argon2Passwords()
    one, two = await asyncio.gather(passwords.hash("correct horse"), passwords.hash("correct horse"))
    assert one != two
    assert one.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert await passwords.verify(one, "correct horse")
    assert not await passwords.verify(one, "correct house")
    assert not await passwords.verify("no hash at all", "correct horse")
