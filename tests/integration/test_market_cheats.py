"""The gallery of cheating workers: what each of them earns, and what its client loses (nothing)."""

import asyncio
from itertools import cycle

import pytest

from support.market import ADMIN, Marketplace
from support.programs import SUMS
from tutti.core.errors import Conflict
from tutti.core.registry import Choice
from tutti.domain.market.jobs import Status
from tutti.domain.market.rules import RULES
from tutti.services.market.desk import Wish
from tutti.testing import cheats

REWARD, STAKE = 10, 150
KINDS = ("linear_regression", "kmeans:clusters=3,iterations=20", "pca:components=2", "training:epochs=3")


@pytest.fixture
async def place(tmp_path):
    place = Marketplace(tmp_path)
    await place.open()
    yield place
    await place.close()


async def first_to(place, cheat: str, kind: str = KINDS[0], **wish: object):
    """A job that the cheat gets, for there is nobody else yet."""
    job = await place.submit(kind, REWARD, **wish)
    await place.until_market(lambda: any(a.worker == cheat for a in place.market.job(job.id).attempts))
    return job


async def earned(place, worker: str) -> int:
    """By how much it is richer than it was."""
    held = await place.worker_holds(worker)
    return held.free + held.staked - STAKE


async def check_made_whole(place, job, wrong: bool = True):
    """The client has its result from somebody else, paid for once, and something for its lost time."""
    (job,) = await place.settled(job)
    assert job.status is Status.VERIFIED
    assert job.attempt(job.verified).worker == "ada"
    assert await earned(place, "ada") == REWARD
    compensation = min(job.attempt(1).bond // 2, REWARD) if wrong else 0
    assert await place.client_holds() == 10_000 - REWARD + compensation
    assert (await place.balanced()).escrowed == 0
    return job


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cheat", cheats.WRONG)
async def test_a_wrong_result_costs_its_bond(place, kind, cheat):
    await place.hire("mallory", STAKE, solve=cheats.WRONG[cheat])
    job = await first_to(place, "mallory", kind)
    await place.until_market(lambda: place.market.job(job.id).attempt(1).holds is False)
    await place.hire("ada", STAKE)
    job = await check_made_whole(place, job)
    assert await earned(place, "mallory") == -job.attempt(1).bond
    assert place.market.worker("mallory").overall.score == 11
    assert place.market.worker("ada").overall.score == 100


async def test_a_forged_run_is_found_by_a_spot_check(place):
    """Of k-means a check replays a few steps only; who is drawn for a spot check is replayed in full."""
    place.floor.chance = lambda: 0.0  # drawn every time
    await place.hire("mallory", STAKE, solve=cheats.forged_run)
    job = await first_to(place, "mallory", "kmeans:clusters=7", seed=1)
    await place.until_market(lambda: place.market.job(job.id).attempt(1).holds is False)
    await place.hire("ada", STAKE)
    job = await check_made_whole(place, job)
    assert await earned(place, "mallory") == -job.attempt(1).bond < -5 * REWARD  # cheap to forge, so the bond is high


@pytest.mark.parametrize("how", [cheats.Silent, cheats.Late])
async def test_who_does_not_deliver_in_time_earns_nothing(place, how):
    cheats.Late.now = asyncio.Event()
    await place.hire("mallory", STAKE, worker=how)
    job = await first_to(place, "mallory")
    place.later = 31.0  # no sign of its work for a whole lease
    place.floor.poke(job.id)
    await place.until_market(lambda: place.market.job(job.id).attempt(1).over)
    await place.hire("ada", STAKE)
    await check_made_whole(place, job, wrong=False)
    cheats.Late.now.set()
    assert await earned(place, "mallory") == 0  # nor is it slashed: a machine may break
    assert place.market.worker("mallory").overall.score < 50


async def test_who_copies_loses_its_bond(place):
    """A commitment is bound to a name: what is overheard opens nobody else's."""
    cheats.Honest.overheard = asyncio.Queue()
    await place.hire("ada", STAKE, worker=cheats.Honest)
    await place.hire("mallory", STAKE, worker=cheats.Copier)
    job = await place.submit(KINDS[0], 2 * REWARD, replicas=2)
    known = place.market.market.jobs
    await place.until_market(lambda: any(a.holds is False for a in known[job.id].attempts))
    await place.hire("bob", STAKE)
    (job,) = await place.settled(job)
    assert job.status is Status.VERIFIED
    assert [await earned(place, name) for name in ("ada", "mallory", "bob")] == [REWARD, -10, REWARD]
    assert await place.client_holds() == 10_000 - 2 * REWARD + REWARD // 2


@pytest.mark.parametrize("how", [cheats.Copier, cheats.Shy])
async def test_who_copies_and_is_quicker_loses_its_bond_all_the_same(place, how):
    """And need not show anything for that: the commitment has opened under another name."""
    cheats.Honest.overheard, cheats.Overtaken.now = asyncio.Queue(), asyncio.Event()
    await place.hire("ada", STAKE, worker=cheats.Overtaken)
    await place.hire("mallory", STAKE, worker=how)
    job = await place.submit(KINDS[0], 2 * REWARD, replicas=2)
    known = place.market.market.jobs
    await place.until_market(lambda: any(a.worker == "mallory" and a.commitment for a in known[job.id].attempts))
    cheats.Overtaken.now.set()
    await place.until_market(lambda: any(a.holds is False for a in known[job.id].attempts))
    (lost,) = [a for a in known[job.id].attempts if a.holds is False]
    assert lost.reason.startswith("its commitment is a copy of that of ada") or how is cheats.Copier
    await place.hire("bob", STAKE)
    await place.settled(job)
    assert [await earned(place, name) for name in ("ada", "mallory", "bob")] == [REWARD, -10, REWARD]


async def test_a_result_that_does_not_open_its_commitment_costs_the_bond(place):
    await place.hire("mallory", STAKE, worker=cheats.Swapping)
    job = await first_to(place, "mallory")
    await place.until_market(lambda: place.market.job(job.id).attempt(1).holds is False)
    assert place.market.job(job.id).attempt(1).reason == "the result is not the one that was committed to"
    await place.hire("ada", STAKE)
    await check_made_whole(place, job)


async def test_who_has_committed_waits_for_the_others_and_is_not_called_silent(place):
    await place.hire("ada", STAKE)
    job = await place.submit(KINDS[0], 2 * REWARD, replicas=2)
    await place.until_market(lambda: any(a.commitment for a in place.market.job(job.id).attempts))
    place.later = 100.0  # three leases: there is nothing that ada could give a sign of
    place.floor.poke(job.id)
    await place.hire("bob", STAKE)
    (job,) = await place.settled(job)
    assert [(a.worker, a.holds) for a in job.attempts] == [("ada", True), ("bob", True)]


async def test_at_the_deadline_who_has_committed_is_paid_and_the_rest_goes_back(place):
    await place.hire("ada", STAKE)
    job = await place.submit(KINDS[0], 2 * REWARD, replicas=2)
    await place.until_market(lambda: any(a.commitment for a in place.market.job(job.id).attempts))
    assert not place.market.job(job.id).attempt(1).result  # it may not be shown while a second worker may come
    place.later = 3601.0
    place.floor.poke(job.id)
    (job,) = await place.settled(job)
    assert (job.status, job.sealed, job.attempt(1).replayed) == (Status.VERIFIED, True, True), job
    assert await earned(place, "ada") == REWARD
    assert await place.client_holds() == 10_000 - REWARD


async def test_an_accomplice_who_shows_nothing_does_not_spare_a_cheat_the_comparison(place):
    """Of a script nothing but another's result shows what is wrong: the cheat's waits until there is one."""
    place.floor.chance = lambda: 0.99  # no spot check
    await place.hire("mallory", 500, solve=cheats.random)
    await place.hire("trudy", 500, worker=cheats.Reneging)
    kind = Choice("script", {"code": SUMS})
    job = await place.market.submit(Wish(client="client-0", kind=kind, reward=2 * REWARD, replicas=2), ADMIN)
    by = {"mallory": lambda a: bool(a.result), "trudy": lambda a: bool(a.commitment)}
    known = place.market.market.jobs
    await place.until_market(lambda: sum(by[a.worker](a) for a in known[job.id].attempts) == 2)
    place.later = 800.0  # patience with trudy is over
    place.floor.poke(job.id)
    await place.until_market(lambda: any(a.over for a in known[job.id].attempts))
    assert all(a.holds is None for a in known[job.id].attempts)
    for name in ("ada", "bob"):
        await place.hire(name, 500)
    (job,) = await place.settled(job)
    assert {a.worker for a in job.live} == {"ada", "bob"}
    held = await place.worker_holds("mallory")
    assert held.free + held.staked == 500 - RULES.bond(REWARD, 0.0)


async def test_a_colluding_pair_is_wrong_together(place):
    """Two replicas that agree convince nobody: each has to pass the check."""
    await place.hire("mallory", STAKE, solve=cheats.slightly_wrong)
    await place.hire("trudy", STAKE, solve=cheats.slightly_wrong)
    job = await place.submit(KINDS[2], 2 * REWARD, replicas=2)
    known = place.market.market.jobs
    await place.until_market(lambda: sum(a.holds is False for a in known[job.id].attempts) == 2)
    for name in ("ada", "bob"):
        await place.hire(name, STAKE)
    (job,) = await place.settled(job)
    assert job.status is Status.VERIFIED
    names = ("mallory", "trudy", "ada", "bob")
    assert [await earned(place, name) for name in names] == [-10, -10, REWARD, REWARD]


async def test_a_forged_run_that_passed_is_found_by_a_dispute(place):
    """A further worker makes the result again, everything is replayed, and the client is made whole."""
    place.floor.chance = cycle([0.99]).__next__  # no spot check
    await place.hire("mallory", 10_000, solve=cheats.forged_run)
    for seed in range(100):  # until a forged run is lucky: the check replays but two drawn steps between the ends
        job = await first_to(place, "mallory", "kmeans:clusters=7", seed=seed, window=3600.0)
        await place.until_market(lambda job=job: place.market.job(job.id).attempt(1).holds is not None)
        if place.market.job(job.id).attempt(1).holds and place.market.job(job.id).verified is None:
            await place.until_market(lambda job=job: place.market.job(job.id).verified == 1)
        if place.market.job(job.id).verified == 1:
            break
    assert not place.market.job(job.id).settled  # it can be disputed still, so nobody is paid
    before = await place.worker_holds("mallory")
    disputed = await place.market.dispute(job.id, ADMIN, "the clusters look odd")
    assert disputed.disputed == "admin"
    with pytest.raises(Conflict):
        await place.market.dispute(job.id, ADMIN, "again")
    for name in ("ada", "bob"):
        await place.hire(name, STAKE)
    await place.until_market(lambda: place.market.job(job.id).verified not in (None, 1))
    done = place.market.job(job.id)
    assert done.attempt(1).holds is False
    assert done.attempt(1).replayed
    place.later = 3601.0
    place.floor.poke(job.id)
    await place.settled(job)
    held = await place.worker_holds("mallory")
    assert held.staked + held.free == before.staked + before.free - done.attempt(1).bond
    assert [await earned(place, name) for name in ("ada", "bob")] == [REWARD, REWARD]
    assert (await place.balanced()).escrowed >= 0


async def test_a_dispute_of_an_honest_result_costs_the_client_a_further_worker(place):
    await place.hire("ada", STAKE)
    job = await place.submit(KINDS[1], REWARD, window=3600.0)
    await place.until_market(lambda: place.market.job(job.id).verified == 1)
    await place.market.dispute(job.id, ADMIN, "")
    await place.hire("bob", STAKE)
    await place.until_market(lambda: place.market.job(job.id).verified is not None)
    place.later = 3601.0
    place.floor.poke(job.id)
    await place.settled(job)
    assert [await earned(place, name) for name in ("ada", "bob")] == [REWARD, REWARD]
    assert await place.client_holds() == 10_000 - 2 * REWARD
