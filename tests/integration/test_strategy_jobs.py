"""Strategies with a half on the nodes, by real coordinators and nodes: what nodes keep, and what kills leave."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support.faults import Saboteur
from support.worlds import World, toy_data, toy_spec
from tutti.domain.jobs import Job
from tutti.domain.spec import BadSpec, JobSpec, check_composition
from tutti.services import driver
from tutti.sim import Federation, simulate
from tutti.wire import tensors
from tutti.wire.messages import Submission

KEEPING = ["scaffold", "feddyn:alpha=0.1", "ditto:lam=0.5"]
OTHERS = ["fednova", "qfedavg:q=1", "fedprox:mu=0.5,adaptive=true", "diloco", "cyclic"]
NODES = ("ada", "bob", "cy")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "STORAGE_RETRY_SECONDS", 0.02)


def spec_of(strategy: str, **fields: object) -> JobSpec:
    return toy_spec(nodes=3, rounds=5, strategy=strategy, **fields)


async def job_in(world: World, spec: JobSpec) -> Job:
    await world.up()
    for number, name in enumerate(NODES):
        await world.join(name, number)
    return await world.core.submit(spec)


async def run(folder: Path, spec: JobSpec, disturb: Callable[[World, Job], object] | None = None) -> Job:
    """A whole job of three nodes; `disturb` does what it likes meanwhile."""
    world = World(folder)
    job = await job_in(world, spec)
    if disturb is not None:
        await disturb(world, job)
    job = await world.finished(job)
    await world.close()
    assert job.status == "completed", job.outcome
    return job


def simulated(spec: JobSpec) -> str:
    parts = {name: toy_data(number) for number, name in enumerate(NODES)}
    return simulate(spec, Federation.of(parts), engine="sequential", batch_size=4).header.model


@pytest.mark.parametrize("strategy", [*KEEPING, *OTHERS])
async def test_a_deployment_and_a_simulation_make_the_same_model(tmp_path: Path, strategy: str) -> None:
    job = await run(tmp_path, spec_of(strategy, training={"batch_size": 4}))
    assert job.model == simulated(spec_of(strategy, training={"batch_size": 4}))


# -- what a node keeps ---------------------------------------------------------------------------------


def kept(folder: Path, node: str, job: Job) -> dict[int, dict[str, np.ndarray]]:
    """What lies in a node's state directory, by round."""
    files = (folder / "nodes" / node / "memory" / job.id).iterdir()
    return {
        int(file.name.partition("-")[0]): {e.name: v for e, v in tensors.decode(file.read_bytes()).items()}
        for file in files
    }


async def test_what_is_kept_is_of_the_newest_round_that_counted(tmp_path: Path) -> None:
    job = await run(tmp_path, spec_of("scaffold"))
    for node in NODES:
        assert list(kept(tmp_path, node, job)) == [5]
        assert kept(tmp_path, node, job)[5]["c_i"].shape == (4,)


async def test_personal_models_are_measured_and_stay(tmp_path: Path) -> None:
    """Own models fit each node's rows better than the global one."""
    spec = spec_of("ditto:lam=0", training={"epochs": 4})
    own, shared = await run(tmp_path / "own", spec), await run(tmp_path / "shared", spec_of("fedavg"))
    assert own.evaluations[5]["nodes"]["loss"] < shared.evaluations[5]["nodes"]["loss"]
    assert list(kept(tmp_path / "own", "ada", own)[5]) == ["v"]


async def test_what_is_kept_never_reaches_the_coordinator(tmp_path: Path) -> None:
    job = await run(tmp_path, spec_of("ditto:lam=0"))
    own = next(iter((tmp_path / "nodes" / "ada" / "memory" / job.id).iterdir()))
    assert own.name.partition("-")[2] not in {file.name for file in (tmp_path / "blobs").rglob("*")}


async def test_an_update_that_did_not_count_leaves_no_trace(tmp_path: Path) -> None:
    """Two of three nodes have trained when the round fails; in the next attempt they begin where they had begun."""
    calm = await run(tmp_path / "calm", spec_of("scaffold"))
    world, gate = World(tmp_path / "disturbed"), threading.Event()
    await world.up()
    for number, name in enumerate(NODES):
        await world.join(name, number, gate=gate if name == "cy" else None)
    rules = {"grace": 0.05, "quorum": 3, "retries": 50}
    job = await world.core.submit(spec_of("scaffold", cohort=rules))
    await world.until(lambda job: job.round is not None and job.round.came == 2, job)
    assert list(kept(world.folder, "ada", job)) == [1]
    await world.kill("cy")
    await world.until(lambda job: job.failures > 0, job)
    gate.set()
    await world.join("cy", 2)
    job = await world.finished(job)
    await world.close()
    assert [summary.succeeded for summary in job.past][:2] == [False, True]
    assert job.model == calm.model


