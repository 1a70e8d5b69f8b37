"""The coordinator with real nodes in one process: the same model whatever dies, and every refusal with its reason."""

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest

from support.worlds import World, toy_spec
from tutti.core.errors import Conflict, Forbidden, NotFound
from tutti.core.params import Params
from tutti.core.registry import UnknownName
from tutti.domain.jobs import Job, Status
from tutti.domain.policy import Policy
from tutti.domain.spec import BadSpec
from tutti.services.access import UPLOADS_PER_TASK
from tutti.wire import tensors

PARTS = {"ada": 0, "bob": 1, "cyd": 2}


@pytest.fixture
async def world(tmp_path: Path):
    world = World(tmp_path)
    await world.up()
    yield world
    await world.close()


async def join_all(world: World, order=("ada", "bob", "cyd")) -> None:
    for name in order:
        await world.join(name, PARTS[name])


async def model_of(world: World, job: Job) -> Params:
    return tensors.decode(await world.core.blobs.read(job.model))


async def undisturbed(folder: Path, **fields) -> Job:
    world = World(folder)
    await world.up()
    try:
        await join_all(world)
        return await world.finished(await world.core.submit(toy_spec(**fields)))
    finally:
        await world.close()


async def test_a_job_runs_to_its_end_and_learns(world):
    await join_all(world)
    job = await world.finished(await world.core.submit(toy_spec(rounds=8)))
    assert (job.status, job.rounds_done) == (Status.COMPLETED, 8)
    assert job.evaluations[8]["nodes"]["loss"] < 0.2 * job.evaluations[0]["nodes"]["loss"]
    for summary in job.past[-5:-1]:
        assert summary.counted == {"ada": 16, "bob": 16, "cyd": 16}


async def test_nodes_may_be_idle_for_longer_than_a_lease_before_they_are_asked(world):
    await join_all(world)
    first = await world.finished(await world.core.submit(toy_spec(rounds=1)))
    world.later = 100_000.0
    second = await world.finished(await world.core.submit(toy_spec(rounds=1)))
    assert (second.status, second.model) == (Status.COMPLETED, first.model)
    assert [summary.reason for summary in second.past] == [summary.reason for summary in first.past]


async def test_a_node_that_is_silent_about_its_work_loses_its_lease(world):
    gate = threading.Event()
    await world.join("ada", 0)
    await world.join("bob", 1, gate=gate)
    await world.join("cyd", 2)
    rules = {"lease": 60.0, "quorum": 2}
    job = await world.core.submit(toy_spec(rounds=1, nodes=3, cohort=rules, evaluation={"nodes": False}))
    await world.until(lambda job: job.round is not None and job.round.came == 2, job)
    while (seen := world.core.presence.get("bob")) is None or seen.progress is None:  # noqa: ASYNC110  # no event
        await asyncio.sleep(0)  # its one sign of life is on its way
    world.later = 61.0
    world.look_again()
    job = await world.finished(job)
    assert sorted(job.past[0].counted) == ["ada", "cyd"]
    gate.set()


async def test_the_first_round_is_the_weighted_mean_of_what_the_nodes_send(world):
    await world.join("ada", 0)
    alone = await world.finished(await world.core.submit(toy_spec(nodes=1, rounds=1)))
    await world.join("bob", 1)
    both = await world.finished(await world.core.submit(toy_spec(nodes=2, rounds=1)))
    assert both.initial_model == alone.initial_model
    assert both.model != alone.model
    start = tensors.decode(await world.core.blobs.read(alone.initial_model)).buffer
    assert not np.array_equal((await model_of(world, alone)).buffer, start)


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam:server_lr=0.05", "fedavgm"])
async def test_the_same_seed_gives_the_same_bits_in_any_order_of_joining(tmp_path, strategy):
    first = await undisturbed(tmp_path / "one", strategy=strategy)
    other = World(tmp_path / "two")
    await other.up()
    await join_all(other, ("cyd", "ada", "bob"))
    again = await other.finished(await other.core.submit(toy_spec(strategy=strategy)))
    await other.close()
    assert again.model == first.model
    assert first.status is Status.COMPLETED


