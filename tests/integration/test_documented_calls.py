"""Every documented call of the systems that Tutti stands in for, as documented, gets a sensible answer."""

from pathlib import Path

import httpx
import pytest

from support.served import app_of, caller
from support.worlds import World

TOY = {"dataset": "toy", "model": "toy", "rounds": 2}


@pytest.fixture
async def world(tmp_path: Path):
    world = World(tmp_path)
    await world.up()
    await world.join("ada", 0)
    yield world
    await world.close()


@pytest.fixture
async def client(world):
    async with caller(app_of(world)) as client:
        await finished(world, await client.post("/api/v1/training/start", json=TOY))
        yield client


async def finished(world: World, answer: httpx.Response) -> str:
    assert answer.status_code == 201, answer.text
    return (await world.finished(world.core.job(answer.json()["id"]))).id


FEDERATED_TRAINING = [
    ("GET", "/health", None, 200, {"status", "timestamp"}),
    ("GET", "/docs", None, 200, None),
    ("GET", "/metrics", None, 200, None),
    ("GET", "/api/v1/status", None, 200, {"status", "nodes_connected"}),
    ("GET", "/api/v1/nodes", None, 200, {"items"}),
    ("GET", "/api/v1/nodes/ada", None, 200, {"name", "connected", "machine", "cpu"}),
    ("POST", "/api/v1/nodes/register", {"node_id": "n1", "capabilities": {"gpu": "A100"}}, 201, {"node", "secret"}),
    ("POST", "/api/v1/nodes/register", None, 201, {"node", "secret"}),
    ("POST", "/api/v1/training/start", None, 201, {"session_id", "status"}),
    ("POST", "/api/v1/training/start", {}, 201, {"session_id"}),
    ("POST", "/api/v1/training/start", {"model": "CNN", "dataset": "MNIST", "rounds": 3}, 201, {"session_id"}),
    ("POST", "/api/v1/training/start", {"model": "LeNet", "dataset": "mnist", "epochs": 1}, 201, {"session_id"}),
    ("POST", "/api/v1/training/start", {"modelType": "mlp", "learningRate": 0.01, "notes": "x"}, 201, {"ignored"}),
    ("POST", "/api/v1/training/start", {"modelType": "mlp", "learningRat": 0.01}, 422, {"detail"}),
    ("POST", "/api/v1/training/stop", None, 200, {"stopped"}),
    ("POST", "/api/v1/training/stop", {}, 200, {"stopped"}),
    ("GET", "/api/v1/training/status", None, 200, {"running", "session"}),
    ("GET", "/api/v1/sessions", None, 200, {"items"}),
    ("GET", "/api/v1/sessions/{job}", None, 200, {"id", "accuracy", "loss"}),
    ("GET", "/api/v1/sessions/{job}/metrics", None, 200, {"items"}),
    ("GET", "/api/v1/sessions/{job}/rounds", None, 200, {"items"}),
    ("GET", "/api/v1/metrics", None, 200, {"rounds_completed", "jobs"}),
    ("GET", "/api/v1/config", None, 200, {"training"}),
    ("GET", "/api/v1/contributions", None, 200, {"items"}),
    ("GET", "/api/v1/blockchain/status", None, 200, {"connected", "error"}),
    ("DELETE", "/api/v1/nodes/ada", None, 204, None),
]

DEVICE_FLEET = [
    ("GET", "/health", None, 200, {"status"}),
    ("GET", "/metrics", None, 200, None),
    ("GET", "/api/devices", None, 200, {"items"}),
    ("GET", "/api/devices/ada", None, 200, {"name", "connected"}),
    ("GET", "/api/jobs", None, 200, {"items"}),
    ("POST", "/api/jobs", {"name": "My job", "modelType": "toy", "dataset": "toy", "totalRounds": 2}, 201, {"id"}),
    ("POST", "/api/jobs", None, 201, {"id", "status"}),
    ("GET", "/api/jobs/{job}", None, 200, {"id", "status", "rounds_done"}),
    ("POST", "/api/jobs/{waiting}/start", None, 200, {"id", "status"}),
    ("POST", "/api/jobs/{waiting}/stop", None, 200, {"id", "status"}),
    ("POST", "/api/jobs/none/start", None, 404, {"detail"}),
    ("GET", "/api/metrics", None, 200, {"nodes_connected", "rounds_completed"}),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "fields"), FEDERATED_TRAINING + DEVICE_FLEET)
async def test_documented_call(world, client, method, path, body, status, fields):
    waiting = (await client.post("/api/jobs", json=TOY)).json()["id"] if "{waiting}" in path else ""
    done = next(iter(world.core.jobs))
    answer = await client.request(method, path.format(job=done, waiting=waiting), json=body)
    assert answer.status_code == status, answer.text
    if fields is not None:
        assert fields <= answer.json().keys()


async def test_a_dashboards_session_from_start_to_end(world, client):
    started = await client.post("/api/v1/training/start", json={**TOY, "description": "blue"})
    assert started.json()["ignored"] == ["description"]
    job = await finished(world, started)
    assert (await client.get("/api/v1/training/status")).json()["session"]["id"] == job
    assert (await client.get(f"/api/v1/sessions/{job}")).json()["status"] == "completed"


async def test_stop_without_a_name_stops_all_that_run(client):
    ids = [(await client.post("/api/jobs", json=TOY)).json()["id"] for _ in range(2)]
    stopped = (await client.post("/api/v1/training/stop")).json()["stopped"]
    assert [(job["id"], job["status"]) for job in stopped] == [(job, "stopped") for job in ids]
    assert (await client.post("/api/v1/training/stop")).json() == {"stopped": []}
    again = await client.post("/api/v1/training/stop", json={"session_id": ids[0]})
    assert again.status_code == 409


async def test_a_fleets_job_waits_for_its_start(world, client):
    made = (await client.post("/api/jobs", json=TOY)).json()
    assert made["status"] == "paused"
    await client.post(f"/api/jobs/{made['id']}/start")
    assert (await world.finished(world.core.job(made["id"]))).rounds_done == 2


async def test_what_cannot_be_is_said(client):
    answer = await client.post("/api/v1/training/start", json={"model": "gpt-9"})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("there is no model 'gpt-9'; choose from: ")


async def test_the_first_system_has_its_fifteen_endpoints_and_more():
    assert len({(method, path) for method, path, *_ in FEDERATED_TRAINING}) >= 15