async def test_a_node_that_lost_what_it_kept_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def damage(world: World, job: Job) -> None:
        await world.until(lambda job: job.rounds_done == 2, job)
        await world.kill("cy")
        for file in (tmp_path / "nodes" / "cy" / "memory" / job.id).iterdir():
            file.write_bytes(b"rubbish")
        await world.join("cy", 2)

    job = await run(tmp_path, spec_of("scaffold", cohort={"grace": 20}), damage)
    assert job.rounds_done == 5
    assert "is damaged" in caplog.text


# -- kills ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", KEEPING)
@pytest.mark.parametrize("victim", ["ada", "coordinator"])
async def test_killed_and_restarted_the_model_is_the_same_to_the_bit(
    tmp_path: Path, strategy: str, victim: str
) -> None:
    spec = spec_of(strategy, cohort={"grace": 20})
    calm = await run(tmp_path / "calm", spec)

    async def kill(world: World, job: Job) -> None:
        for rounds in (1, 2, 3):
            await world.until(lambda job, rounds=rounds: job.rounds_done >= rounds, job)
            if victim == "coordinator":
                await world.down()
                await world.up()
            else:
                await world.kill(victim)
                await world.join(victim, NODES.index(victim))

    disturbed = await run(tmp_path / "disturbed", spec, kill)
    assert disturbed.model == calm.model
    for node in NODES:
        assert [kept(tmp_path / run, node, job)[5].keys() for run, job in (("calm", calm), ("disturbed", disturbed))]
        left, right = kept(tmp_path / "calm", node, calm)[5], kept(tmp_path / "disturbed", node, disturbed)[5]
        assert {name: v.tobytes() for name, v in left.items()} == {name: v.tobytes() for name, v in right.items()}


@pytest.mark.parametrize("of", ["log", "blobs"])
@pytest.mark.parametrize("how", ["fail", "stop before", "stop after"])
async def test_scaffold_survives_a_fault_at_every_write(tmp_path: Path, of: str, how: str) -> None:
    spec = toy_spec(nodes=2, rounds=2, strategy="scaffold")

    async def once(folder: Path, saboteur: Saboteur, at: int) -> Job | None:
        world = World(folder)
        await world.up(saboteur, of=of)
        await world.join("ada", 0)
        await world.join("bob", 1)
        job = await world.core.submit(spec)
        saboteur.arm(at)
        if saboteur.how != "fail":
            waiting = {asyncio.create_task(saboteur.struck.wait()), asyncio.create_task(world.core.wait_final(job.id))}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                task.cancel()
            if saboteur.struck.is_set():
                await world.down()
                await world.up()
        job = await world.finished(job)
        await world.close()
        return job if saboteur.struck.is_set() or at == 0 else None

    expected = await once(tmp_path / "calm", Saboteur(), 0)
    assert expected is not None
    for at in range(1, 60):
        job = await once(tmp_path / str(at), Saboteur(how), at)
        if job is None:
            break
        assert (job.status, job.model) == ("completed", expected.model), f"{how} at write {at}"
    assert at > 4, "the saboteur never struck"


# -- what is refused -----------------------------------------------------------------------------------


async def test_facts_that_are_not_believed_are_refused(tmp_path: Path) -> None:
    """A node that claims to have taken no steps is told why its update does not count."""
    world = World(tmp_path)
    job = await job_in(world, spec_of("fednova", cohort={"quorum": 2}))
    link = world.links["ada"]
    honest = link.send

    async def lie(message: object) -> None:
        if isinstance(message, Submission) and message.facts:
            message = Submission(**{f: getattr(message, f) for f in message.__struct_fields__} | {"facts": {"a": 0.0}})
        await honest(message)

    link.send = lie  # type: ignore[method-assign]
    job = await world.finished(job)
    await world.close()
    assert job.status == "completed"
    refusals = [refusal for summary in job.past for refusal in summary.round.refusals]
    assert {(r.node, r.reason) for r in refusals} == {("ada", "the fact 'a' is 0, expected 1 to 1e+09")}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"strategy": "scaffold", "training": {"momentum": 0.9}}, "training.momentum = 0"),
        ({"strategy": "fednova", "training": {"optimizer": "adam"}}, 'training.optimizer = "sgd"'),
        ({"strategy": "scaffold", "reducer": "krum"}, "use reducer mean"),
        ({"strategy": "one-shot", "rounds": 3}, "set rounds = 1"),
        ({"strategy": "cyclic", "cohort": {"size": 2}}, "one node a round"),
    ],
)
def test_jobs_whose_parts_contradict_each_other(fields: dict, why: str) -> None:
    with pytest.raises(BadSpec, match=why):
        check_composition(toy_spec(**{"nodes": 9, **fields}))


async def test_cyclic_asks_one_node_after_another(tmp_path: Path) -> None:
    job = await run(tmp_path, spec_of("cyclic"))
    trained = [summary.round.opened.cohort for summary in job.past if summary.task == "train"]
    assert trained == [("ada",), ("bob",), ("cy",), ("ada",), ("bob",)]
