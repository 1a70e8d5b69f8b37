"""Sessions over the API: an uploaded table, peers that wait, their sealed parts, and what comes of them."""

import asyncio
import csv
import io
import os
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import numpy as np
import pytest

from support.served import BEARER, OPEN_TO_THE_NETWORK, app_of, caller
from support.worlds import DEADLINE, World
from tutti.adapters.accounts.argon2 import Argon2Passwords
from tutti.adapters.accounts.memory import MemoryAccounts
from tutti.adapters.fabrics.local import LocalLink
from tutti.adapters.identities.x25519 import SealingKey, seal
from tutti.adapters.machine import Machine
from tutti.core.errors import CorruptBlob, UserError
from tutti.domain.events import JobStopped
from tutti.domain.policy import Policy
from tutti.domain.sessions import IDLE, PREFIX, SessionEnded
from tutti.ports import Data, Examples, Link
from tutti.ports.training import models
from tutti.services import peer
from tutti.services.accounts import Accounts
from tutti.services.node import NodeRuntime

PASSWORD = "correct horse battery"


def table(rows: int = 120, *, regression: bool = False) -> bytes:
    rng, file = np.random.default_rng(0), io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["age", "pulse", "ward", "outcome"])
    for _ in range(rows):
        age, pulse, ward = rng.normal(50, 10), rng.normal(70, 5), rng.choice(["north", "south"])
        score = (age - 50) / 10 + (1.0 if ward == "north" else -1.0)
        outcome = f"{score:.3f}" if regression else ("ill" if score > 0 else "well")
        writer.writerow([f"{age:.3f}", f"{pulse:.3f}", ward, outcome])
    return file.getvalue().encode()


