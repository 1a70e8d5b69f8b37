"""The PostgreSQL stores on a real server: reopening, one owner, broken connections, and what people get wrong."""

import asyncio
import contextlib

import asyncpg
import pytest

from support.services import CUT, alone, database
from tutti.adapters import addresses
from tutti.adapters.accounts.postgres import PostgresAccounts
from tutti.adapters.ledgers.postgres import PostgresEntries
from tutti.adapters.logs.group import LogInUse
from tutti.adapters.logs.postgres import FORMAT, PostgresLog
from tutti.adapters.migrations import FormatTooNew
from tutti.core.errors import StorageError, UserError
from tutti.ports import LogLost
from tutti.ports.log import Owner
from tutti.testing.accounts import RECORDS, entry, sorted_by_key
from tutti.testing.logs import EVENTS, news

LAPSE = "UPDATE events_owner SET until = '-infinity'"


async def persistently(ask):
    """The answer, once the connections that were cut have been noticed."""
    for _ in range(4):
        with contextlib.suppress(StorageError):
            return await ask()
    return await ask()


async def nothing(owner):
    """What a standby does while it waits."""


@pytest.fixture
async def url():
    async with database() as url:
        yield url


async def test_everything_is_there_after_reopening(url):
    log, accounts = await PostgresLog.open(url), await PostgresAccounts.open(url)
    recorded = await log.append("a", 0, EVENTS)
    await accounts.write(RECORDS, audit=[entry(1)])
    await log.close()
    await accounts.close()
    log, accounts = await PostgresLog.open(url), await PostgresAccounts.open(url)
    assert await log.read() == recorded
    (later,) = await log.append("a", len(EVENTS), news(1))
    assert later.offset == len(EVENTS) + 1
    assert sorted_by_key(await accounts.load()) == sorted_by_key(list(RECORDS))
    assert [e for _, e in await accounts.audit()] == [entry(1)]
    await log.close()
    await accounts.close()


async def test_a_log_has_one_owner(url):
    first = await PostgresLog.open(url)
    with pytest.raises(LogInUse, match="another process"):
        await PostgresLog.open(url)
    await first.append("a", 0, news(1))
    await first.close()
    second = await PostgresLog.open(url)
    assert len(await second.read()) == 1
    await second.close()


async def test_a_log_goes_on_when_its_connections_were_cut(url):
    log, accounts = await PostgresLog.open(url), await PostgresAccounts.open(url)
    before = await log.append("a", 0, news(2))
    await accounts.write(RECORDS)
    await alone(url, CUT)
    with pytest.raises(StorageError, match="perhaps it was recorded: look after the server"):
        await log.append("a", 2, news(1, first=2))
    after = await log.append("a", 2, news(1, first=2))
    assert sorted_by_key(await persistently(accounts.load)) == sorted_by_key(list(RECORDS))
    assert await persistently(log.read) == before + after
    await log.close()
    await accounts.close()


async def test_what_was_written_when_the_connection_broke_was_not_recorded(url):
    """A second statement of the same log, as one that the server finished after the connection was lost."""
    log = await PostgresLog.open(url)
    before = await log.append("a", 0, news(1))
    await alone(url, "INSERT INTO events VALUES (2, 'a', 2, 'NodeDropped', '{}', 0.0)")
    assert await log.read() == before
    with pytest.raises(StorageError):
        await log.append("a", 1, news(1, first=1))
    again = await log.append("a", 1, news(1, first=1))
    assert await log.read() == before + again
    await log.close()


async def test_a_log_that_another_process_used_meanwhile_is_left_alone(url):
    log = await PostgresLog.open(url)
    await alone(url, CUT)
    with pytest.raises(StorageError):
        await log.append("a", 0, news(1))
    other = await PostgresLog.open(url)
    with pytest.raises(LogLost, match="start this anew"):
        await log.append("a", 0, news(1))
    theirs = await other.append("a", 0, news(1))
    await other.close()
    with pytest.raises(LogLost, match="start this anew"):
        await log.append("a", 0, news(1))
    await log.close()
    other = await PostgresLog.open(url)
    assert await other.read() == theirs
    await other.close()


async def test_what_an_owner_writes_with_an_old_token_is_refused_by_the_server(url):
    """Its connection and its lock are as good as ever: nothing but the statement itself can tell."""
    log = await PostgresLog.open(url)
    before = await log.append("a", 0, news(1))
    await alone(url, "UPDATE events_owner SET opened = opened + 1")
    with pytest.raises(LogLost, match="has taken over"):
        await log.append("a", 1, news(1, first=1))
    with pytest.raises(LogLost):
        await log.keep()
    await log.close()
    other = await PostgresLog.open(url)
    assert await other.read() == before
    await other.close()


async def test_of_two_that_write_while_one_takes_over_each_event_is_in_the_log_once_or_refused(url):
    """Both believe that the log is theirs; who reads it afterwards has what was acknowledged, in one order."""
    first = await PostgresLog.open(url)
    recorded, refused, begun = [], 0, asyncio.Event()

    async def write(log, stream, most):
        nonlocal refused
        for n in range(most):
            try:
                recorded.extend(await log.append(stream, n, news(1, first=n)))
                begun.set()
            except StorageError:
                refused += 1
                return

    writing = asyncio.create_task(write(first, "a", 1_000_000))  # until it is refused
    await begun.wait()
    await alone(url, LAPSE)
    second = await PostgresLog.open(url)
    await asyncio.gather(writing, write(second, "b", 40))
    assert refused == 1
    assert await second.read() == sorted(recorded, key=lambda each: each.offset)
    assert [each.offset for each in await second.read()] == [*range(1, len(recorded) + 1)]
    await first.close()
    await second.close()


