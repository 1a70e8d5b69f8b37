"""The REST API over a real coordinator with real nodes, called in process."""

import asyncio
import json
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest
from safetensors import safe_open

from support.served import BEARER, OPEN_TO_THE_NETWORK, app_of, caller
from support.worlds import World
from tutti.apps.api.schema import MAX_BODY
from tutti.core.registry import Choice
from tutti.domain.jobs import Status
from tutti.domain.spec import DataSchema
from tutti.services import views

JOB = {"dataset": "toy", "model": "toy", "rounds": 2, "cohort": {"min_nodes": 2}, "training": {"lr": 0.01}}


@pytest.fixture
async def world(tmp_path: Path):
    world = World(tmp_path)
    await world.up()
    yield world
    await world.close()


@pytest.fixture
async def app(world):
    return app_of(world)


@pytest.fixture
async def client(app):
    async with caller(app) as client:
        yield client


@pytest.fixture
async def remote(world):
    """A coordinator that listens on the network."""
    async with caller(app_of(world, OPEN_TO_THE_NETWORK)) as client:
        yield client


async def join_two(world: World) -> None:
    await world.join("ada", 0)
    await world.join("bob", 1)


async def trained(world: World, client: httpx.AsyncClient, **fields: object) -> str:
    """The id of a finished job."""
    await join_two(world)
    answer = await client.post("/api/v1/jobs", json={**JOB, **fields})
    assert answer.status_code == 201, answer.text
    await world.finished(world.core.job(answer.json()["id"]))
    return answer.json()["id"]


