"""Hundreds of seeded fault schedules on virtual time: the protocol keeps its promises whatever breaks when.

Crashes of the coordinator before and after writes, nodes that die in the middle of a task, connections that are lost,
messages that are late or come twice. A failure names the seed; `schedule(seed)` replays it.
"""

from collections import Counter
from typing import Any

import msgspec
import pytest

from tutti.adapters.datasets import known_schema
from tutti.core.params import Params
from tutti.core.reduce import Update
from tutti.core.registry import Choice
from tutti.core.strategy import Folded, compose
from tutti.domain import events as e
from tutti.domain import jobs
from tutti.domain.spec import load_spec
from tutti.ports.training import Examples, Task, models
from tutti.services.telling import node_seed
from tutti.sim.worlds import Outcome, World, load_world, simulate_world
from tutti.sim.worlds.data import data_of
from tutti.sim.worlds.trainers import Idle
from tutti.wire import tensors

NODES = 5
FLEET: dict[str, Any] = {
    "nodes": NODES,
    "seed": 1,
    "train": False,
    "examples": "lognormal:median=100,sigma=0.4",
    "machine": {"speed": "lognormal:median=20,sigma=0.4"},
}
PATIENT = load_spec(
    {
        "dataset": "digits",
        "model": "linear",
        "strategy": "fedavgm",
        "rounds": 4,
        "cohort": {"min_nodes": NODES, "grace": 120.0, "lease": 900.0, "deadline": 7200.0, "floor": 3600.0},
        "evaluation": {"nodes": False},
    }
)
"""Waits for whoever comes back: under passing faults the contract promises the model of a calm day."""

HASTY = load_spec(
    {
        "dataset": "digits",
        "model": "linear",
        "strategy": "fedavgm",
        "rounds": 4,
        "cohort": {
            "min_nodes": 3,
            "size": 3,
            "over_select": 0.4,
            "quorum": 2,
            "grace": 3.0,
            "lease": 20.0,
            "deadline": 30.0,
            "floor": 5.0,
            "retries": 100,
        },
        "evaluation": {"nodes": False},
    }
)
"""Goes on without whoever is late: the model depends on who was counted, and on nothing else."""


def schedule(seed: int) -> World:
    """One fleet; every seed breaks other things, more of one kind and less of another."""
    crash, drop, cut, late = seed % 4, seed // 4 % 4, seed // 16 % 3, seed // 48 % 3
    faults: dict[str, Any] = {
        "seed": seed,
        "drop_out": 0.15 * drop,
        "away": "uniform:low=0.2,high=25",
        "outage": "uniform:low=0.1,high=10",
        "disk": "exponential:mean=0.05",
    }
    network: dict[str, Any] = {"latency": f"lognormal:median=0.1,sigma={0.3 + late}", "duplicate": 0.15 * late}
    if crash:
        faults["crash"] = f"exponential:mean={20 / crash}"
    if cut:
        network["cut"] = f"exponential:mean={20 / cut}"
    return load_world({**FLEET, "faults": faults, "network": network})


def takeovers(seed: int) -> World:
    """The same, and coordinators that are cut off from the log and replaced, whose clocks differ by up to two hours."""
    world = schedule(seed)
    return load_world(
        {
            **msgspec.to_builtins(world),
            "faults": {
                **msgspec.to_builtins(world.faults),
                "stall": f"exponential:mean={8 + 4 * (seed % 3)}",
                "overlap": "exponential:mean=4",
                "skew": "uniform:low=0,high=7200",
            },
        }
    )


@pytest.fixture(scope="module")
def calm() -> Outcome:
    return simulate_world(load_world(FLEET), PATIENT)


@pytest.mark.parametrize("group", range(12))
def test_passing_faults_change_nothing(calm: Outcome, group: int) -> None:
    for seed in range(20 * group, 20 * group + 20):
        done = simulate_world(schedule(seed), PATIENT)
        check(done, seed)
        assert done.job.model == calm.job.model, f"schedule {seed}: another model than on a calm day"
        assert counted(done) == counted(calm), f"schedule {seed}"


