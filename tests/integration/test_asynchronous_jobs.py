"""FedBuff on the round machine: overlapping rounds by the real coordinator and nodes, over kills, and simulated."""

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest

from support.faults import Saboteur
from support.worlds import World, toy_data, toy_spec
from tutti.core.params import Params
from tutti.core.registry import Choice
from tutti.core.strategy import strategies
from tutti.domain import events as e
from tutti.domain.jobs import Job, replay
from tutti.services import driver
from tutti.sim import Federation, simulate
from tutti.sim.engines.sequential import Sequential
from tutti.wire import tensors

NODES = ("ada", "bob", "cy", "dee")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "STORAGE_RETRY_SECONDS", 0.02)


def spec_of(rounds: int = 8, buffer: int = 2, **fields: object):
    return toy_spec(nodes=4, rounds=rounds, strategy=f"fedbuff:buffer={buffer}", **fields)


async def job_in(world: World, gates: dict[str, threading.Event], saboteur: Saboteur | None = None, **fields) -> Job:
    await world.up(saboteur, of="blobs")
    for number, name in enumerate(NODES):
        await world.join(name, number, gate=gates.get(name))
    return await world.core.submit(spec_of(**fields))


def updates_of(events: list[e.JobEvent]) -> list[e.UpdateAccepted]:
    return [event for event in events if isinstance(event, e.UpdateAccepted)]


async def events_of(world: World, job: Job) -> list[e.JobEvent]:
    return [recorded.event for recorded in await world.core.log.read(0, stream=f"job:{job.id}", limit=10_000)]


async def test_a_slow_node_holds_nobody_up_and_its_stale_update_counts(tmp_path: Path) -> None:
    world, gate = World(tmp_path), threading.Event()
    job = await job_in(world, {"dee": gate}, rounds=60)
    await world.until(lambda job: job.rounds_done >= 3, job)
    gate.set()
    job = await world.finished(job)
    events = await events_of(world, job)
    await world.close()
    assert job.status == "completed", job.outcome
    assert job.rounds_done == 60
    stale = [update for update in updates_of(events) if update.node == "dee"]
    assert stale[0].base == 1
    assert stale[0].staleness >= 2
    opened = [event for event in events if isinstance(event, e.RoundOpened) and event.task == "train"]
    assert all("dee" in event.carried for event in opened[1:3])
    assert all(len(past.round.accepted) >= 2 for past in job.past if past.made_model and past.detail)
    assert replay(events).model == job.model


async def test_the_log_says_which_updates_made_which_model(tmp_path: Path) -> None:
    """From the log alone, every node's work and every step of the server can be done again, to the bit."""
    world, gate = World(tmp_path), threading.Event()
    job = await job_in(world, {"dee": gate}, rounds=60)
    await world.until(lambda job: job.rounds_done >= 2, job)
    gate.set()
    job = await world.finished(job)
    events = await events_of(world, job)
    await world.close()
    assert any(update.staleness for update in updates_of(events))
    assert again(events, job) == made(events, job)


def made(events: list[e.JobEvent], job: Job) -> list[str]:
    """The digests of all models, as they were recorded."""
    closed = [event for event in events if isinstance(event, e.RoundClosed)]
    return [event.model for event in closed if event.round <= job.spec.rounds]


def again(events: list[e.JobEvent], job: Job) -> list[str]:
    """The digests of all models, computed anew from who the log says was in which round, with which base."""
    from tutti.core.reduce import Update, fold
    from tutti.core.sampling import node_seed
    from tutti.core.strategy import Folded
    from tutti.ports.training import Task, models

    strategy, spec = strategies.build(job.spec.strategy), job.spec
    trainer = models.build(spec.model, data=job.data)
    state = strategy.init(trainer.init(spec.seed))
    bases, digests, accepted = {1: state.params}, [], dict[str, e.UpdateAccepted]()
    for event in events:
        if isinstance(event, e.RoundOpened):
            accepted = {}
        if isinstance(event, e.UpdateAccepted):
            accepted[event.node] = event
        if not isinstance(event, e.RoundClosed) or event.round > spec.rounds:
            continue
        updates = []
        for update in reversed(accepted.values()):  # in another order
            base = bases[update.base or update.round]
            seed = node_seed(spec.seed, update.base or update.round, update.node)
            task = Task(spec.training, seed, spec.training.batch_size or 4, spec.training.lr)
            rows = toy_data(NODES.index(update.node)).train
            local = trainer.train(base, rows, task, lambda *_: None).params.buffer - base.buffer
            delta = strategy.asynchrony.discounted(Params(base.layout, local), update.staleness)
            updates.append(Update(delta, update.weight))
        mean = fold(strategy.reducer, updates, state.params.layout, spec.cohort.largest_weight)
        state = strategy.finish(state, Folded(mean))
        bases[event.round + 1] = state.params
        digests.append(tensors.digest(tensors.encode(state.params)))
    return digests