async def test_a_lease_is_renewed_and_once_it_lapses_the_log_passes_on(url, monkeypatch):
    monkeypatch.setattr("tutti.adapters.logs.postgres.LEASE_SECONDS", 0.5)
    first = await PostgresLog.open(url)
    keeping = asyncio.create_task(first.keep())
    db, seen = await asyncpg.connect(url), set()
    while len(seen) < 3:
        seen.add(await db.fetchval("SELECT until FROM events_owner"))
    await db.close()
    keeping.cancel()  # as a machine that stands still: its connection, and with it the lock, is there
    waits = asyncio.Event()
    second = await PostgresLog.beside(url)
    await second.stand_by(waits.set, nothing)
    assert waits.is_set()
    await second.append("a", 0, news(1))
    with pytest.raises(LogLost):
        await first.keep()
    await first.close()
    await second.close()


async def test_an_owner_that_may_be_replaced_gives_up_when_it_cannot_renew(url, monkeypatch):
    monkeypatch.setattr("tutti.adapters.logs.postgres.LEASE_SECONDS", 0.3)
    log = await PostgresLog.open(url)
    await alone(url, "ALTER TABLE events_owner RENAME TO elsewhere")
    with pytest.raises(LogLost, match="may have taken over"):
        await log.keep(replaceable=True)
    await alone(url, "ALTER TABLE elsewhere RENAME TO events_owner")
    await log.append("a", 0, news(1))
    await log.close()


async def test_a_log_that_is_given_free_passes_on_at_once(url):
    first = await PostgresLog.open(url)
    waits = asyncio.Event()
    second = await PostgresLog.beside(url)
    following = asyncio.create_task(second.stand_by(waits.set, nothing))
    await waits.wait()
    await first.close()
    await following
    await second.close()


async def test_whoever_stands_by_knows_the_owner_and_reads_what_it_is_told(url):
    """Before that is settled, and whether or not it is told of every event."""
    first = await PostgresLog.beside(url, "first", "http://one:8000")
    await first.stand_by(lambda: None, nothing)
    second, owners = await PostgresLog.beside(url), asyncio.Queue()

    async def look(owner):
        owners.put_nowait(owner)

    following = asyncio.create_task(second.stand_by(lambda: None, look))
    assert await owners.get() == Owner(first.token, "first", "http://one:8000")
    told = second.follow(0)
    written = await first.append("a", 0, news(3))
    second.heard(written[0])
    assert await anext(told) == written[:1]
    second.heard(written[2])
    assert await anext(told) == written[1:]
    following.cancel()
    await first.close()
    await second.close()


async def test_whoever_stands_by_reads_what_is_settled_and_no_more(url):
    """What comes after that may still be taken back: its writer does not know yet whether it is written."""
    first = await PostgresLog.open(url)
    before = await first.append("a", 0, news(2))
    await alone(url, "UPDATE events_owner SET settled = 1")
    second, seen = await PostgresLog.beside(url), asyncio.Queue()

    async def look(owner):
        seen.put_nowait(await second.read())

    following = asyncio.create_task(second.stand_by(lambda: None, look))
    assert await seen.get() == before[:1]
    keeping = asyncio.create_task(first.keep())
    while (await seen.get()) != before:
        pass
    keeping.cancel()
    more = await first.append("a", 2, news(1, first=2))
    await first.close()
    await following
    assert await second.read() == before + more
    await second.close()


async def test_a_newer_format_is_refused_and_nothing_is_touched(url):
    log = await PostgresLog.open(url)
    await log.append("a", 0, news(1))
    await log.close()
    await alone(url, f"UPDATE tutti_formats SET version = {FORMAT.newest + 1}")
    with pytest.raises(FormatTooNew, match=f"format {FORMAT.newest + 1}.*upgrade"):
        await PostgresLog.open(url)
    await alone(url, f"UPDATE tutti_formats SET version = {FORMAT.newest}")
    log = await PostgresLog.open(url)
    assert len(await log.read()) == 1
    await log.close()


async def test_a_damaged_event_is_named(url):
    log = await PostgresLog.open(url)
    await log.append("a", 0, EVENTS)
    await alone(url, """UPDATE events SET data = '{"type":"Gossip"}' WHERE "offset" = 3""")
    assert len(await log.read(limit=2)) == 2
    with pytest.raises(StorageError, match="event 3 of the log is damaged"):
        await log.read()
    await log.close()


async def test_a_write_of_accounts_is_whole(url):
    store = await PostgresAccounts.open(url)
    await alone(url, "ALTER TABLE audit ADD CHECK (who <> 'bob')")
    with pytest.raises(StorageError, match="nothing was recorded"):
        await store.write(RECORDS, audit=[entry(1, who="bob")])
    assert await store.load() == []
    await store.close()


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ("postgresql://postgres:secret@127.0.0.1:1/tutti", StorageError, "127.0.0.1:1/tutti.*look after the server"),
        ("postgresql://postgres@127.0.0.1:5432/no_such_db", UserError, "createdb"),
        ("postgresql://nobody_here@127.0.0.1:5432/postgres", UserError, "check user"),
        ("postgresql://postgres@127.0.0.1:port/tutti", UserError, "expected an address"),
    ],
)
async def test_addresses_that_do_not_work(url, wrong, error, says):
    for opened in (PostgresLog.open(wrong), PostgresAccounts.open(wrong), PostgresEntries(wrong).open()):
        with pytest.raises(error, match=says) as raised:
            await opened
        assert "secret" not in str(raised.value)


def test_a_password_is_not_shown():
    shown = addresses.shown("postgresql://me:secret@db:5433/tutti?password=secret")
    assert shown == "postgresql://me:***@db:5433/tutti?password=***"
