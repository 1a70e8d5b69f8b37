"""The Python client and live events, over a real uvicorn."""

import asyncio
import json
import socket
from contextlib import closing
from pathlib import Path

import pytest
from fastapi import FastAPI, WebSocket
from safetensors import safe_open
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

import tutti
from support.served import OPEN_TO_THE_NETWORK, TOKEN, app_of, served
from support.worlds import SCHEMA, World, toy_spec
from tutti.apps.api import live
from tutti.apps.client import Client, Unreachable
from tutti.core.errors import Conflict, Forbidden, NotFound, StorageError, UserError
from tutti.domain.spec import BadSpec

JOB = {"dataset": "toy", "model": "toy", "rounds": 2, "cohort": {"min_nodes": 2}, "training": {"lr": 0.01}}


@pytest.fixture
async def world(tmp_path: Path):
    world = World(tmp_path)
    await world.up()
    yield world
    await world.close()


@pytest.fixture
async def url(world):
    async with served(app_of(world)) as url:
        yield url


@pytest.fixture
async def client(url):
    with tutti.Client(url) as client:
        yield client


async def join_two(world: World) -> None:
    await world.join("ada", 0)
    await world.join("bob", 1)


def live_url(url: str, query: str = "") -> str:
    return f"ws{url.removeprefix('http')}/ws{query}"


# -- the client ------------------------------------------------------------------------------------------


async def test_a_job_followed_to_its_end(world, client, tmp_path):
    await join_two(world)
    job = await asyncio.to_thread(client.submit, JOB)
    events = await asyncio.to_thread(lambda: list(client.follow(job.id)))
    assert [event.type for event in events][:2] == ["JobSubmitted", "JobInitialised"]
    assert events[-1].type == "JobCompleted"
    assert [event.offset for event in events] == sorted({event.offset for event in events})
    assert (await asyncio.to_thread(client.wait, job.id)).status == "completed"
    assert await asyncio.to_thread(lambda: list(client.follow(job.id))) == events
    assert await asyncio.to_thread(lambda: list(client.follow(job.id, after=events[-1].offset))) == []

    path = await asyncio.to_thread(client.download, job.id, tmp_path / "model.safetensors")
    with safe_open(path, "np") as file:
        assert file.metadata()["tutti.job"] == job.id
    assert [p.name for p in tmp_path.glob("*model*")] == ["model.safetensors"]


async def test_every_view(world, client):
    await join_two(world)

    def look() -> None:
        job = client.submit(JOB, key="once").id
        assert client.submit(JOB, key="once").id == job
        client.wait(job)
        assert [shown.id for shown in client.jobs(status="completed")] == [job]
        assert [r.round for r in client.rounds(job)] == [1, 2, 3]
        assert {part.outcome for part in client.why(job, 1).attempts[0].nodes} == {"counted"}
        assert [point.round for point in client.metrics(job)] == [0, 1, 2]
        assert [model.round for model in client.models(job)] == [0, 1, 2]
        assert [model.job for model in client.models()] == [job]
        assert [given.node for given in client.contributions(job=job)] == ["ada", "bob"]
        assert [node.name for node in client.nodes(connected="true")] == ["ada", "bob"]
        assert client.node("ada").examples == 16
        assert client.status().nodes_connected == 2
        assert client.overview().rounds_completed == 2
        assert "fedavg" in client.registry("strategies")
        assert client.events(after=client.status().offset) == []
        assert client.invite(uses=2).link.startswith(client.url + "/join#")
        client.remove_node("bob")
        assert [node.name for node in client.nodes()] == ["ada"]

    await asyncio.to_thread(look)


async def test_steering(client):
    def steer() -> None:
        assert client.check(JOB).nodes_needed == JOB["cohort"]["min_nodes"]
        job = client.submit(JOB, paused=True).id
        assert client.resume(job).status != "paused"
        assert client.pause(job).status == "paused"
        assert client.stop(job, "enough").status == "stopped"
        with pytest.raises(Conflict, match="is stopped"):
            client.pause(job)

    await asyncio.to_thread(steer)