def problem_of(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == answer.status_code
    return problem["detail"]


# -- jobs ------------------------------------------------------------------------------------------------


async def test_a_job_from_request_to_result(world, client):
    job = await trained(world, client)
    shown = msgspec.json.decode((await client.get(f"/api/v1/jobs/{job}")).content, type=views.JobView)
    assert (shown.status, shown.rounds_done, shown.parameters, shown.nodes_ready) == ("completed", 2, 4, 2)
    assert shown.by == "the operator at 127.0.0.1"

    rounds = (await client.get(f"/api/v1/jobs/{job}/rounds")).json()["items"]
    assert [(r["round"], r["task"], r["status"]) for r in rounds] == [
        (1, "train", "closed"),
        (2, "train", "closed"),
        (3, "evaluate", "closed"),
    ]
    why = msgspec.json.decode((await client.get(f"/api/v1/jobs/{job}/rounds/1")).content, type=views.WhyView)
    assert [(part.node, part.outcome, part.share) for part in why.attempts[0].nodes] == [
        ("ada", "counted", 0.5),
        ("bob", "counted", 0.5),
    ]
    points = (await client.get(f"/api/v1/jobs/{job}/metrics")).json()["items"]
    assert [p["round"] for p in points] == [0, 1, 2]
    assert points[2]["nodes"]["loss"] < points[0]["nodes"]["loss"]


async def test_creating_tells_where_the_job_is(client):
    answer = await client.post("/api/v1/jobs?paused=true", json=JOB)
    assert answer.status_code == 201
    assert answer.json()["status"] == "paused"
    assert (await client.get(answer.headers["location"])).json()["id"] == answer.json()["id"]


async def test_one_key_makes_one_job(world, client):
    first = await client.post("/api/v1/jobs", json=JOB, headers={"idempotency-key": "k1"})
    again = await client.post("/api/v1/jobs", json=JOB, headers={"idempotency-key": "k1"})
    other = await client.post("/api/v1/jobs", json=JOB, headers={"idempotency-key": "k2"})
    assert first.json()["id"] == again.json()["id"] != other.json()["id"]
    assert len(world.core.jobs) == 2
    changed = await client.post("/api/v1/jobs", json={**JOB, "rounds": 9}, headers={"idempotency-key": "k1"})
    assert changed.status_code == 409
    assert "'k1' was used for another job" in problem_of(changed)


async def test_what_has_not_changed_is_not_sent_again(client):
    first = await client.get("/api/v1/jobs")
    same = await client.get("/api/v1/jobs", headers={"if-none-match": first.headers["etag"]})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", first.headers["etag"])
    await client.post("/api/v1/jobs?paused=true", json=JOB)
    changed = await client.get("/api/v1/jobs", headers={"if-none-match": first.headers["etag"]})
    assert (changed.status_code, len(changed.json()["items"])) == (200, 1)


async def test_any_post_with_a_key_is_done_once(world, client):
    key = {"idempotency-key": "k"}
    first, again = [await client.post("/api/v1/invites", json={"uses": 2}, headers=key) for _ in range(2)]
    assert (first.status_code, first.json()) == (again.status_code, again.json())
    assert len(world.core.register.invites) == 1
    other = await client.post("/api/v1/invites", json={"uses": 3}, headers=key)
    assert (other.status_code, "used for another request" in problem_of(other)) == (409, True)
    started = [await client.post("/api/v1/training/start", json=JOB | {"min_nodes": 2}, headers=key) for _ in range(2)]
    assert started[0].json() == started[1].json()
    assert len(world.core.jobs) == 1
    elsewhere = await client.post("/api/v1/invites", json={"uses": 2}, headers={"idempotency-key": "k2"})
    assert elsewhere.json()["token"] != first.json()["token"]
    assert (await client.post("/api/v1/invites", headers={"idempotency-key": "k" * 300})).status_code == 422
    too_large = await client.post("/api/v1/invites", content=b" " * (MAX_BODY + 1), headers=key)
    assert too_large.status_code == 413


async def test_requests_with_one_key_at_the_same_time_are_one(world, client):
    wishes = [client.post("/api/v1/invites", headers={"idempotency-key": "k"}) for _ in range(5)]
    assert len({answer.text for answer in await asyncio.gather(*wishes)}) == 1
    assert len(world.core.register.invites) == 1


async def test_steering(client):
    job = (await client.post("/api/v1/jobs", json=JOB)).json()["id"]
    assert (await client.post(f"/api/v1/jobs/{job}/pause")).json()["status"] == "paused"
    assert (await client.post(f"/api/v1/jobs/{job}/resume")).json()["status"] != "paused"
    stopped = await client.post(f"/api/v1/jobs/{job}/stop", json={"reason": "enough"})
    assert (stopped.json()["status"], stopped.json()["reason"]) == ("stopped", "enough by the operator at 127.0.0.1")
    again = await client.post(f"/api/v1/jobs/{job}/stop")
    assert again.status_code == 409
    assert "is stopped" in problem_of(again)


async def test_lists_come_in_pages_and_newest_first(client):
    made = [(await client.post("/api/v1/jobs?paused=true", json=JOB)).json()["id"] for _ in range(5)]
    seen, after = [], ""
    while after is not None:
        page = (await client.get("/api/v1/jobs", params={"limit": 2, "after": after})).json()
        seen.append([job["id"] for job in page["items"]])
        after = page["next"]
    assert seen == [made[:2:-1], made[2:0:-1], made[:1]]
    assert (await client.get("/api/v1/jobs?status=paused&limit=1000")).json()["next"] is None
    assert (await client.get("/api/v1/jobs?status=failed")).json() == {"items": [], "next": None}
    assert (await client.get("/api/v1/jobs?after=nonsense")).status_code == 422


async def test_a_page_goes_on_after_a_job_that_has_left_the_list(client):
    made = [(await client.post("/api/v1/jobs?paused=true", json=JOB)).json()["id"] for _ in range(3)]
    first = (await client.get("/api/v1/jobs?status=paused&limit=1")).json()
    assert (first["items"][0]["id"], first["next"]) == (made[2], made[2])
    await client.post(f"/api/v1/jobs/{made[2]}/stop")
    rest = (await client.get(f"/api/v1/jobs?status=paused&after={made[2]}")).json()
    assert [job["id"] for job in rest["items"]] == [made[1], made[0]]


async def test_pages_of_rounds(world, client):
    job = await trained(world, client)
    first = (await client.get(f"/api/v1/jobs/{job}/rounds?limit=2")).json()
    rest = (await client.get(f"/api/v1/jobs/{job}/rounds?limit=2&after={first['next']}")).json()
    assert (len(first["items"]), len(rest["items"]), rest["next"]) == (2, 1, None)
    assert (await client.get(f"/api/v1/jobs/{job}/rounds?after=x")).status_code == 422


# -- models ----------------------------------------------------------------------------------------------


async def test_a_downloaded_model_says_what_it_is(world, client, tmp_path):
    job = await trained(world, client)
    answer = await client.get(f"/api/v1/jobs/{job}/model")
    assert answer.headers["content-disposition"] == f'attachment; filename="{job}-round-2.safetensors"'
    path = tmp_path / "model.safetensors"
    path.write_bytes(answer.content)
    with safe_open(path, "np") as file:
        about = file.metadata()
        assert sorted(file.keys()) == ["b", "w"]
        downloaded = file.get_tensor("w")
    digest = world.core.job(job).model
    assert (about["tutti.job"], about["tutti.round"], about["tutti.digest"]) == (job, "2", digest)
    assert msgspec.json.decode(about["tutti.model"], type=Choice) == Choice("toy")
    assert msgspec.json.decode(about["tutti.data"], type=DataSchema) == world.core.job(job).data
    with safe_open(world.core.blobs.path(digest), "np") as stored:
        assert np.array_equal(stored.get_tensor("w"), downloaded)


async def test_models_of_earlier_rounds_and_their_lineage(world, client):
    job = await trained(world, client)
    models = (await client.get(f"/api/v1/jobs/{job}/models")).json()["items"]
    assert [(m["round"], m["base"]) for m in models] == [(0, ""), (1, models[0]["digest"]), (2, models[1]["digest"])]
    assert [part["node"] for part in models[1]["made_from"]] == ["ada", "bob"]
    first = await client.get(f"/api/v1/jobs/{job}/model?round=0")
    assert f'"tutti.digest":"{models[0]["digest"]}"' in first.text
    assert [m["round"] for m in (await client.get("/api/v1/models")).json()["items"]] == [2]
    missing = await client.get(f"/api/v1/jobs/{job}/model?round=7")
    assert (missing.status_code, problem_of(missing)) == (
        404,
        f"job {job} has no model of round 7: 2 rounds are done",
    )
    await world.core.blobs.delete(models[1]["digest"])
    gone = await client.get(f"/api/v1/jobs/{job}/model?round=1")
    assert (gone.status_code, "not kept any more" in problem_of(gone)) == (404, True)


# -- nodes -----------------------------------------------------------------------------------------------


async def test_joining_by_invitation(client):
    invitation = (await client.post("/api/v1/invites", json={"uses": 1})).json()
    assert invitation["link"] == f"http://127.0.0.1:8000/join#{invitation['token']}"
    joined = await client.post("/api/v1/nodes", json={"node": "ada", "token": invitation["token"]})
    assert (joined.status_code, joined.json()["node"]) == (201, "ada")
    assert (await client.get(joined.headers["location"])).json()["connected"] is False
    used_up = await client.post("/api/v1/nodes", json={"node": "bob", "token": invitation["token"]})
    assert (used_up.status_code, "used up" in problem_of(used_up)) == (403, True)


async def test_an_invitation_is_checked_without_using_it_up(client):
    token = (await client.post("/api/v1/invites")).json()["token"]
    checks = [await client.post("/api/v1/invites/check", json={"token": token}) for _ in range(2)]
    assert [answer.status_code for answer in checks] == [204, 204]
    unknown = await client.post("/api/v1/invites/check", json={"token": "nonsense"})
    assert (unknown.status_code, "not known here" in problem_of(unknown)) == (403, True)


async def test_a_node_that_chose_its_secret_may_repeat_the_request(client):
    token = (await client.post("/api/v1/invites")).json()["token"]
    wish = {"node": "ada", "token": token, "secret": "s" * 43}
    first, again = [await client.post("/api/v1/nodes", json=wish) for _ in range(2)]
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json() == {"node": "ada", "secret": "s" * 43}


async def test_a_name_joins_once(client):
    assert (await client.post("/api/v1/nodes", json={"node": "ada"})).status_code == 201
    assert (await client.post("/api/v1/nodes", json={"node": "ada"})).status_code == 409


async def test_nodes_are_listed_shown_and_removed(world, client):
    job = await trained(world, client)
    nodes = (await client.get("/api/v1/nodes?connected=true&dataset=toy")).json()["items"]
    assert [(n["name"], n["connected"], n["examples"]) for n in nodes] == [("ada", True, 16), ("bob", True, 16)]
    assert (await client.get("/api/v1/nodes?connected=false")).json()["items"] == []
    assert (await client.get("/api/v1/nodes?limit=1&after=ada")).json() == {
        "items": (await client.get("/api/v1/nodes")).json()["items"][1:],
        "next": None,
    }
    assert (await client.get("/api/v1/nodes?limit=1")).json()["next"] == "ada"
    gone = (await client.get("/api/v1/nodes?after=aaron")).json()["items"]  # left the list between two pages
    assert [node["name"] for node in gone] == ["ada", "bob"]
    assert (await client.get("/api/v1/nodes?after=zoe")).json() == {"items": [], "next": None}
    given = (await client.get(f"/api/v1/contributions?job={job}")).json()["items"]
    assert [(c["node"], c["updates"], c["share"]) for c in given] == [("ada", 2, 0.5), ("bob", 2, 0.5)]
    assert (await client.delete("/api/v1/nodes/bob")).status_code == 204
    assert (await client.get("/api/v1/nodes/bob")).status_code == 404


async def test_a_drained_node_is_given_no_more_work(world, client):
    await trained(world, client)  # so both are connected
    assert (await client.post("/api/v1/nodes/bob/drain")).json()["drained"] is True
    assert (await client.post("/api/v1/nodes/bob/drain")).status_code == 200
    checked = (await client.post("/api/v1/jobs/check", json=JOB)).json()
    assert (checked["nodes_ready"], checked["nodes_needed"]) == (1, 2)
    job = (await client.post("/api/v1/jobs", json=JOB)).json()
    await world.core.wait_for(job["id"], lambda job: job.status is Status.WAITING)
    waiting = (await client.get(f"/api/v1/jobs/{job['id']}")).json()
    assert waiting["reason"] == "waits for nodes: 2 are needed, 1 are ready"
    assert (await client.post("/api/v1/nodes/bob/undrain")).json()["drained"] is False
    await world.finished(world.core.job(job["id"]))
    assert (await client.post("/api/v1/nodes/zoe/drain")).status_code == 404


async def test_checking_a_job_starts_none(world, client):
    bad = await client.post("/api/v1/jobs/check", json={**JOB, "cohort": {"quorum": 9}})
    assert (bad.status_code, "it could never close" in problem_of(bad)) == (422, True)
    assert (await client.post("/api/v1/jobs/check", json=JOB)).status_code == 200
    assert world.core.jobs == {}


# -- the coordinator -------------------------------------------------------------------------------------


async def test_health(client):
    answer = (await client.get("/health")).json()
    assert answer["status"] == "healthy"
    assert answer["timestamp"].startswith("20")
    assert (await client.get("/ready")).json()["status"] == "ready"


async def test_a_coordinator_without_its_log_lives_but_is_not_ready(world, client):
    await world.core.log.close()
    assert (await client.get("/health")).status_code == 200
    refused = await client.get("/ready")
    assert refused.status_code == 507
    page = await client.get("/metrics")
    assert "tutti_event_log_up 0.0" in page.text
    assert "tutti_event_log_lag_events" not in page.text


async def test_phases_outcomes_and_exclusions_are_counted(world, app, client):
    await world.join("cyd", 2)
    await client.post("/api/v1/nodes/cyd/drain")
    await trained(world, client)
    page = (await client.get("/metrics")).text
    values = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    for phase in ("waiting", "training", "aggregating"):
        assert values[f'tutti_round_phase_seconds_count{{phase="{phase}"}}'] == "2.0"
    assert float(values['tutti_round_phase_seconds_sum{phase="training"}']) > 0
    assert values['tutti_rounds_total{outcome="closed"}'] == "2.0"
    assert values['tutti_exclusions_total{reason="drained"}'] == "2.0"
    assert values['tutti_exclusions_total{reason="refused"}'] == "0.0"
    assert values['tutti_nodes{status="drained"}'] == "1.0"
    assert values['tutti_queue_depth{queue="outgoing"}'] == "0.0"
    assert values["tutti_event_log_lag_events"] == "0.0"
    assert values["tutti_jobs_in_trouble"] == "0.0"


async def test_status_metrics_and_configuration(world, client):
    await trained(world, client)
    status = (await client.get("/api/v1/status")).json()
    assert (status["status"], status["nodes_connected"], status["jobs"]) == ("idle", 2, {"completed": 1})
    assert status["offset"] == world.core.journal.offset
    metrics = (await client.get("/api/v1/metrics")).json()
    assert (metrics["rounds_completed"], metrics["training"]["count"]) == (2, 4)
    assert metrics["jobs"][0]["rounds_done"] == 2
    assert (await client.get("/api/v1/config")).json()["training"]["lr"] == 0.1


async def test_prometheus_names_are_the_documented_ones(world, client):
    await trained(world, client)
    page = await client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = dict(line.rsplit(" ", 1) for line in page.text.splitlines() if not line.startswith("#"))
    assert values["devices_connected_total"] == "2.0"
    assert values["training_rounds_completed"] == "2.0"
    assert values["aggregation_time_seconds_count"] == "2.0"
    assert values["device_training_time_seconds_count"] == "4.0"
    assert float(values['device_training_time_seconds{quantile="0.5"}']) > 0
    assert values['tutti_updates_total{verdict="accepted"}'] == "4.0"
    assert values['tutti_jobs{status="completed"}'] == "1.0"
    assert float(values["tutti_event_log_offset"]) == world.core.journal.offset


async def test_the_registry_says_what_can_be_chosen(client):
    everything = (await client.get("/api/v1/registry")).json()
    assert set(everything) == {"strategies", "models", "datasets", "partitioners", "reducers", "schedules", "codecs"}
    strategies = (await client.get("/api/v1/registry/strategies")).json()
    assert strategies["fedprox"]["properties"]["mu"]["default"] == 0.01
    assert (await client.get("/api/v1/registry/nonsense")).status_code == 404


async def test_events_are_read_by_offset_and_stream_without_secrets(client):
    job = (await client.post("/api/v1/jobs?paused=true", json=JOB)).json()["id"]
    await client.post("/api/v1/invites")
    events = (await client.get("/api/v1/events?limit=2")).json()
    more = (await client.get(f"/api/v1/events?after={events['next']}")).json()["items"]
    assert [event["offset"] for event in [*events["items"], *more]] == list(range(1, len(more) + 3))
    assert all("token" not in event["data"] for event in more)
    own = (await client.get(f"/api/v1/events?stream=job:{job}")).json()["items"]
    assert [event["type"] for event in own][:2] == ["JobSubmitted", "JobPaused"]
    assert own[0]["data"]["spec"]["dataset"] == "toy"


# -- what goes wrong -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ({}, "missing required field `dataset`"),
        ({**JOB, "rounds": 0}, "$.rounds"),
        ({**JOB, "round": 3}, "unknown field `round`"),
        ({**JOB, "model": "nonsense"}, "there is no model 'nonsense'; choose from: "),
        ({**JOB, "strategy": "fedprox:nu=3"}, "nu"),
        ({**JOB, "dataset": "nonsense"}, "no connected node holds 'nonsense'"),
        ({**JOB, "cohort": {"size": 3, "min_nodes": 1}}, "cohort.size is 3"),
        ([1], "expected a JSON object, came list"),
    ],
)
async def test_a_bad_job_is_refused_with_the_reason(world, client, body, part):
    answer = await client.post("/api/v1/jobs", json=body)
    assert answer.status_code == 422
    assert part in problem_of(answer)
    assert world.core.jobs == {}


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (json.dumps(JOB).encode(), "text/plain", 415),
        (json.dumps(JOB).encode(), "application/x-www-form-urlencoded", 415),
        (b" " * (MAX_BODY + 1), "application/json", 413),
    ],
)
async def test_a_bad_body(client, content, kind, status):
    answer = await client.post("/api/v1/jobs", content=content, headers={"content-type": kind})
    assert answer.status_code == status
    assert problem_of(answer)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/api/v1/jobs/none", 404),
        ("POST", "/api/v1/jobs/none/pause", 404),
        ("GET", "/api/v1/jobs/none/rounds", 404),
        ("GET", "/api/v1/jobs/none/model", 404),
        ("GET", "/api/v1/nodes/none", 404),
        ("DELETE", "/api/v1/nodes/none", 404),
        ("PUT", "/api/v1/jobs", 405),
        ("GET", "/api/v1/jobs?limit=0", 422),
        ("GET", "/api/v1/jobs/x/rounds/one", 422),
        ("GET", "/api/v1/events?after=-1", 422),
    ],
)
async def test_problems(client, method, path, status):
    answer = await client.request(method, path)
    assert answer.status_code == status
    assert problem_of(answer)