@pytest.mark.parametrize("moment", ["initialised", "open", "one accepted", "between rounds"])
@pytest.mark.parametrize("strategy", ["fedavg", "fedadam:server_lr=0.05"])
async def test_a_coordinator_that_dies_goes_on_to_the_same_model(tmp_path, moment, strategy):
    expected = await undisturbed(tmp_path / "calm", strategy=strategy)
    world = World(tmp_path / "storm")
    await world.up()
    await join_all(world)
    job = await world.core.submit(toy_spec(strategy=strategy))
    reached = {
        "initialised": lambda job: job.model != "",
        "open": lambda job: job.round is not None and job.round.number == 2,
        "one accepted": lambda job: job.round is not None and job.round.number == 2 and job.round.came >= 1,
        "between rounds": lambda job: job.rounds_done == 2,
    }[moment]
    await world.until(reached, job)
    await world.down()
    await world.up()
    job = await world.finished(job)
    assert job.model == expected.model
    assert [sorted(summary.counted) for summary in job.past] == [sorted(summary.counted) for summary in expected.past]
    await world.close()


async def test_a_node_that_dies_and_returns_changes_nothing(tmp_path, world):
    expected = await undisturbed(tmp_path / "calm", rounds=6)
    await join_all(world)
    job = await world.core.submit(toy_spec(rounds=6))
    await world.until(lambda job: job.rounds_done >= 1, job)
    await world.kill("bob")
    await world.join("bob", PARTS["bob"])
    assert (await world.finished(job)).model == expected.model


async def test_a_node_that_never_returns_costs_only_its_share(world):
    await join_all(world)
    job = await world.core.submit(toy_spec(rounds=6, cohort={"min_nodes": 2, "grace": 0.2}))
    await world.until(lambda job: job.rounds_done >= 1, job)
    await world.kill("bob")
    job = await world.finished(job)
    assert job.status is Status.COMPLETED
    assert sorted(job.past[-1].counted) == ["ada", "cyd"]


async def test_a_node_may_join_between_rounds(world):
    await world.join("ada", 0)
    job = await world.core.submit(toy_spec(nodes=1, rounds=300))
    await world.until(lambda job: job.rounds_done >= 1, job)
    await world.join("bob", 1)
    await world.until(lambda job: bool(job.past) and "bob" in job.past[-1].counted, job)
    await world.core.stop_job(job.id)


async def test_a_damaged_update_is_asked_for_again_after_a_restart(tmp_path):
    expected = await undisturbed(tmp_path / "calm")
    world = World(tmp_path / "storm")
    await world.up()
    await world.join("ada", 0)
    await world.join("bob", 1)
    await world.join("cyd", 2, Policy(min_cohort=1))
    job = await world.core.submit(toy_spec())
    await world.until(lambda job: job.round is not None and job.round.came >= 1, job)
    await world.down()
    state = world.core.job(job.id)
    if state.round is not None:
        for update in state.round.accepted:
            path = world.core.blobs.path(update.digest)
            path.write_bytes(path.read_bytes()[:-4] + b"evil")
    await world.up()
    job = await world.finished(job)
    assert (job.status, job.outcome) == (expected.status, expected.outcome)
    assert job.model == expected.model
    await world.close()


async def test_pause_resume_and_stop(world):
    await join_all(world)
    job = await world.core.submit(toy_spec(rounds=500), paused=True)
    await world.until(lambda job: job.model != "", job)
    assert world.core.job(job.id).rounds_done == 0
    await world.core.resume(job.id)
    await world.until(lambda job: job.rounds_done >= 2, job)
    await world.core.pause(job.id)
    await world.core.resume(job.id)
    await world.core.stop_job(job.id, by="tester")
    job = await world.finished(job)
    assert (job.status, job.outcome) == (Status.STOPPED, "asked by tester")
    with pytest.raises(Conflict, match="is stopped"):
        await world.core.resume(job.id)