async def test_errors_are_those_of_the_coordinator(client, tmp_path):
    def fail() -> None:
        with pytest.raises(BadSpec, match=r"\$\.rounds"):
            client.submit({**JOB, "rounds": 0})
        with pytest.raises(UserError, match="there is no model 'nonsense'"):
            client.submit({**JOB, "model": "nonsense"})
        for call in (client.job, client.pause, client.node, lambda name: list(client.follow(name))):
            with pytest.raises(NotFound, match="none"):
                call("none")
        job = client.submit(JOB, paused=True).id
        with pytest.raises(NotFound, match="no model of round 9"):
            client.download(job, tmp_path / "model.safetensors", round=9)
        with pytest.raises(NotFound, match="has no round 1"):
            client.why(job, 1)

    await asyncio.to_thread(fail)
    assert list(tmp_path.glob("*safetensors*")) == []


async def test_a_model_that_cannot_be_written(world, client, tmp_path):
    await join_two(world)
    job = await asyncio.to_thread(client.submit, JOB)
    await world.finished(world.core.job(job.id))
    with pytest.raises(StorageError, match="cannot write"):
        await asyncio.to_thread(client.download, job.id, tmp_path / "nowhere" / "model.safetensors")


async def test_the_operators_token(world):
    async with served(app_of(world, OPEN_TO_THE_NETWORK)) as url:

        def knock() -> None:
            with Client(url) as stranger, pytest.raises(Forbidden, match="token is missing"):
                stranger.status()
            with Client(url, "wrong") as stranger, pytest.raises(Forbidden, match="not the operator's token"):
                next(stranger.follow())
            with Client(url, TOKEN) as operator:
                assert operator.status().nodes == 0
                assert next(operator.follow()).type == "CoordinatorStarted"

        await asyncio.to_thread(knock)


async def test_nobody_answers():
    with closing(socket.create_server(("127.0.0.1", 0))) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with Client(url) as client:
        with pytest.raises(Unreachable, match=rf"no coordinator answers at {url}"):
            client.status()
        with pytest.raises(Unreachable):
            next(client.follow(patience=0.0))


@pytest.mark.timeout(30)
async def test_a_server_that_ends_every_connection_at_once_is_given_up():
    app, opened = FastAPI(), []

    @app.websocket("/ws")
    async def hang_up(websocket: WebSocket) -> None:
        await websocket.accept()
        opened.append(websocket)
        await websocket.close()

    def follow(url: str) -> None:
        with Client(url) as client, pytest.raises(Unreachable, match="ends every live connection at once"):
            next(client.follow(patience=0.3))

    async with served(app) as url:
        await asyncio.to_thread(follow, url)
    assert len(opened) >= 2


async def test_following_survives_a_restart(world, tmp_path):
    await join_two(world)
    seen: list[tutti.apps.client.EventView] = []
    loop, half_way = asyncio.get_running_loop(), asyncio.Event()

    def follow(url: str, job: str) -> None:
        with Client(url) as client:
            for event in client.follow(job):
                seen.append(event)
                if event.type == "RoundClosed":
                    loop.call_soon_threadsafe(half_way.set)

    async with served(app_of(world)) as url:
        job = await world.core.submit(_slow(rounds=6))
        following = asyncio.create_task(asyncio.to_thread(follow, url, job.id))
        await half_way.wait()
        await world.down()
    await world.up()
    async with served(app_of(world), port=int(url.rpartition(":")[2])):
        await following
    expected = [recorded.offset for recorded in await world.core.log.read(stream=f"job:{job.id}")]
    assert [event.offset for event in seen] == expected


def _slow(rounds: int):
    return toy_spec(2, rounds=rounds, training={"epochs": 20})


# -- live events -----------------------------------------------------------------------------------------


async def test_live_events_begin_now_unless_told(world, url):
    async with connect(live_url(url)) as socket:
        await _accepted(socket)
        await world.core.members.invite()
        assert json.loads(await socket.recv())["offset"] == 2
    async with connect(live_url(url, "?after=0")) as socket:
        first, second = [json.loads(await socket.recv()) for _ in range(2)]
    assert [first["type"], second["type"]] == ["CoordinatorStarted", "InviteIssued"]
    assert set(first) == {"offset", "stream", "type", "at", "data"}
    assert set(second["data"]) == {"uses", "expires", "by"}