async def test_a_round_that_has_not_come(client):
    job = (await client.post("/api/v1/jobs?paused=true", json=JOB)).json()["id"]
    answer = await client.get(f"/api/v1/jobs/{job}/rounds/1")
    assert (answer.status_code, problem_of(answer)) == (404, f"job {job} has no round 1: 0 of 2 are done")


async def test_our_own_mistake_shows_no_traceback(app, client, caplog):
    async def broken() -> None:
        raise ZeroDivisionError("a secret detail")

    app.add_api_route("/broken", broken)
    answer = await client.get("/broken")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert problem_of(answer)


# -- who may call ----------------------------------------------------------------------------------------


async def test_a_coordinator_on_the_network_asks_for_the_token(remote):
    refused = await remote.get("/api/v1/jobs")
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert "missing" in problem_of(refused)
    wrong = await remote.get("/api/v1/jobs", headers={"authorization": "Bearer wrong"})
    assert (wrong.status_code, problem_of(wrong)) == (401, "this is not the operator's token")
    assert (await remote.get("/api/v1/jobs", headers=BEARER)).status_code == 200


async def test_everything_but_a_few_paths_needs_the_token(remote):
    document = (await remote.get("/openapi.json")).json()
    open_to_all = {
        ("get", "/health"),
        ("get", "/ready"),
        ("post", "/api/v1/nodes"),
        ("post", "/api/v1/nodes/register"),
        ("post", "/api/v1/invites/check"),
        ("get", "/api/v1/blobs/{digest}"),
        ("put", "/api/v1/blobs/{digest}"),
        ("head", "/api/v1/blobs/{digest}"),
        ("get", "/auth/session"),
        ("post", "/auth/signup"),
        ("post", "/auth/signin"),
        ("post", "/auth/refresh"),
        ("post", "/auth/revoke"),
    }
    for path, operations in document["paths"].items():
        for method in operations.keys() & {"get", "post", "put", "delete", "head"}:
            answer = await remote.request(method, path.replace("{", "").replace("}", ""))
            if (method, path) not in open_to_all:
                assert answer.status_code == 401, (method, path)
    assert (await remote.get("/nothing")).status_code == 401
    assert (await remote.get("/health")).status_code == 200
    assert (await remote.get("/docs")).status_code == 200


