"""Jobs whose reducer must see all updates: refused before the start where it cannot hold, reproducible otherwise."""

from pathlib import Path

import pytest

from support.worlds import World, toy_data, toy_spec
from tutti.core.registry import BadOption, UnknownName
from tutti.domain.events import RoundClosed
from tutti.domain.history import attempts_at
from tutti.domain.jobs import Job, Status
from tutti.domain.spec import BadSpec, JobSpec, check_composition
from tutti.ports import Data, Examples
from tutti.services.history import attempts_of
from tutti.services.views import why_view
from tutti.sim import Federation, simulate

PARTS = {name: part for part, name in enumerate(("ada", "bob", "cyd", "dan", "eve"))}


def spec(**fields: object) -> JobSpec:
    return toy_spec(nodes=5, rounds=3, **fields)


async def done(folder: Path, reducer: str, order: list[str]) -> Job:
    world = World(folder)
    await world.up()
    try:
        for name in order:
            await world.join(name, PARTS[name])
        return await world.finished(await world.core.submit(spec(reducer=reducer, strategy="fedavgm")))
    finally:
        await world.close()


@pytest.mark.parametrize("reducer", ["median", "multi-krum:f=1", "geometric-median"])
async def test_the_order_of_joining_leaves_no_trace(tmp_path, reducer):
    first = await done(tmp_path / "one", reducer, list(PARTS))
    again = await done(tmp_path / "two", reducer, list(reversed(PARTS)))
    assert (first.status, first.rounds_done) == (Status.COMPLETED, 3)
    assert again.model == first.model


async def test_a_coordinator_killed_in_a_round_folds_again_from_the_stored_updates(tmp_path):
    straight = await done(tmp_path / "straight", "krum:f=1", list(PARTS))
    world = World(tmp_path / "killed")
    await world.up()
    try:
        for name in list(PARTS)[:4]:
            await world.join(name, PARTS[name])
        job = await world.core.submit(spec(reducer="krum:f=1", strategy="fedavgm"))
        await world.join("eve", PARTS["eve"])
        await world.until(lambda job: job.round is not None and job.round.came >= 1, job)
        await world.down()
        await world.up()
        job = await world.finished(world.core.job(job.id))
        assert job.model == straight.model
    finally:
        await world.close()


async def test_the_reducer_makes_the_model(tmp_path):
    models = {(await done(tmp_path / name, name, list(PARTS))).model for name in ("mean", "median", "krum")}
    assert len(models) == 3


async def test_who_was_left_out_is_known_by_name(tmp_path):
    """In the log, to `tutti why`, after the details were forgotten, and in a simulation of the same job."""
    rows = toy_data(9)
    liar = Data("toy", rows.schema, Examples(rows.train.x, rows.train.y - 1000), rows.held_out)
    world, job = World(tmp_path), spec(reducer="multi-krum:f=1", evaluation={"nodes": False})
    await world.up()
    try:
        for name, part in PARTS.items():
            await world.join(name, part, data=liar if name == "bob" else None)
        done = await world.finished(await world.core.submit(job))
        view = why_view(done, 2, await attempts_of(world.core.journal, world.core.blobs, done, (2,)))
        events = [recorded.event for recorded in await world.core.log.read(0, stream=f"job:{done.id}")]
    finally:
        await world.close()
    assert view is not None
    parts = {part.node: part for part in view.attempts[-1].nodes}
    outcomes = {name: part.outcome for name, part in parts.items()}
    assert outcomes == {**dict.fromkeys(PARTS, "counted"), "bob": "excluded"}
    assert parts["bob"].share == 0
    assert "left it out" in parts["bob"].reason
    assert parts["ada"].share == 0.25
    closed = [event for event in events if isinstance(event, RoundClosed)]
    assert why_view(done, 2, attempts_at(events, (2,))) == view
    parties = {name: liar if name == "bob" else toy_data(part) for name, part in PARTS.items()}
    record = simulate(job, Federation.of(parties)).rounds[2]
    assert record.shares == closed[1].shares == {"ada": 0.25, "bob": 0.0, "cyd": 0.25, "dan": 0.25, "eve": 0.25}


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"reducer": "krum:f=2"}, BadSpec, "krum:f=2 needs 7 updates or more, but a round may close with 5"),
        ({"reducer": "bulyan:f=1"}, BadSpec, "needs 7 updates .* with 5.*min_nodes"),
        ({"reducer": "krum:f=1", "cohort": {"quorum": 4}}, BadSpec, "needs 5 updates .* with 4"),
        ({"reducer": "krum:f=1", "cohort": {"fraction": 0.5}}, BadSpec, "needs 5 updates .* with 3"),
        ({"reducer": "krum:f=1", "cohort": {"min_nodes": 9, "size": 4}}, BadSpec, "needs 5 updates .* with 4"),
        ({"reducer": "fltrust"}, BadSpec, "reducer fltrust needs `trusted`, a data set that the coordinator trains on"),
        ({"trusted": "digits"}, BadSpec, "reducer mean takes no `trusted`"),
        (
            {"reducer": "fltrust", "trusted": "csv:path=/etc/passwd,target=x"},
            BadSpec,
            "trusted may be a bundled data set",
        ),
        ({"reducer": "mode"}, UnknownName, "no reducer 'mode'; choose from: bulyan, "),
        ({"reducer": "krum:k=1"}, BadOption, "reducer 'krum'.*options: f"),
    ],
)
async def test_what_cannot_hold_is_refused_before_the_start(tmp_path, fields, error, message):
    world = World(tmp_path)
    await world.up()
    try:
        with pytest.raises(error, match=message):
            await world.core.submit(spec(**fields))
        assert not world.core.jobs
    finally:
        await world.close()


@pytest.mark.parametrize(
    "fields",
    [
        {"reducer": "krum:f=1"},
        {"reducer": {"name": "bulyan", "f": 1}, "cohort": {"min_nodes": 7}},
        {"reducer": "krum:f=1", "cohort": {"min_nodes": 20, "fraction": 0.25}},
        {"reducer": "median", "cohort": {"min_nodes": 9, "size": 5, "quorum": 3}},
        {"reducer": "mean", "cohort": {"min_nodes": 1}},
    ],
)
def test_what_holds_is_accepted(fields):
    check_composition(spec(**fields))
