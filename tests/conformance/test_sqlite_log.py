"""The SQLite log on its file: reopening, one owner, and what disks and other programs do to it."""

import asyncio
import os
import sqlite3
from contextlib import closing

import pytest

from tutti.adapters.logs.group import GROUP, LogInUse
from tutti.adapters.logs.sqlite import FORMAT, SqliteLog
from tutti.adapters.migrations import FormatTooNew
from tutti.core.errors import StorageError
from tutti.testing.logs import EVENTS, news


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events.db"


async def written(path, events=EVENTS):
    log = await SqliteLog.open(path)
    recorded = await log.append("a", 0, events)
    await log.close()
    return recorded


async def test_everything_is_there_after_reopening(path):
    recorded = await written(path)
    log = await SqliteLog.open(path)
    assert await log.read() == recorded
    (later,) = await log.append("a", len(EVENTS), news(1))
    assert later.offset == len(EVENTS) + 1
    await log.close()


async def test_the_directory_is_made(tmp_path):
    log = await SqliteLog.open(tmp_path / "some" / "where" / "events.db")
    await log.close()


async def test_a_log_has_one_owner(path):
    first = await SqliteLog.open(path)
    with pytest.raises(LogInUse, match=f"process {os.getpid()}.*another data directory"):
        await SqliteLog.open(path)
    await first.append("a", 0, news(1))
    await first.close()
    second = await SqliteLog.open(path)
    assert len(await second.read()) == 1
    await second.close()


async def test_another_program_may_read_meanwhile(path):
    log = await SqliteLog.open(path)
    with closing(sqlite3.connect(path)) as visitor:
        visitor.execute("BEGIN")
        assert visitor.execute("SELECT count(*) FROM events").fetchone() == (0,)
        await log.append("a", 0, EVENTS)
        visitor.execute("COMMIT")
        rows = visitor.execute("SELECT offset, type, json_extract(data, '$.type'), at FROM events").fetchall()
    assert rows == [(i, type(event).__name__, type(event).__name__, event.at) for i, event in enumerate(EVENTS, 1)]
    await log.close()


async def test_a_newer_format_is_refused(path):
    await written(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {FORMAT.newest + 1}")
    with pytest.raises(FormatTooNew, match=f"format {FORMAT.newest + 1}.*upgrade"):
        await SqliteLog.open(path)
    with pytest.raises(FormatTooNew):  # and the refusal left no lock behind
        await SqliteLog.open(path)


async def test_a_file_that_is_no_log(path):
    path.write_bytes(b"These are my notes. " * 500)
    with pytest.raises(StorageError, match="restore it from a copy"):
        await SqliteLog.open(path)
    assert path.read_bytes() == b"These are my notes. " * 500


async def test_damaged_pages(path):
    await written(path, news(2000))
    with path.open("r+b") as file:
        file.seek(8 * 4096)
        file.write(b"\xff" * 8 * 4096)
    log = await SqliteLog.open(path)
    with pytest.raises(StorageError, match="damaged"):
        await log.read(limit=5000)
    await log.close()


async def test_a_damaged_event_is_named(path):
    await written(path)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("""UPDATE events SET data = '{"type":"Gossip"}' WHERE offset = 3""")
    log = await SqliteLog.open(path)
    assert len(await log.read(limit=2)) == 2
    with pytest.raises(StorageError, match="event 3 of the log is damaged"):
        await log.read()
    await log.close()


async def test_a_failed_write_leaves_nothing_and_the_log_goes_on(path, monkeypatch):
    """Another program holds the write lock for longer than the log waits."""
    monkeypatch.setattr("tutti.adapters.logs.sqlite.BUSY_SECONDS", 0.0)
    log = await SqliteLog.open(path)
    before = await log.append("a", 0, news(1))
    with closing(sqlite3.connect(path, isolation_level=None)) as bully:
        bully.execute("BEGIN IMMEDIATE")
        outcomes = await asyncio.gather(
            *(log.append(f"s{i}", 0, news(2)) for i in range(GROUP + 10)), return_exceptions=True
        )
        assert {type(outcome) for outcome in outcomes} == {StorageError}
        assert "locked" in str(outcomes[0])
        assert await log.read() == before
        bully.execute("ROLLBACK")
    after = await log.append("a", 1, news(1))
    assert await log.read() == before + after
    await log.close()


async def test_a_cancelled_append_that_waits_is_not_written(path):
    log = await SqliteLog.open(path)
    running, waiting, later = (asyncio.ensure_future(log.append(stream, 0, news(1))) for stream in "abc")
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    expected = [*await running, *await later]
    assert await log.read() == expected
    await log.close()


async def test_close_finishes_what_waits(path):
    log = await SqliteLog.open(path)
    appends = [asyncio.ensure_future(log.append(f"s{i}", 0, news(1))) for i in range(2 * GROUP)]
    await asyncio.sleep(0)
    await log.close()
    await asyncio.gather(*appends)
    log = await SqliteLog.open(path)
    assert len(await log.read()) == 2 * GROUP
    await log.close()