async def _accepted(socket) -> None:
    """The server has begun to follow the log, for it has answered a ping after the handshake."""
    await (await socket.ping())


async def test_live_events_of_one_stream(world, url):
    job = await world.core.submit(_slow(1), paused=True)
    async with connect(live_url(url, f"?after=0&stream=job:{job.id}")) as socket:
        assert json.loads(await socket.recv())["type"] == "JobSubmitted"


async def test_the_backlog_of_one_stream_is_not_looked_for_in_the_whole_log(world, url, monkeypatch):
    job = await world.core.submit(_slow(1), paused=True)
    for _ in range(3):
        await world.core.members.invite()
    begun, follow = [], world.core.log.follow
    monkeypatch.setattr(world.core.log, "follow", lambda after: begun.append(after) or follow(after))
    async with connect(live_url(url, f"?after=0&stream=job:{job.id}")) as socket:
        assert json.loads(await socket.recv())["type"] == "JobSubmitted"
        await world.core.stop_job(job.id)
        while json.loads(await socket.recv())["type"] != "JobStopped":
            pass
    assert begun
    assert min(begun) >= 4


async def test_events_that_come_while_a_backlog_is_read_come_once(world):
    """Every event heard causes more, on the stream and beside it."""
    heard, spec = [], _slow(1)
    await world.core.members.invite()
    async for recorded in live.LiveRoutes(world.core)._events(0, "nodes"):
        heard.append(recorded.offset)
        if len(heard) == 30:
            break
        if len(heard) < 20:
            await world.core.journal.submit(f"job-{len(heard)}", spec, SCHEMA, by="", paused=True)
            await world.core.members.invite()
        if len(heard) == 20:
            await asyncio.gather(*(world.core.members.invite() for _ in range(20)))
    stored = [recorded.offset for recorded in await world.core.log.read(stream="nodes")]
    assert heard == stored[:30]


@pytest.mark.parametrize("query", ["?after=-1", "?after=x"])
async def test_a_bad_offset(url, query):
    with pytest.raises(InvalidStatus) as refused:
        await connect(live_url(url, query))
    assert refused.value.response.status_code == 403


async def test_a_foreign_page_gets_no_events(url):
    with pytest.raises(InvalidStatus) as refused:
        await connect(live_url(url), origin="http://evil.example")
    assert refused.value.response.status_code == 403
    assert b"may not call" in refused.value.response.body


async def test_a_client_that_does_not_read_is_disconnected_and_may_resume(world):
    app, routes, given_up = FastAPI(), live.LiveRoutes(world.core, send_seconds=0.2), asyncio.Event()

    @app.websocket("/ws")
    async def watched(websocket: WebSocket) -> None:
        websocket.state.still = lambda: True
        await routes.live(websocket, after=0)
        given_up.set()

    async with served(app) as url, asyncio.timeout(30):
        reader, writer = await asyncio.open_connection(sock=_connected(url), limit=1024)
        writer.write(_handshake(url))
        await reader.readuntil(b"\r\n\r\n")
        spec = _slow(1)
        for number in range(100):  # 10 MB, more than the sockets' buffers hold
            await world.core.journal.submit(f"job-{number}", spec, SCHEMA, by="x" * 100_000, paused=True)
        await given_up.wait()
        received = 0
        while chunk := await reader.read(65536):
            received += len(chunk)
        assert received < 10_000_000
        writer.close()
        async with connect(live_url(url), close_timeout=0.1) as resumed:
            assert json.loads(await resumed.recv())["offset"] == 1


def _connected(url: str) -> socket.socket:
    """A socket that holds no more than a megabyte which nobody reads."""
    host, _, port = url.removeprefix("http://").partition(":")
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 500_000)
    own.connect((host, int(port)))
    return own


def _handshake(url: str) -> bytes:
    lines = [
        "GET /ws?after=0 HTTP/1.1",
        f"Host: {url.removeprefix('http://')}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def test_when_the_coordinator_stops_live_clients_are_told(world, url):
    async with connect(live_url(url)) as socket:
        await _accepted(socket)
        await world.down()
        with pytest.raises(ConnectionClosed) as ended:
            await socket.recv()
    assert (ended.value.rcvd.code, ended.value.rcvd.reason) == (1001, "the coordinator stops")
    await world.up()