async def test_joining_needs_a_token_where_it_needs_one(world, remote):
    refused = await remote.post("/api/v1/nodes", json={"node": "mallory"})
    assert refused.status_code == 403
    assert world.core.register.nodes == {}
    turned_away = [
        r.event for r in await world.core.log.read(stream="nodes") if type(r.event).__name__ == "NodeTurnedAway"
    ]
    assert [event.node for event in turned_away] == ["mallory"]
    assert (await remote.post("/api/v1/nodes", json={"node": "ada"}, headers=BEARER)).status_code == 201


async def test_who_fails_too_often_has_to_wait(remote):
    answers = [await remote.get("/api/v1/jobs", headers={"authorization": "Bearer guess"}) for _ in range(25)]
    assert [a.status_code for a in answers].count(429) >= 3
    assert answers[-1].headers["retry-after"]
    assert (await remote.post("/api/v1/nodes", json={"node": "ada", "token": "guess"})).status_code == 429
    assert (await remote.post("/api/v1/invites/check", json={"token": "guess"})).status_code == 429


async def test_who_fails_too_often_keeps_nobody_else_at_the_same_address_out(world, remote):
    for _ in range(25):
        await remote.get("/api/v1/jobs", headers={"authorization": "Bearer guess"})
    assert (await remote.get("/api/v1/jobs", headers=BEARER)).status_code == 200
    token = await world.core.members.invite()
    assert (await remote.post("/api/v1/invites/check", json={"token": token})).status_code == 204
    assert (await remote.post("/api/v1/nodes", json={"node": "ada", "token": token})).status_code == 201


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "localhost.evil.example:8000"},
        {"host": "["},
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "null"},
        {"origin": "http://["},
        {"x-forwarded-for": "1.2.3.4"},
    ],
)
async def test_no_web_page_speaks_for_the_operator(client, headers):
    answer = await client.post("/api/v1/invites", headers=headers)
    assert answer.status_code == 403
    assert problem_of(answer)


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1:8000", "[::1]:8000"])
async def test_this_machine_by_its_names(client, host):
    answer = await client.get("/api/v1/status", headers={"host": host, "origin": f"http://{host}"})
    assert answer.status_code == 200


