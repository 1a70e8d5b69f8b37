"""A coordinator killed at any write, a full disk, workers that die: jobs are done and paid once, the books balance."""

import asyncio
from contextlib import suppress

import pytest

from support.faults import Saboteur
from support.market import ADMIN, Marketplace
from tutti.adapters.ledgers.sqlite import read_entries
from tutti.core.errors import StorageError
from tutti.core.registry import Choice
from tutti.domain.market.jobs import Status
from tutti.services.market import floor
from tutti.services.market.desk import Wish
from tutti.services.market.worker import Worker
from tutti.wire.messages import Compute

WRITES = range(1, 9)
"""Of a job without incidents: submitted, funded, assigned, committed, revealed, judged, verified, settled."""

WISH = Wish(client="client-0", kind=Choice("linear_regression"), reward=10)


async def submitted(place: Marketplace):
    return await place.market.submit(WISH, ADMIN, key="once")


async def check_done(place: Marketplace) -> None:
    (job,) = await place.settled(await submitted(place))
    assert job.status is Status.VERIFIED
    held = await place.worker_holds("ada")
    assert (held.free, held.staked) == (10, 150)
    assert await place.client_holds() == 9_990
    assert (await place.balanced()).escrowed == 0
    assert len(place.market.market.jobs) == 1
    keys = [entry.key for entry in read_entries(place.folder / "ledger.sqlite")]
    assert len(keys) == len(set(keys))


async def opened(tmp_path, how: str) -> tuple[Marketplace, Saboteur]:
    place, saboteur = Marketplace(tmp_path), Saboteur(how)
    await place.up(saboteur)
    await place.market.register_client("client-0", 10_000, ADMIN)
    await place.hire("ada")
    return place, saboteur


@pytest.mark.parametrize("at", WRITES)
@pytest.mark.parametrize("how", ["stop before", "stop after"])
async def test_a_coordinator_killed_at_any_write_goes_on(tmp_path, how, at):
    place, saboteur = await opened(tmp_path, how)
    saboteur.arm(at)
    asking = asyncio.create_task(submitted(place))
    async with asyncio.timeout(30):
        await saboteur.struck.wait()
    await place.down()
    with suppress(StorageError, asyncio.CancelledError):
        asking.cancel()
        await asking
    await place.up()
    await check_done(place)
    await place.close()


@pytest.mark.parametrize("at", WRITES)
async def test_a_full_disk_is_waited_out(tmp_path, at, monkeypatch):
    monkeypatch.setattr(floor, "RETRY_SECONDS", 0.02)
    place, saboteur = await opened(tmp_path, "fail")
    saboteur.arm(at)
    with suppress(StorageError):
        await submitted(place)
    await check_done(place)
    await place.close()


async def test_a_worker_that_dies_is_replaced(tmp_path):
    place, _ = await opened(tmp_path, "fail")
    await place.market.coordinate(False, "test")
    job = await submitted(place)
    await place.kill("ada")
    await place.hire("bob")
    await place.market.coordinate(True, "test")
    (job,) = await place.settled(job)
    assert [a.worker for a in job.attempts] == ["bob"]
    await place.close()


async def test_a_worker_that_is_killed_at_work_and_comes_back_goes_on(tmp_path):
    """The result is on its disk before it is committed to, so it shows the same one later."""
    place, _ = await opened(tmp_path, "fail")
    job = await submitted(place)
    await place.until_market(lambda: place.market.job(job.id).attempts)
    await place.kill("ada")
    await place.hire("ada", tokens=0)
    await check_done(place)
    await place.close()


async def test_a_worker_that_stays_away_loses_the_job_but_no_stake(tmp_path):
    place, _ = await opened(tmp_path, "fail")
    job = await submitted(place)
    await place.until_market(lambda: place.market.job(job.id).attempts)
    await place.kill("ada")
    await place.hire("bob")
    place.later = 11.0
    place.floor.poke(job.id)
    (job,) = await place.settled(job)
    if len(job.attempts) == 2:  # she may just have made it
        assert job.attempt(1).reason == "disconnected for 10 s"
        assert (await place.worker_holds("ada")).staked == 150
        assert place.market.worker("ada").lost == 1
    assert (await place.balanced()).escrowed == 0
    await place.close()


class Stuck(Worker):
    """Takes a job, and never gets anywhere."""

    def obey(self, message: object) -> None:
        if not isinstance(message, Compute):
            super().obey(message)  # type: ignore[arg-type]


async def test_a_lone_worker_that_lost_its_job_gets_it_again(tmp_path):
    place = Marketplace(tmp_path)
    await place.open()
    await place.hire("ada", worker=Stuck)
    job = await submitted(place)
    await place.until_market(lambda: place.market.job(job.id).attempts)
    await place.kill("ada")
    place.later = 11.0
    place.floor.poke(job.id)
    await place.until_market(lambda: place.market.job(job.id).attempts[0].over)
    await place.hire("ada", tokens=0)
    (job,) = await place.settled(job)
    assert [(a.worker, a.reason) for a in job.attempts] == [("ada", "disconnected for 10 s"), ("ada", "")]
    assert job.status is Status.VERIFIED
    assert (await place.balanced()).escrowed == 0
    await place.close()


async def test_a_job_that_nobody_does_fails_in_time_and_is_refunded(tmp_path):
    place = Marketplace(tmp_path)
    await place.open()
    job = await place.submit(seconds=60.0)
    place.later = 61.0
    place.floor.poke(job.id)
    (job,) = await place.settled(job)
    assert (job.status, job.failed) == (Status.FAILED, "no result within 60 s")
    assert await place.client_holds() == 10_000
    await place.close()


async def test_time_in_which_the_coordinator_was_away_does_not_count(tmp_path):
    place, _ = await opened(tmp_path, "fail")
    await place.market.coordinate(False, "test")
    job = await place.submit(seconds=60.0)
    await place.down()
    place.later = 1000.0
    await place.up()
    await place.until_market(lambda: "ada" in place.floor.present)
    await place.market.coordinate(True, "test")
    (job,) = await place.settled(job)
    assert job.status is Status.VERIFIED
    await place.close()