@pytest.mark.parametrize("victim", ["dee", "ada", "coordinator"])
async def test_it_goes_on_after_kills(tmp_path: Path, victim: str) -> None:
    world, gate = World(tmp_path), threading.Event()
    job = await job_in(world, {"dee": gate}, cohort={"grace": 20}, rounds=5000)
    for rounds in (1, 2):
        await world.until(lambda job, rounds=rounds: job.rounds_done >= rounds, job)
        if victim == "coordinator":
            await world.down()
            await world.up()
        else:
            await world.kill(victim)
            await world.join(victim, NODES.index(victim), gate=gate if victim == "dee" else None)
    gate.set()
    await world.until(lambda job: "dee" in job.contributions, job)
    await world.core.stop_job(job.id)
    job = await world.finished(job)
    events = await events_of(world, job)
    await world.close()
    assert any(update.node == "dee" and update.staleness for update in updates_of(events))
    assert again(events, job) == made(events, job)


@pytest.mark.parametrize("how", ["stop before", "stop after"])
async def test_a_coordinator_that_dies_while_a_round_closes_makes_the_same_model(tmp_path: Path, how: str) -> None:
    world, gate, saboteur = World(tmp_path), threading.Event(), Saboteur(how)
    job = await job_in(world, {"dee": gate}, saboteur)
    await world.until(lambda job: job.rounds_done >= 1, job)
    saboteur.arm(1)
    async with asyncio.timeout(20):
        await saboteur.struck.wait()
    await world.down()
    await world.up()
    gate.set()
    job = await world.finished(job)
    events = await events_of(world, job)
    await world.close()
    assert again(events, job) == made(events, job)


async def test_stopped_between_two_steps_nobody_works_on(tmp_path: Path) -> None:
    world, gate = World(tmp_path), threading.Event()
    job = await job_in(world, {"dee": gate}, rounds=1000)
    await world.until(lambda job: job.rounds_done >= 2, job)
    await world.core.stop_job(job.id)
    job = await world.finished(job)
    gate.set()
    follow = await world.finished(await world.core.submit(toy_spec(nodes=4, rounds=2)))
    await world.close()
    assert (job.status, follow.status) == ("stopped", "completed")


def federation() -> Federation:
    return Federation.of({name: toy_data(number) for number, name in enumerate(NODES)})


def test_a_simulation_draws_who_is_fast_by_the_seed(tmp_path: Path) -> None:
    first, second = (simulate(spec_of(rounds=12), federation()) for _ in range(2))
    assert first.model == second.model
    assert first.model != simulate(spec_of(rounds=12, seed=1), federation()).model


def test_simulated_updates_are_stale_and_replay_to_the_same_models() -> None:
    from tutti.ports.training import models
    from tutti.sim.simulation import Simulation

    spec, parts = spec_of(rounds=8, training={"batch_size": 4}), federation()
    engine = Sequential(models.build(spec.model, data=parts.schema), parts)
    run = Simulation(spec, parts, engine, 4, lambda record: None)
    run.run(None)
    assert {update.staleness for update in updates_of(run.events)} >= {0, 1}
    assert again(run.events, run.job) == made(run.events, run.job)


def test_an_interrupted_simulation_goes_on(tmp_path: Path) -> None:
    file, spec = tmp_path / "run.ckpt", spec_of(rounds=12)
    expected = simulate(spec, federation())

    def interrupt(record: object) -> None:
        if record.round == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(spec, federation(), checkpoint=file, watch=interrupt)
    assert simulate(spec, federation(), checkpoint=file).model == expected.model


def test_a_stale_update_counts_less() -> None:
    asynchrony = strategies.build(Choice("fedbuff", {"exponent": 0.5})).asynchrony
    delta = Params.from_arrays({"w": np.array([1.0])})
    assert asynchrony.discounted(delta, 0) is delta
    assert asynchrony.discounted(delta, 3).buffer.tolist() == [0.5]
