"""Two coordinators on one log: one stands still at a write, another takes over, and the first goes on regardless."""

from contextlib import suppress
from pathlib import Path

import pytest
from test_faults import first

from support.faults import Saboteur
from support.services import alone, database
from support.worlds import World, toy_spec
from tutti.adapters.logs.postgres import PostgresLog
from tutti.core.errors import StorageError
from tutti.domain.jobs import Job
from tutti.services import driver

SPEC = toy_spec(nodes=2, rounds=2, strategy="fedavgm", cohort={"deadline": 30})
EMPTY = "TRUNCATE events"
LAPSE = "UPDATE events_owner SET until = '-infinity'"
HOUR = 3600.0


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage is tried again sooner than for people: also by whoever has lost the log."""
    monkeypatch.setattr(driver, "STORAGE_RETRY_SECONDS", 0.02)


async def run(folder: Path, url: str, saboteur: Saboteur, at: int, skew: float) -> Job | None:
    """A job whose owner stands still at a write; None if that never came. The next one's clock differs by `skew`."""
    await alone(url, EMPTY)
    world = World(folder)
    world.open_log = lambda: PostgresLog.open(url)
    await world.up(saboteur)
    await world.join("ada", 0)
    await world.join("bob", 1)
    job = await world.core.submit(SPEC)
    saboteur.arm(at)
    if await first(saboteur.struck.wait(), world.core.wait_final(job.id)) == 0:
        asleep = world.core
        for link in world.links.values():
            link.fabric = None
            link.drop()
        await world.ledger.close()
        await alone(url, LAPSE)
        world.later = skew
        await world.up()
        saboteur.at = -1
        saboteur.let_go()
        job = await world.finished(job)
        told = await world.core.log.read()
        assert [each.offset for each in told] == [*range(1, len(told) + 1)]
        assert sum(type(each.event).__name__ == "RoundClosed" for each in told) == len(job.past)
        with suppress(StorageError):
            await asleep.stop()
    else:
        job = await world.finished(job)
    await world.close()
    return job if saboteur.struck.is_set() or at == 0 else None


@pytest.mark.parametrize(("how", "skew"), [("stop before", HOUR), ("stop after", -HOUR)])
async def test_whoever_believes_to_own_a_job_still_changes_nothing(tmp_path: Path, how: str, skew: float) -> None:
    async with database() as url:
        await (await PostgresLog.open(url)).close()
        expected = await run(tmp_path / "calm", url, Saboteur(), 0, 0)
        assert expected is not None
        for at in range(2, 40, 4):
            job = await run(tmp_path / str(at), url, Saboteur(how), at, skew)
            if job is None:
                break
            assert (job.status, job.outcome) == ("completed", expected.outcome), f"{how} at write {at}"
            assert job.model == expected.model, f"{how} at write {at}"
        assert at > 6, "nobody stood still"