@pytest.mark.parametrize("group", range(2))
def test_a_coordinator_that_was_replaced_and_does_not_know_it_changes_nothing(calm: Outcome, group: int) -> None:
    stalls = 0
    for seed in range(2000 + 20 * group, 2020 + 20 * group):
        done = simulate_world(takeovers(seed), PATIENT)
        check(done, seed)
        assert done.job.model == calm.job.model, f"takeovers {seed}: another model than on a calm day"
        assert counted(done) == counted(calm), f"takeovers {seed}"
        stalls += done.stalls
    assert stalls > 20, "hardly any coordinator was replaced"


@pytest.mark.parametrize("group", range(4))
def test_only_who_is_counted_counts(group: int) -> None:
    for seed in range(1000 + 20 * group, 1020 + 20 * group):
        done = simulate_world(schedule(seed), HASTY)
        check(done, seed)
        assert models_by_the_log(done) == [event.model for event in events_of(done, e.RoundClosed)], f"schedule {seed}"


def test_the_schedules_do_break_things() -> None:
    """Else the tests above would say little."""
    crashes = deaths = disconnected = dropped = refused = 0
    for seed in range(1000, 1048, 5):
        done = simulate_world(schedule(seed), HASTY)
        crashes, deaths = crashes + done.crashes, deaths + done.deaths
        disconnected += len(events_of(done, e.NodeDisconnected))
        dropped += len(events_of(done, e.NodeDropped))
        refused += len(events_of(done, e.UpdateRefused))
    assert min(crashes, deaths, disconnected, dropped, refused) > 3, (crashes, deaths, disconnected, dropped, refused)


def check(done: Outcome, seed: int) -> None:
    """What holds for every job: it ends, its log says so, and no update is counted twice."""
    assert done.job.status == "completed", f"schedule {seed}: {done.job.outcome}"
    mine = [each.event for each in done.events if each.stream == f"job:{done.job.id}"]
    assert jobs.replay(mine) == done.job, f"schedule {seed}: the log tells another story"
    standing: Counter[str] = Counter()
    for event in mine:
        match event:
            case e.RoundOpened():
                standing.clear()
            case e.UpdateAccepted(node=node):
                standing[node] += 1
                assert standing[node] == 1, f"schedule {seed}: {node} counted twice in round {event.round}"
            case e.UpdateLost(node=node):
                standing[node] -= 1
            case e.RoundClosed():
                assert +standing == Counter(event.counted.keys()), f"schedule {seed} round {event.round}"
            case _:
                pass
    closed = events_of(done, e.RoundClosed)
    assert [event.round for event in closed] == [1, 2, 3, 4], f"schedule {seed}"


def events_of(done: Outcome, kind: type) -> list[Any]:
    return [each.event for each in done.events if isinstance(each.event, kind)]


def counted(done: Outcome) -> list[dict[str, int]]:
    return [event.counted for event in events_of(done, e.RoundClosed)]


def models_by_the_log(done: Outcome) -> list[str]:
    """The slow reference: each round's model made again from nothing but who was counted."""
    spec, schema = done.job.spec, known_schema(Choice("digits"))
    assert schema is not None
    strategy = compose(spec.strategy, spec.reducer)
    trainer = models.build(spec.model, data=schema)
    rows = {f"node-{number}": data.train for number, data in enumerate(data_of(load_world(FLEET)), start=1)}
    server, digests = strategy.init(trainer.init(spec.seed)), []
    for closed in events_of(done, e.RoundClosed):
        fold = strategy.reducer.zero(server.params.layout, len(closed.counted), spec.cohort.largest_weight)
        for node in closed.counted:
            delta = _delta(server.params, rows[node], node_seed(spec.seed, closed.round, node), spec.training)
            strategy.reducer.add(fold, Update(delta, len(rows[node])))
        server = strategy.finish(server, Folded(strategy.reducer.finish(fold)))
        digests.append(tensors.digest(tensors.encode(server.params)))
    return digests


def _delta(params: Params, rows: Examples, seed: int, training: Any) -> Params:
    task = Task(training, seed, 32, training.lr)
    work = Idle(lambda: pytest.fail("no real trainer is needed")).train(params, rows, task, lambda *_: None)
    return Params(params.layout, work.params.buffer - params.buffer)
