"""The compute market with real workers: jobs are done, checked and paid, whatever happens on the way."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from support.market import ADMIN, Marketplace
from support.programs import SUMS
from support.served import app_of, served
from tutti.apps.client import Client
from tutti.apps.market_train import Plan, train
from tutti.core.errors import Conflict, Forbidden
from tutti.core.registry import Choice
from tutti.domain.ledger import InsufficientFunds, Mint, Order, StillUnbonding
from tutti.domain.market.events import WorkerRegistered
from tutti.domain.market.jobs import Status
from tutti.domain.market.rules import RULES
from tutti.ports import Left, Said
from tutti.services.market.desk import TABLES_OF_ONE, Who, Wish
from tutti.services.market.judging import solve
from tutti.testing import cheats
from tutti.testing.cheats import Silent
from tutti.wire.messages import Heartbeat


@pytest.fixture
async def place(tmp_path):
    place = Marketplace(tmp_path)
    await place.open()
    yield place
    await place.close()


@pytest.mark.parametrize("kind", ["linear_regression", "kmeans:clusters=3", "pca:components=2"])
async def test_a_job_is_assigned_checked_and_paid(place, kind):
    await place.hire("ada")
    (job,) = await place.settled(await place.submit(kind, 10))
    assert job.status is Status.VERIFIED
    assert (await place.worker_holds("ada")).free == 10
    assert await place.client_holds() == 9_990
    assert (await place.balanced()).escrowed == 0


# -- who may ------------------------------------------------------------------------------------------


async def test_only_who_registered_a_client_spends_its_tokens(place):
    carol, mallory = Who(name="carol"), Who(name="mallory")
    with pytest.raises(Forbidden):
        await place.market.register_client("cc", 100, carol)  # only an admin makes tokens
    await place.market.register_client("cc", 0, carol)
    await place.market.register_client("cc", 100, ADMIN)
    wish = Wish(client="cc", kind=Choice("kmeans"), reward=10)
    with pytest.raises(Forbidden):
        await place.market.submit(wish, mallory)
    job = await place.market.submit(wish, carol)
    with pytest.raises(Forbidden):
        await place.market.dispute(job.id, mallory, "")
    with pytest.raises(Forbidden):
        await place.market.register_worker(WorkerRegistered(at=0, worker="w", stake=100), mallory, grant=True)
    with pytest.raises(InsufficientFunds):
        await place.market.register_worker(WorkerRegistered(at=0, worker="w", stake=100), ADMIN)
    await place.ledger.post(Order("early", Mint(to="client:dora", amount=10)))
    with pytest.raises(Forbidden, match="has 10 tokens already"):
        await place.market.register_client("dora", 0, mallory)


async def test_only_an_admin_or_who_registered_a_worker_changes_it(place):
    """Nor does a person who is called what the node is called: the node came by itself."""
    await place.hire("ada", 150)
    for who in (Who(name="mallory"), Who(name="ada")):
        with pytest.raises(Forbidden):
            await place.market.unstake("ada", 50, "u", who)
        with pytest.raises(Forbidden):
            await place.market.withdraw("ada", "w", who)
        with pytest.raises(Forbidden):
            await place.market.register_worker(WorkerRegistered(at=0, worker="ada", stake=100, price=2**53), who)
    assert place.market.worker("ada").offer.price == 1
    assert (await place.worker_holds("ada")).staked == 150


async def test_a_worker_without_the_tokens_waits_for_them_and_then_works(place):
    await place.hire("ada", 150, tokens=0)
    await place.until_market(lambda: "ada" in place.market.market.workers)
    job = await place.submit()
    assert not place.market.job(job.id).attempts
    await place.ledger.post(Order("late", Mint(to="node:ada", amount=150)))
    place.floor.raise_stakes()
    (job,) = await place.settled(job)
    assert job.status is Status.VERIFIED
    assert (await place.worker_holds("ada")).staked == 150


async def test_owners_prices_and_kinds_are_respected(place):
    await place.hire("ada", owner="client-0")  # the client's own machine
    await place.hire("bob", price=11)
    await place.hire("eve", kinds=("pca",))
    job = await place.submit("kmeans", 10, replicas=1)
    await place.until_market(lambda: place.market.job(job.id).funded)
    assert await place.floor.assigning.assign() == 0
    assert place.market.job(job.id).status is Status.PENDING
    await place.hire("zoe")
    (job,) = await place.settled(job)
    assert [a.worker for a in job.attempts] == ["zoe"]


async def test_replicas_go_to_different_owners_and_share_the_reward(place):
    await place.hire("ada", owner="carol")
    await place.hire("bob", owner="carol")
    job = await place.submit("kmeans", 11, replicas=2)
    await place.until_market(lambda: place.market.job(job.id).attempts)
    await place.hire("zoe")
    (job,) = await place.settled(job)
    assert len({a.owner for a in job.attempts}) == 2
    assert sorted([(await place.worker_holds(a.worker)).free for a in job.attempts]) == [5, 6]


async def test_a_client_is_told_why_nobody_takes_a_job(place):
    async def trouble(**wish):
        job = await place.submit(**wish)
        await place.until_market(lambda: place.market.job(job.id).funded)
        return place.floor.assigning.why_waiting(place.market.job(job.id))

    assert await trouble() == "no worker is connected"
    await place.hire("ada", 150)
    nobody = "no connected worker can do it: ada"
    assert await trouble(kind="kmeans", reward=50) == f"{nobody} has 150 tokens at stake, this needs 373"
    assert await trouble(gpu=True) == f"{nobody} has no GPU that was measured"
    job = next(reversed(place.market.market.jobs.values()))
    assert place.floor.assigning.why_waiting(job).startswith(nobody)
    place.floor.on(Left("ada", "test"))
    assert place.floor.assigning.why_waiting(job) == "no worker is connected"
    await place.market.coordinate(False, "test")
    assert "tutti market start" in await trouble()


async def test_who_has_committed_takes_other_work_and_shows_the_result_later(place):
    """Also after the worker was killed and came back: both results are on its disk."""
    await place.hire("ada")
    shared = await place.submit("kmeans", 11, replicas=2)
    await place.until_market(lambda: any(a.commitment for a in place.market.job(shared.id).attempts))
    (other,) = await place.settled(await place.submit("pca", 5))
    assert [a.worker for a in other.attempts] == ["ada"]
    await place.kill("ada")
    await place.hire("ada", tokens=0)
    await place.hire("zoe")
    (shared,) = await place.settled(shared)
    assert [(a.worker, a.holds) for a in shared.attempts] == [("ada", True), ("zoe", True)]


async def test_a_full_budget_is_refused_before_anything_is_recorded(place):
    before = place.core.journal.offset
    with pytest.raises(InsufficientFunds):
        await place.submit(reward=10_001)
    assert place.core.journal.offset == before


async def test_a_stake_at_risk_cannot_be_taken_back(place):
    await place.hire("ada", 150, worker=Silent)
    job = await place.submit("kmeans", 10)
    await place.until_market(lambda: place.market.job(job.id).attempts)
    bond = place.market.job(job.id).attempt(1).bond
    with pytest.raises(InsufficientFunds):
        await place.market.unstake("ada", 150 - bond + 1, "u", ADMIN)
    assert await place.market.unstake("ada", 150 - bond, "u", ADMIN) == bond


async def test_a_repeated_unstake_gives_the_same_answer_after_a_restart_too(place):
    await place.hire("ada", 150)
    await place.kill("ada")  # lest it stakes again
    assert await place.market.unstake("ada", 100, "once", ADMIN) == 50
    await place.down()
    await place.up()
    assert await place.market.unstake("ada", 100, "once", ADMIN) == 50
    ada = await place.worker_holds("ada")
    assert (ada.free, ada.staked, ada.unbonding) == (0, 50, 100)
    with pytest.raises(InsufficientFunds, match="at most 50"):
        await place.market.unstake("ada", 100, "twice", ADMIN)
    with pytest.raises(StillUnbonding, match="can be withdrawn in"):
        await place.market.withdraw("ada", "soon", ADMIN)
    place.later = 7 * 86_400.0
    ada = await place.market.withdraw("ada", "late", ADMIN)
    assert (ada.free, ada.staked, ada.unbonding) == (100, 50, 0)


async def test_a_forged_update_of_a_model_costs_reputation_even_before_the_node_is_a_worker(place):
    await place.hire("ada", 150)
    await place.core.drain_node("ada", forged="computed again, 3 of 9 values differ")
    ada = place.market.worker("ada")
    assert (ada.overall.score, ada.record("kmeans").score, ada.failed) == (11, 11, 1)
    await place.join("bob", 0)
    await place.kill("bob")
    await place.core.drain_node("bob", forged="computed again, 3 of 9 values differ")
    await place.core.drain_node("bob", on=False)
    await place.down()
    await place.up()
    await place.hire("bob", 150)
    assert place.market.worker("bob").overall.score == place.market.worker("ada").overall.score == 11


async def test_nobody_fills_the_market_with_tables(place):
    somebody = Who(name="somebody")
    for number in range(TABLES_OF_ONE):
        await place.market.keep_table(bytes([number]), somebody)
    with pytest.raises(Conflict, match="20 tables of somebody wait"):
        await place.market.keep_table(b"more", somebody)
    await place.market.keep_table(b"more", Who(name="another"))


async def test_nobody_fills_the_market_with_jobs(tmp_path):
    place = Marketplace(tmp_path)
    place.rules = replace(RULES, queue=2)
    await place.open()
    try:
        for _ in range(2):
            await place.submit()
        with pytest.raises(Conflict, match="2 jobs of 'client-0' go on"):
            await place.submit()
    finally:
        await place.close()


async def test_updates_of_a_federation_are_done_by_paid_workers_and_averaged(place):
    for name in ("ada", "bob", "cyd"):
        await place.hire(name, 500)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 240)
    x = rng.standard_normal((240, 2)) + 4 * np.array([[0, 0], [1, 0], [0, 1]])[y]
    plan = Plan(client="client-0", parts=3, rounds=4, reward=5, key="spring", options={"classes": 3, "epochs": 20})
    losses: list[float] = []
    async with served(app_of(place)) as url:

        def training() -> np.ndarray:
            with Client(url) as client:
                return train(client.market, x, y.astype(float), plan, lambda _, loss: losses.append(loss))

        weights = await asyncio.to_thread(training)
        assert await place.client_holds() == 10_000 - 4 * 3 * 5
        again = await asyncio.to_thread(training)  # with its key: nothing is paid twice
    assert np.array_equal(again, weights)
    assert await place.client_holds() == 10_000 - 4 * 3 * 5
    right = np.concatenate([x, np.ones((240, 1))], axis=1) @ weights.reshape(3, 3)
    assert (right.argmax(axis=1) == y).mean() > 0.9
    assert losses[0] > losses[3]
    assert (await place.balanced()).escrowed == 0


async def test_a_program_is_run_by_workers_of_different_owners_and_a_wrong_result_costs_nine_rewards(place):
    place.floor.chance = lambda: 0.99  # no spot check: that replicas differ is what finds it
    for name in ("ada", "mallory"):
        await place.hire(name, 500, solve=cheats.random if name == "mallory" else solve)
    kind = Choice("script", {"code": SUMS})
    job = await place.market.submit(Wish(client="client-0", kind=kind, reward=20, replicas=2), ADMIN)
    known = place.market.market.jobs
    await place.until_market(lambda: any(a.holds is False for a in known[job.id].attempts))
    await place.hire("bob", 500)
    (job,) = await place.settled(job)
    assert job.status is Status.VERIFIED
    held = {name: await place.worker_holds(name) for name in ("ada", "bob", "mallory")}
    assert [held[name].free + held[name].staked - 500 for name in held] == [10, 10, -RULES.bond(10, 0.0)]
    assert await place.client_holds() == 10_000 - 20 + 10


class Watched(dict):
    """Says whether somebody looked through all of it."""

    looked_through = False

    def items(self):
        self.looked_through = True
        return super().items()


async def test_heartbeats_have_nobody_look_through_all_nodes(place):
    """Thousands of nodes send them, and most of the time no job waits."""
    await place.hire("ada")
    floor = place.floor
    floor.present = watched = Watched(floor.present)
    floor.on(Said("ada", Heartbeat(open=True)))
    assert await floor.assigning.assign() == 0
    assert not watched.looked_through