async def test_security_headers(client):
    for path in ("/health", "/nothing", "/docs"):
        headers = (await client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]


# -- the document ----------------------------------------------------------------------------------------


async def test_the_openapi_document_is_whole(client):
    document = (await client.get("/openapi.json")).json()
    components = document["components"]["schemas"]
    references = _references(document)
    assert references
    assert {reference.removeprefix("#/components/schemas/") for reference in references} <= components.keys()
    ids = []
    files = ("/metrics", "/api/v1/jobs/{job}/model", "/api/v1/blobs/{digest}", "/api/v1/audit/export")
    for path, operations in document["paths"].items():
        for method in operations.keys() & {"get", "post", "put", "delete", "head"}:
            operation = operations[method]
            ids.append(operation["operationId"])
            assert operation["tags"], (method, path)
            assert any("4" in code or code == "default" for code in operation["responses"]), (method, path)
            ((code, answer),) = [(c, r) for c, r in operation["responses"].items() if c.startswith("2")][:1]
            if code != "204" and path not in files:
                assert answer["content"]["application/json"]["schema"], (method, path)
    assert len(set(ids)) == len(ids)
    created = document["paths"]["/api/v1/jobs"]["post"]
    assert created["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/JobSpec"}
    assert created["responses"]["201"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/JobView"
    }
    assert components["JobSpec"]["required"] == ["dataset", "model"]


