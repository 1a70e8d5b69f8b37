"""Every write of a whole job fails once, or is where the coordinator dies: the job goes on to the same model."""

import asyncio
from collections.abc import Awaitable
from pathlib import Path

import pytest

from support.faults import Saboteur
from support.worlds import DEADLINE, World, toy_spec
from tutti.domain.jobs import Job
from tutti.services import driver

SPEC = toy_spec(nodes=2, rounds=2, strategy="fedavgm")
MOST_WRITES = 60


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage is tried again sooner than for people."""
    monkeypatch.setattr(driver, "STORAGE_RETRY_SECONDS", 0.02)


async def run(folder: Path, saboteur: Saboteur, of: str, at: int) -> Job | None:
    """One job in a world of its own, whose saboteur strikes at the given write; None if that never came."""
    world = World(folder)
    await world.up(saboteur, of=of)
    await world.join("ada", 0)
    await world.join("bob", 1)
    job = await world.core.submit(SPEC)
    saboteur.arm(at)
    if saboteur.how != "fail" and await first(saboteur.struck.wait(), world.core.wait_final(job.id)) == 0:
        await world.down()
        await world.up()
    job = await world.finished(job)
    await world.close()
    return job if saboteur.struck.is_set() or at == 0 else None


async def first(*awaitables: Awaitable[object]) -> int:
    """Which one is done first."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=DEADLINE)
    number = next(number for number, task in enumerate(tasks) if task.done())
    for task in tasks:
        task.cancel()
    return number


@pytest.mark.parametrize("of", ["log", "blobs"])
@pytest.mark.parametrize("how", ["fail", "stop before", "stop after"])
async def test_at_every_write(tmp_path: Path, of: str, how: str) -> None:
    expected = await run(tmp_path / "calm", Saboteur(), of, 0)
    assert expected is not None
    assert expected.status == "completed", expected.outcome
    for at in range(1, MOST_WRITES):
        job = await run(tmp_path / str(at), Saboteur(how), of, at)
        if job is None:
            break
        assert (job.status, job.outcome) == ("completed", expected.outcome), f"{how} at write {at}"
        assert job.model == expected.model, f"{how} at write {at}"
        counted = [dict(summary.counted) for summary in job.past if summary.succeeded]
        assert counted == [dict(summary.counted) for summary in expected.past], f"{how} at write {at}"
    assert at > 4, "the saboteur never struck"
