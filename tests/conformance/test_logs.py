"""Every event log against the suite, and against a list as its model."""

import asyncio
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.services import database
from tutti.adapters.logs.memory import MemoryLog
from tutti.adapters.logs.postgres import PostgresLog
from tutti.adapters.logs.sqlite import SqliteLog
from tutti.ports.log import EventLog, Recorded, VersionConflict
from tutti.testing.logs import TrimmedLogSuite, news


class TestMemoryLog(TrimmedLogSuite):
    @pytest.fixture
    async def log(self):
        log = MemoryLog()
        yield log
        await log.close()


class TestSqliteLog(TrimmedLogSuite):
    @pytest.fixture
    async def log(self, tmp_path):
        log = await SqliteLog.open(tmp_path / "events.db")
        yield log
        await log.close()


class TestPostgresLog(TrimmedLogSuite):
    @pytest.fixture
    async def log(self):
        async with database() as url:
            log = await PostgresLog.open(url)
            yield log
            await log.close()


APPENDS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(-1, 1), st.integers(0, 3)), max_size=12)
"""Appends as (stream, how far the version is off, how many events)."""


async def tell(log: EventLog, appends: list[tuple[str, int, int]]) -> list[Recorded]:
    """Append what fits; returns what the log should hold then."""
    versions: Counter[str] = Counter()
    expected: list[Recorded] = []
    for stream, off, count in appends:
        events = news(count, first=len(expected))
        try:
            recorded = await log.append(stream, versions[stream] + off, events)
        except VersionConflict:
            assert off != 0
            continue
        assert off == 0
        for event in events:
            versions[stream] += 1
            expected.append(Recorded(len(expected) + 1, stream, versions[stream], event))
        assert recorded == expected[len(expected) - count :]
    return expected


@given(APPENDS)
@settings(max_examples=30, deadline=None)
def test_a_log_is_a_list(appends):
    async def story():
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "events.db"
            log = await SqliteLog.open(path)
            expected = await tell(log, appends)
            assert await log.read() == expected
            await log.close()
            log = await SqliteLog.open(path)
            assert await log.read() == expected
            assert expected == await tell(MemoryLog(), appends)
            await log.close()

    asyncio.run(story())