def _references(part: object) -> set[str]:
    if isinstance(part, dict):
        own = {part["$ref"]} if isinstance(part.get("$ref"), str) else set()
        return own.union(*map(_references, part.values()))
    return set().union(*map(_references, part)) if isinstance(part, list) else set()


async def test_what_is_published_is_what_is_answered(world, client):
    """The answer to a request has exactly the published fields."""
    job = await trained(world, client)
    components = (await client.get("/openapi.json")).json()["components"]["schemas"]
    answers = {
        "JobView": await client.get(f"/api/v1/jobs/{job}"),
        "WhyView": await client.get(f"/api/v1/jobs/{job}/rounds/1"),
        "StatusView": await client.get("/api/v1/status"),
        "MetricsView": await client.get("/api/v1/metrics"),
        "NodeView": await client.get("/api/v1/nodes/ada"),
    }
    for name, answer in answers.items():
        assert set(answer.json()) == set(components[name]["properties"])


async def test_an_unknown_field_is_refused_with_those_that_there_are(client):
    answer = await client.post("/api/v1/nodes", json={"node": "ada", "tokn": "x"})
    assert answer.status_code == 422
    assert "`tokn`; there are: node, token, secret" in problem_of(answer)
    answer = await client.post("/api/v1/training/stop", json={"session": "one"})
    assert "there are: session_id, job_id, id" in problem_of(answer)