class Peers:
    """Peers of a world, with the keys that open their parts."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.keys: dict[str, SealingKey] = {}
        self.liars: set[str] = set()  # who hold other rows than they were given
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._secrets: dict[str, str] = {}

    async def start(self, *names: str) -> None:
        members = self.world.core.members
        for name in names:
            if name not in self._secrets:
                self._secrets[name] = await members.admit(await members.invite(), name)
                self.keys.setdefault(name, SealingKey(os.urandom(32)))
            link = self.world.links[name] = LocalLink(self.world.fabric)
            self._tasks[name] = asyncio.create_task(peer.serve(link, self.keys[name], self._runtime(name)))
        async with asyncio.timeout(DEADLINE):
            changed = self.world.core._changed
            async with changed:
                await changed.wait_for(lambda: {n for n, _ in self.world.sessions._waiting()} >= set(names))

    def _runtime(self, name: str):
        def runtime(link: Link, data: Data) -> NodeRuntime:
            if name in self.liars and data.name != IDLE:
                data = replace(data, train=Examples(data.train.x + 1, data.train.y))
            return NodeRuntime(
                name=name,
                token=self._secrets[name],
                link=link,
                data=data,
                policy=Policy(),
                machine=Machine(),
                workdir=self.world.folder / "nodes" / name,
                trainer_for=lambda model, schema: models.build(model, data=schema),
            )

        return runtime

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)


@pytest.fixture
async def world(tmp_path) -> AsyncIterator[World]:
    world = World(tmp_path)
    await world.up()
    yield world
    await world.close()


@pytest.fixture
async def peers(world) -> AsyncIterator[Peers]:
    peers = Peers(world)
    yield peers
    await peers.close()


async def start(client: httpx.AsyncClient, body: bytes = b"", **fields: object) -> httpx.Response:
    form = {"peers": "2", "rounds": "2", "layers": "[16, 8]", **{name: str(value) for name, value in fields.items()}}
    return await client.post("/sessions/start", data=form, files={"file": ("t.csv", body or table(), "text/csv")})


async def until_over(world: World, client: httpx.AsyncClient, session: str) -> dict:
    over = asyncio.Event()
    world.core.journal.projections.append(lambda r: over.set() if isinstance(r.event, SessionEnded) else None)
    if world.sessions.session(session).ended is None:
        async with asyncio.timeout(2 * DEADLINE):
            await over.wait()
    return (await client.get(f"/sessions/{session}")).json()


async def test_as_documented_from_sign_up_to_results(world, peers):
    accounts = Accounts(MemoryAccounts(), Argon2Passwords(memory=64, passes=1), world.core.clock)
    app = app_of(world, OPEN_TO_THE_NETWORK, accounts)
    async with caller(app, BEARER) as operator:
        wish = {"username": "ada", "password": PASSWORD, "organisation": "Ward"}
        assert (await operator.post("/auth/signup", json=wish)).status_code == 201
    async with caller(app) as stranger:
        assert (await start(stranger)).status_code == 401
        grant = (await stranger.post("/auth/signin", json={"username": "ada", "password": PASSWORD})).json()
    async with caller(app, {"authorization": f"Bearer {grant['access_token']}"}) as ada:
        assert (await ada.get("/sessions/training-status")).status_code == 404
        unknown = await start(ada, user="nobody")
        assert (unknown.status_code, unknown.json()["detail"]) == (404, "there is no account 'nobody'")
        few = await start(ada)
        assert few.status_code == 400
        assert few.json()["detail"] == "not enough peers: 2 are asked for, 0 wait"
        await peers.start("p1", "p2", "p3")
        own = '[{"epochs": 3, "batch_size": 16}]'
        begun = await start(ada, target="outcome", per_peer=own)
        assert begun.status_code == 201, begun.text
        session = begun.json()["session_id"]
        assert (begun.json()["status"], begun.json()["by"]) == ("RUNNING", "ada")
        assert begun.json()["peers"] == {"p1": 60, "p2": 60}
        assert {c["name"]: c["role"] for c in begun.json()["report"]} == {
            "outcome": "target",
            "age": "number",
            "pulse": "number",
            "ward": "category",
        }
        assert (await start(ada)).status_code == 400  # two peers are locked
        done = await until_over(world, ada, session)
        assert (done["status"], done["rounds_done"]) == ("COMPLETED", 2), done
        assert (await ada.get("/sessions/training-status")).json()["status"] == "COMPLETED"
        results = (await ada.get(f"/sessions/{session}/results")).json()
        assert sorted(results["peers"]) == ["p1", "p2"]
        assert results["peers"]["p1"]["training"] == {"epochs": 3, "batch_size": 16}
        assert results["peers"]["p1"]["metrics"]["batch_size"] == 16
        assert results["peers"]["p2"]["metrics"]["batch_size"] == 32
        assert 0 <= results["peers"]["p1"]["metrics"]["eval_accuracy"] <= 1
        assert results["aggregated"]["accuracy"] > 0
        assert len(results["model"]) == 64
        await peers.start("p1", "p2", "p3")  # they wait again
        assert (await start(ada, peers=3)).status_code == 201


async def test_of_two_sessions_started_at_once_one_gets_the_peers(world, peers):
    await peers.start("p1", "p2")
    async with caller(app_of(world)) as client:
        answers = await asyncio.gather(start(client, rounds=1), start(client, rounds=1))
        assert sorted(answer.status_code for answer in answers) == [201, 400]
        (begun,) = (answer for answer in answers if answer.status_code == 201)
        assert (await until_over(world, client, begun.json()["session_id"]))["status"] == "COMPLETED"


async def test_a_regression(world, peers):
    await peers.start("p1", "p2")
    async with caller(app_of(world)) as client:
        session = (await start(client, table(regression=True), rounds=3)).json()["session_id"]
        assert (await until_over(world, client, session))["status"] == "COMPLETED"
        results = (await client.get(f"/sessions/{session}/results")).json()
        assert results["aggregated"]["loss"] < 10


async def test_a_part_can_be_read_by_its_peer_only(world, peers):
    await peers.start("p1", "p2")
    async with caller(app_of(world)) as client:
        session = (await start(client, rounds=1)).json()["session_id"]
        given = world.sessions.session(session).started.peers
        boxes = {node: bytes(await world.core.blobs.read(part.sealed)) for node, part in given.items()}
        assert world.sessions.may_read("p1", given["p1"].sealed)
        assert not world.sessions.may_read("p1", given["p2"].sealed)
        assert all(b"ward=north" not in box for box in boxes.values())
        assert b"ward=north" in peers.keys["p1"].open(boxes["p1"])
        with pytest.raises(CorruptBlob):
            peers.keys["p1"].open(boxes["p2"])
        await until_over(world, client, session)
        assert not world.sessions.may_read("p1", given["p1"].sealed)
        assert world.sessions.retained() == set()


async def test_stop(world, peers):
    await peers.start("p1", "p2")
    async with caller(app_of(world)) as client:
        session = (await start(client, rounds=5000)).json()["session_id"]
        stopped = await client.post(f"/sessions/{session}/stop")
        assert stopped.status_code == 200
        assert (await until_over(world, client, session))["status"] == "STOPPED"
        assert (await client.post(f"/sessions/{session}/stop")).json()["status"] == "STOPPED"
        await peers.start("p1", "p2")
        assert (await client.post("/sessions/nothing/stop")).status_code == 404


async def test_a_session_that_is_stopped_while_its_job_is_submitted_leaves_no_job_behind(world, peers):
    stopping, over = [], asyncio.Event()
    await peers.start("p1", "p2")
    async with caller(app_of(world)) as client:
        session = (await start(client, rounds=5000)).json()["session_id"]
        stop = world.sessions.stop
        world.core.admit_by(lambda by, kind: stopping.append(asyncio.ensure_future(stop(session, by))))
        world.core.journal.projections.append(lambda r: over.set() if isinstance(r.event, JobStopped) else None)
        async with asyncio.timeout(DEADLINE):
            await over.wait()
        await stopping[0]
        assert (await until_over(world, client, session))["status"] == "STOPPED"
        assert [job.status for job in world.core.jobs.values()] == ["stopped"]


async def test_a_session_goes_on_when_the_coordinator_comes_back(world, peers):
    await peers.start("p1", "p2")
    async with caller(app_of(world)) as client:
        session = (await start(client, rounds=3)).json()["session_id"]
    await world.down()
    await world.up()
    world.sessions.resume()
    async with caller(app_of(world)) as client:
        done = await until_over(world, client, session)
        assert (done["status"], done["rounds_done"]) == ("COMPLETED", 3)


async def test_a_node_that_claims_a_part_it_was_not_given_takes_no_part(world, peers):
    await peers.start("p1", "p2")
    async with caller(app_of(world)) as client:
        session = (await start(client, rounds=2)).json()["session_id"]
        nothing = Examples(np.zeros((4, 4), np.float32), np.zeros(4, np.int64))
        schema = world.sessions.session(session).started.spec
        holding = peer.idle().data
        await world.join("liar", 0, data=replace(holding, name=f"{PREFIX}{session}", train=nothing))
        done = await until_over(world, client, session)
        assert (done["status"], sorted(done["peers"]), schema.rounds) == ("COMPLETED", ["p1", "p2"], 2)
        results = (await client.get(f"/sessions/{session}/results")).json()
        assert sorted(results["peers"]) == ["p1", "p2"]


async def test_a_peer_that_holds_other_rows_than_it_was_given_ends_the_session(world, peers):
    peers.liars = {"p2"}
    await peers.start("p1", "p2")
    async with caller(app_of(world)) as client:
        session = (await start(client)).json()["session_id"]
        done = await until_over(world, client, session)
        assert (done["status"], done["job"]) == ("FAILED", "")
        assert done["reason"] == "peer p2 holds other rows than those that it was given"
        await peers.start("p1", "p2")  # both are free again


async def test_a_peer_that_cannot_open_its_part_ends_the_session_after_a_while(world, peers, monkeypatch):
    class LostKey(SealingKey):
        def open(self, box: bytes) -> bytes:
            raise CorruptBlob("sealed for another key")

    monkeypatch.setattr("tutti.services.sessions.WAIT_SECONDS", 0.5)
    peers.keys["p2"] = LostKey(os.urandom(32))
    await peers.start("p1", "p2")
    async with caller(app_of(world)) as client:
        session = (await start(client)).json()["session_id"]
        done = await until_over(world, client, session)
        assert done["status"] == "FAILED"
        assert done["reason"] == "peers that did not take their parts within 0.5 s: p2"
        assert world.sessions.retained() == set()


@pytest.mark.parametrize(
    ("fields", "body", "status", "says"),
    [
        ({"peers": 0}, b"", 422, "peers"),
        ({"layers": "deep"}, b"", 422, "form"),
        ({"lr": -1}, b"", 422, "lr"),
        ({"colour": "red"}, b"", 422, "colour"),
        ({"target": "nothing"}, b"", 422, "there is no column 'nothing'"),
        ({}, b"a,b\n1,2\n3\n", 422, "row 3: expected 2 columns"),
        ({}, b"a,b\n1,x\n2,y\n3,x\n", 422, "at least two rows for each of 2 peers"),
    ],
)
async def test_wishes_that_cannot_be_met(world, fields, body, status, says):
    async with caller(app_of(world)) as client:
        answer = await start(client, body, **fields)
        assert (answer.status_code, says in answer.json()["detail"]) == (status, True), answer.text
        without = await client.post("/sessions/start", data={"peers": "2"})
        assert (without.status_code, "`file`" in without.json()["detail"]) == (422, True)


def test_sealed_boxes():
    key, other = SealingKey(os.urandom(32)), SealingKey(os.urandom(32))
    box = seal(key.public, b"a part")
    assert key.open(box) == b"a part"
    assert box != seal(key.public, b"a part")
    for spoiled in (box[:-1], box[:40] + bytes([box[40] ^ 1]) + box[41:], b"", box[:31]):
        with pytest.raises(CorruptBlob):
            key.open(spoiled)
    with pytest.raises(CorruptBlob):
        other.open(box)
    with pytest.raises(UserError, match="64 hex digits"):
        seal("xyz", b"")


def test_a_key_is_kept_for_its_owner_only(tmp_path):
    file = tmp_path / "state" / "key"
    assert SealingKey.at(file).public == SealingKey.at(file).public
    assert file.stat().st_mode & 0o077 == 0