async def test_two_jobs_share_the_nodes_round_by_round(world):
    await join_all(world)
    one = await world.core.submit(toy_spec(rounds=5))
    two = await world.core.submit(toy_spec(rounds=5, seed=1))
    one, two = await world.finished(one), await world.finished(two)
    assert (one.status, two.status) == (Status.COMPLETED, Status.COMPLETED)
    assert two.past[0].closed_at < one.past[-1].closed_at


async def test_too_few_nodes_end_the_job_after_its_patience(world):
    await world.join("ada", 0)
    job = await world.finished(await world.core.submit(toy_spec(cohort={"wait": 0.1})))
    assert (job.status, job.outcome) == (Status.FAILED, "too few nodes: 3 are needed, waited 0.1 s")


async def test_an_owner_may_refuse_and_the_round_goes_on(world):
    await world.join("ada", 0)
    await world.join("bob", 1)
    await world.join("cyd", 2, Policy(forbid_jobs=("job",)))
    job = await world.finished(await world.core.submit(toy_spec(nodes=2, rounds=2)))
    assert job.status is Status.COMPLETED
    assert sorted(job.past[0].counted) == ["ada", "bob"]


async def test_what_cannot_run_is_refused_at_the_door(world):
    with pytest.raises(UnknownName, match="there is no strategy 'fedmagic'"):
        await world.core.submit(toy_spec(strategy="fedmagic"))
    with pytest.raises(BadSpec, match="no connected node holds 'elsewhere'"):
        await world.core.submit(toy_spec(dataset="elsewhere"))
    with pytest.raises(NotFound):
        world.core.job("no-such-job")


async def test_a_removed_node_is_dropped_and_cannot_come_back(world):
    await join_all(world)
    job = await world.core.submit(toy_spec(nodes=2, rounds=40))
    await world.until(lambda job: job.rounds_done >= 1, job)
    await world.core.remove_node("cyd")
    job = await world.finished(job)
    assert job.status is Status.COMPLETED
    with pytest.raises(Forbidden):
        world.core.members.authenticate("cyd", "anything")


async def test_old_models_and_updates_are_cleared_away(world):
    await join_all(world)
    job = await world.finished(await world.core.submit(toy_spec(rounds=30)))
    kept = set(await world.core.blobs.digests())
    assert job.model in kept
    assert job.initial_model in kept
    assert len(kept) <= 22
    assert kept <= world.core.keeper.needed()


async def test_joining_again_with_the_same_secret_is_idempotent(world):
    token = await world.core.members.invite(uses=1)
    await world.core.members.admit(token, "dan", "my-own-secret")
    assert await world.core.members.admit(token, "dan", "my-own-secret") == "my-own-secret"
    with pytest.raises(Conflict, match="joined already"):
        await world.core.members.admit(await world.core.members.invite(), "dan", "another")


async def test_a_node_may_store_and_read_only_what_its_work_needs(world):
    gate = threading.Event()
    await world.join("ada", 0, gate=gate)
    job = await world.core.submit(toy_spec(nodes=1, rounds=1))
    job = await world.core.wait_for(job.id, lambda job: job.round is not None)
    assert world.core.access.may_read("ada", job.model)
    assert not world.core.access.may_read("ada", "0" * 64)
    assert not world.core.access.may_read("bob", job.model)
    assert world.core.access.update_limit("bob") == 0
    limits = [world.core.access.update_limit("ada") for _ in range(UPLOADS_PER_TASK + 2)]
    assert limits[0] > 4 * job.parameters
    assert limits[-1] == 0
    gate.set()
    await world.core.stop_job(job.id)
    assert not world.core.access.may_read("ada", job.model)
