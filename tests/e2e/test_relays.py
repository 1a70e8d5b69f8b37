"""Three coordinators behind nginx, all of which have nodes: relays that die, Redis that goes, live events at each."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import asyncpg
import httpx
import pytest
from websockets.sync.client import connect

from support.commands import DEADLINE, running, tutti
from support.ports import free_ports
from support.redis import USER, redis_server
from support.replicas import TOKEN, Replicas, three

SPEC = {
    "dataset": "digits",
    "model": "mlp:hidden=32",
    "name": "relays",
    "rounds": 8,
    "seed": 3,
    "training": {"lr": 0.05, "batch_size": 32},
    "cohort": {"min_nodes": 3, "grace": 60},
}
"""Small updates travel with their messages, over Redis; `LARGE` ones are uploaded, and summed where they come in."""

LARGE = {**SPEC, "model": "mlp:hidden=256", "name": "large"}
ASKING = 4
NODES = ("n0", "n1", "n5")
"""nginx leads each to another replica, by its name."""
AS_OPERATOR = {"Authorization": f"Bearer {TOKEN}"}


class Place:
    """The replicas, whose nodes came to one each, and their Redis."""

    def __init__(self, folder: Path, replicas: Replicas, redis: ExitStack, port: int) -> None:
        self.folder, self.replicas, self.redis, self._port = folder, replicas, redis, port

    def url(self, which: int) -> str:
        return f"http://127.0.0.1:{self.replicas.ports[which]}"

    def relay(self) -> int:
        return next(which for which in range(3) if which != self.replicas.owner)

    def ready(self, which: int) -> httpx.Response:
        return httpx.get(f"{self.url(which)}/ready", timeout=DEADLINE)

    def until_ready(self, which: int, status: int) -> str:
        last = time.monotonic() + DEADLINE
        while (answer := self.ready(which)).status_code != status:
            assert time.monotonic() < last, answer.text
            time.sleep(0.05)
        return answer.text

    def start_redis(self) -> None:
        self.redis.enter_context(redis_server(self.folder, self._port))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("relays")
    with ExitStack() as stack:
        (port,) = free_ports(1)
        redis = stack.enter_context(ExitStack())
        redis.enter_context(redis_server(folder, port))
        its = stack.enter_context(three(folder, redis=f"redis://{USER}127.0.0.1:{port}/0"))
        with its.client() as client:
            link = client.invite(uses=3).link
        for part, name in enumerate(NODES):
            source = f"digits:part={part}/3"
            join = ["join", link, "--data", source, "--name", name, "--state-dir", folder / name]
            stack.enter_context(running(*join, cwd=folder))
        yield Place(folder, its, redis, port)


@pytest.fixture(scope="module", params=[SPEC, LARGE], ids=["small", "large"])
def undisturbed(place: Place, request: pytest.FixtureRequest) -> tuple[dict, str]:
    with place.replicas.client() as client:
        done = client.wait(client.submit(request.param).id)
    assert done.status == "completed"
    return request.param, done.model_digest


def check_disturbed(place: Place, undisturbed: tuple[dict, str], *losses) -> None:
    """The same model as ever, each round closed once with the updates of all nodes, whatever was lost in each."""
    spec, digest = undisturbed
    with place.replicas.client() as client:
        job, closed, due = client.submit(spec), [], list(losses)
        for event in client.follow(job.id):
            if event.type == "RoundClosed":
                closed.append((event.data["round"], sorted(event.data["counted"])))
            if event.type == "UpdateAccepted" and due and event.data["round"] == 2 * (1 + len(losses) - len(due)):
                due.pop(0)()
        done = client.wait(job.id)
    assert not due
    assert (done.status, done.model_digest) == ("completed", digest)
    assert closed == [(round, [*NODES]) for round in range(1, SPEC["rounds"] + 2)]  # the last one measures


def invited(url: str, over: threading.Event) -> list[int]:
    """What somebody is answered who asks for one invitation after another, in two parts."""
    statuses = []
    while not over.is_set():
        parts, headers = iter((b'{"uses"', b": 1}")), {**AS_OPERATOR, "content-type": "application/json"}
        answer = httpx.post(f"{url}/api/v1/invites", content=parts, headers=headers, timeout=DEADLINE)
        statuses.append(answer.status_code)
    return statuses


def test_the_nodes_are_spread(place):
    """Relays say how many they have."""
    for which in range(3):
        if which != place.replicas.owner:
            text = httpx.get(f"{place.url(which)}/metrics", headers=AS_OPERATOR, timeout=DEADLINE).text
            assert "tutti_relay_nodes 1.0" in text
            assert "tutti_relay_linked 1.0" in text
    with place.replicas.client() as client:
        assert {node.name for node in client.nodes() if node.connected} == {*NODES}


def test_any_replica_answers_whoever_may_ask(place):
    relay = place.url(place.relay())
    assert httpx.get(f"{relay}/health").status_code == 200
    assert httpx.get(f"{relay}/api/v1/status", timeout=DEADLINE).status_code == 401
    assert httpx.get(f"{relay}/metrics", timeout=DEADLINE).status_code == 401
    made = httpx.post(f"{relay}/api/v1/nodes", json={"uses": 1}, headers=AS_OPERATOR, timeout=DEADLINE)
    seen = httpx.get(f"{relay}/api/v1/status", headers=AS_OPERATOR, timeout=DEADLINE)
    assert (made.status_code < 500, seen.status_code) == (True, 200)


def test_a_relay_says_for_whom_it_asks(place):
    """To the owner, which believes it: not what a caller says that is no load balancer (here: at 127.0.0.1)."""
    claimed = AS_OPERATOR | {"X-Forwarded-For": "203.0.113.9"}
    wish = {"uses": 1, "seconds": 60}
    for caller in ("127.0.0.3", "127.0.0.1"):
        with httpx.Client(transport=httpx.HTTPTransport(local_address=caller), timeout=DEADLINE) as client:
            made = client.post(f"{place.url(place.relay())}/api/v1/invites", json=wish, headers=claimed)
            assert made.status_code == 201
    listed = httpx.get(f"{place.url(place.relay())}/api/v1/audit?newest=true", headers=AS_OPERATOR, timeout=DEADLINE)
    assert [each["entry"]["origin"] for each in listed.json()["items"][:2]] == ["203.0.113.9", "127.0.0.3"]


def test_relays_reach_the_owner_where_it_says_that_it_is(place):
    async def written() -> str:
        db = await asyncpg.connect(place.replicas.database)
        try:
            return await db.fetchval("SELECT url FROM events_owner")
        finally:
            await db.close()

    assert asyncio.run(written()) == place.replicas.replica_url(place.replicas.owner)
    asked = httpx.get(f"{place.url(place.relay())}/api/v1/status", headers=AS_OPERATOR, timeout=DEADLINE)
    assert asked.status_code == 200


def test_live_events_at_any_replica(place):
    address = place.url(place.relay()).replace("http", "ws") + "/ws"
    with connect(address, additional_headers=AS_OPERATOR) as socket, place.replicas.client() as client:
        job = client.submit({**SPEC, "name": "watched", "rounds": 1})
        offsets = []
        while True:
            event = json.loads(socket.recv(timeout=DEADLINE))
            offsets.append(event["offset"])
            if event["type"] == "JobCompleted" and event["stream"] == f"job:{job.id}":
                break
    assert offsets == list(range(offsets[0], offsets[-1] + 1))  # none is missing, none comes twice
    with pytest.raises(Exception, match="401"), connect(address):
        pass


def test_kill_a_relay_and_then_the_owner(place, undisturbed):
    """Of three replicas the last goes on alone, with all nodes."""
    its, lost, answers = place.replicas, list[int](), set[int]()

    def relay() -> None:
        lost.append(place.relay())
        its.processes[lost[0]].kill()
        its.lose(lost[0])

    def owner() -> None:
        over = threading.Event()
        (left,) = its.processes.keys() - {its.owner}
        with ThreadPoolExecutor(ASKING) as pool:
            asking = [pool.submit(invited, place.url(left), over) for _ in range(ASKING)]
            try:
                lost.append(its.kill())
                its.await_owner()
            finally:
                over.set()
        answers.update(status for each in asking for status in each.result())

    check_disturbed(place, undisturbed, relay, owner)
    assert answers <= {201, 502, 503}, "a request hung, or was not sent whole, as the owner was lost"
    assert 201 in answers
    for which in lost:
        its.start(which)
    for which in lost:
        its.await_standby(which)


def test_redis_goes_and_comes_back(place, undisturbed):
    """Rounds go on at the owner, where nodes of relays go; the relays say what is wrong, and mend by themselves."""

    def gone() -> None:
        place.redis.close()
        relay = place.relay()
        assert "Redis at redis://:***@127.0.0.1" in place.until_ready(relay, 503)
        assert place.ready(place.replicas.owner).status_code == 200
        assert httpx.get(f"{place.url(relay)}/api/v1/status", headers=AS_OPERATOR, timeout=DEADLINE).status_code == 200

    check_disturbed(place, undisturbed, gone, place.start_redis)
    for which in range(3):
        place.until_ready(which, 200)


def test_bad_settings(tmp_path):
    for options, said in (
        (["--redis", "redis://127.0.0.1/0"], "give --standby too"),
        (["--standby", "--redis", "http://127.0.0.1"], "expected an address such as rediss://"),
        (["--standby", "--redis", "redis://cache.example.org/0"], "has no password"),
        (["--standby", "--redis", "redis://:changeme@cache.example.org/0"], "everybody knows"),
        (["--standby", "--replica-url", "here"], "expected an address such as https://"),
    ):
        done = tutti("up", *options, "--database", "postgresql://127.0.0.1/x", "--blobs", "s3://x", cwd=tmp_path)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
