"""Forecasts of a real coordinator, asked over its API, and what then happened."""

from pathlib import Path

import msgspec

from support.served import app_of, caller
from support.worlds import World, toy_spec
from tutti.domain.forecast import Forecast, Usage
from tutti.domain.spec import load_spec


async def ask(world: World, spec: object) -> Forecast:
    async with caller(app_of(world)) as client:
        answer = await client.post("/api/v1/jobs/forecast", json=msgspec.to_builtins(spec))
        assert answer.status_code == 200, answer.text
        return msgspec.json.decode(answer.content, type=Forecast)


async def test_bytes_are_as_foretold_but_for_headers_and_the_second_forecast_knows_the_nodes(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.up()
    await world.join("ada", 0)
    await world.join("bob", 1)
    spec = toy_spec(nodes=2, rounds=3)
    first = await ask(world, spec)
    assert (first.measured, first.parameters, len(world.core.jobs)) == (0, 4, 0)
    job = await world.finished(await world.core.submit(spec))
    async with caller(app_of(world)) as client:
        happened = msgspec.json.decode((await client.get(f"/api/v1/jobs/{job.id}/usage")).content, type=Usage)
    assert (happened.updates, happened.bytes_up) == (first.updates, first.bytes_up)
    headers = (
        happened.bytes_down - first.bytes_down
    )  # nodes tell what they fetched, with the header of each of 8 models
    assert 0 < headers <= 8 * 256
    assert 0 < happened.seconds < 30
    second = await ask(world, spec)
    assert (second.nodes, second.measured, second.notes) == (2, 2, [])
    assert 0 < second.seconds < 30
    await world.close()


async def test_a_job_that_would_be_refused_has_no_forecast(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.up()
    async with caller(app_of(world)) as client:
        answer = await client.post("/api/v1/jobs/forecast", json={"dataset": "digits", "model": "no-such-model"})
        assert answer.status_code == 422
        assert "no model 'no-such-model'" in answer.json()["detail"]
        answer = await client.get("/api/v1/jobs/nothing/usage")
        assert answer.status_code == 404
    await world.close()


async def test_nodes_that_are_not_there_are_assumed(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.up()
    found = await ask(world, load_spec({"dataset": "digits", "model": "linear", "cohort": {"min_nodes": 3}}))
    assert found.nodes == 3
    assert "3 nodes are needed, 0 are ready" in found.notes[0]
    await world.close()
