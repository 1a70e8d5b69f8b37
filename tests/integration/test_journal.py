"""Commands that share a write: all or none of a batch is recorded, whoever fails or goes away meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest

from support.faults import SabotagedLog, Saboteur
from support.worlds import DEADLINE, SCHEMA, toy_spec
from tutti.adapters.logs.sqlite import SqliteLog
from tutti.core.errors import Conflict, StorageError
from tutti.domain import commands
from tutti.domain import events as e
from tutti.services.journal import Journal

NODES = tuple(f"n{n}" for n in range(8))
FIRST, *OTHERS = NODES


class Bench:
    """A journal on a real log, with one job whose round is open, and a saboteur before the log."""

    def __init__(self, log: SqliteLog) -> None:
        self.log, self.saboteur = log, Saboteur("stop before")
        self.journal = Journal(SabotagedLog(log, self.saboteur), lambda: 1000.0)

    async def begin(self) -> None:
        await self.journal.submit("job", toy_spec(nodes=len(NODES)), SCHEMA, by="", paused=False)
        await self.journal.job("job", commands.Initialise(model="m", state="m", parameters=4))
        await self.journal.job("job", commands.Open(candidates=NODES))

    def hand_in(self, node: str) -> Coroutine[Any, Any, list[e.JobEvent]]:
        update = commands.SubmitUpdate(round=1, attempt=0, node=node, digest=f"of {node}", weight=1, metrics={})
        return self.journal.job("job", update)

    async def while_one_is_written(
        self, *others: Coroutine[Any, Any, list[e.JobEvent]]
    ) -> tuple["asyncio.Task[list[e.JobEvent]]", ...]:
        """The first node's update is being written, slowly; the others wait for their turn."""
        self.saboteur.arm(1)
        first = asyncio.create_task(self.hand_in(FIRST))
        await self.saboteur.struck.wait()
        tasks = [asyncio.create_task(other) for other in others]
        await settle()
        assert not any(task.done() for task in (first, *tasks))
        return first, *tasks

    async def recorded(self) -> list[str]:
        """Whose updates the log has, in its order. What is in memory must be what the log says."""
        replayed = Journal(self.log, lambda: 1000.0)
        await replayed.load()
        assert replayed.jobs == self.journal.jobs
        events = [recorded.event for recorded in await self.log.read(stream="job:job")]
        return [event.node for event in events if isinstance(event, e.UpdateAccepted)]


async def settle() -> None:
    """Let everybody run until all wait for something that only the test can bring about."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(await SqliteLog.open(tmp_path / "log.sqlite"))
    await bench.begin()
    async with asyncio.timeout(DEADLINE):
        yield bench
    await bench.log.close()


async def test_commands_that_wait_while_the_log_writes_share_the_next_write(bench: Bench) -> None:
    tasks = await bench.while_one_is_written(*map(bench.hand_in, OTHERS))
    bench.saboteur.let_go()
    outcomes = await asyncio.gather(*tasks)
    assert [[event.node for event in events] for events in outcomes] == [[node] for node in NODES]
    assert bench.saboteur.count == 2
    assert await bench.recorded() == list(NODES)


async def test_each_command_is_decided_as_if_those_before_it_had_happened(bench: Bench) -> None:
    """The second of two equal updates does not count, and what follows a stop is refused."""
    stop = bench.journal.job("job", commands.Stop())
    tasks = await bench.while_one_is_written(bench.hand_in("n1"), bench.hand_in("n1"), stop, bench.hand_in("n2"))
    bench.saboteur.let_go()
    *_, again, _, late = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(event) for event in again] == [e.UpdateRefused]
    assert isinstance(late, Conflict)
    assert bench.saboteur.count == 2
    assert await bench.recorded() == [FIRST, "n1"]


async def test_a_write_that_fails_fails_its_whole_batch_and_leaves_the_state_as_it_was(bench: Bench) -> None:
    tasks = await bench.while_one_is_written(*map(bench.hand_in, OTHERS))
    bench.saboteur.how, bench.saboteur.at = "fail", 2
    bench.saboteur.let_go()
    first, *others = await asyncio.gather(*tasks, return_exceptions=True)
    assert len(first) == 1
    assert [type(error) for error in others] == [StorageError] * len(OTHERS)
    assert await bench.recorded() == [FIRST]
    again = await asyncio.gather(*map(bench.hand_in, OTHERS))
    assert [len(events) for events in again] == [1] * len(OTHERS)
    assert await bench.recorded() == list(NODES)


async def test_a_caller_that_goes_away_before_its_turn_takes_only_its_own_command_along(bench: Bench) -> None:
    first, gone, *others = await bench.while_one_is_written(*map(bench.hand_in, OTHERS))
    gone.cancel()
    await asyncio.wait([gone])
    bench.saboteur.let_go()
    await asyncio.gather(first, *others)
    assert gone.cancelled()
    assert await bench.recorded() == [FIRST, *OTHERS[1:]]
    assert len(await bench.hand_in(OTHERS[0])) == 1


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("who", [0, 3])
async def test_a_caller_that_goes_away_during_the_write_changes_nothing_for_the_others(
    bench: Bench, who: int, times: int
) -> None:
    """Who: the one that writes for all, or one of those it writes for. Cancelled once, or again and again."""
    first, *others = await bench.while_one_is_written(*map(bench.hand_in, OTHERS))
    slow, bench.saboteur.at = bench.saboteur.let_go, 2
    bench.saboteur.struck.clear()
    slow()
    await bench.saboteur.struck.wait()  # now the batch of all others is being written
    for _ in range(times):
        others[who].cancel()
        await settle()
    late = asyncio.create_task(bench.journal.job("job", commands.Pause()))  # must wait for the same write
    await settle()
    bench.saboteur.let_go()
    outcomes = await asyncio.gather(first, *others, return_exceptions=True)
    assert isinstance(outcomes.pop(1 + who), asyncio.CancelledError)
    assert [len(events) for events in outcomes] == [1] * len(outcomes)
    assert len(await late) == 1
    assert await bench.recorded() == list(NODES)


async def test_the_only_caller_goes_away_during_the_write_and_its_event_counts_once(bench: Bench) -> None:
    (first,) = await bench.while_one_is_written()
    for _ in range(3):
        first.cancel()
        await settle()
    bench.saboteur.let_go()
    await asyncio.wait([first])
    assert first.cancelled()
    assert await bench.recorded() == [FIRST]
