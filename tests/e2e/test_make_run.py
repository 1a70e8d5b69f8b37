"""`make run` with RabbitMQ and S3, and what docs/sessions.md says to do then, as people do it: by HTTP."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import httpx
import numpy as np
import pytest

from support.commands import DEADLINE, ENVIRONMENT
from support.ports import free_port
from support.services import S3_KEYS, bucket, coordinator_uid
from tutti.adapters.blobs.s3 import S3Blobs
from tutti.core.errors import NotFound

ROOT = Path(__file__).parents[2]
PASSWORD = "correct horse battery"


def table(rows: int = 90) -> bytes:
    rng, lines = np.random.default_rng(0), ["age,ward,outcome"]
    for age, ward in zip(rng.normal(50, 10, rows), rng.choice(["north", "south"], rows), strict=True):
        lines.append(f"{age:.3f},{ward},{'ill' if age > (45 if ward == 'north' else 55) else 'well'}")
    return "\n".join(lines).encode()


@contextlib.contextmanager
def made_to_run(folder: Path, options: str) -> Iterator[str]:
    """Its address, once it says how to train."""
    port = free_port()
    environment = {**ENVIRONMENT, **S3_KEYS, "PEERS": "2", "PORT": str(port), "TUTTI_DATA_DIR": str(folder)}
    process = subprocess.Popen(
        ["make", "-s", "-o", ".venv/.installed", f"BIN={Path(sys.executable).parent}", "run", f"ARGS={options}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert any(line.startswith("train ") for line in process.stdout), "make run ended"
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(DEADLINE)


class People:
    """Somebody who calls the API."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def start(self, **fields: object) -> httpx.Response:
        form = {"peers": "2", "target": "outcome", **{name: str(value) for name, value in fields.items()}}
        return self.http.post("/sessions/start", data=form, files={"file": ("table.csv", table(), "text/csv")})

    def started(self, **fields: object) -> str:
        """A session, once enough peers wait."""
        return str(until(lambda: self.start(**fields), lambda answer: answer.status_code == 201).json()["session_id"])

    def ended(self, session: str) -> Mapping[str, object]:
        ask = {"session_id": session}
        answer = until(
            lambda: self.http.get("/sessions/training-status", params=ask), lambda it: it.json()["status"] != "RUNNING"
        )
        return dict(answer.json())


def until(ask, is_so):
    """Ask again and again, as scripts of users do."""
    last = time.monotonic() + DEADLINE
    while not is_so(answer := ask()):
        assert time.monotonic() < last, answer.text
        time.sleep(0.1)
    return answer


@pytest.fixture
async def servers(monkeypatch) -> AsyncIterator[tuple[str, str]]:
    """A broker and a bucket."""
    async with bucket(monkeypatch) as place, coordinator_uid() as address:
        yield f"{address.url}?coordinator={address.uid}", place


async def texts(place: str) -> list[bytes]:
    """All that is at rest in a bucket."""
    store, found = await S3Blobs.open(place), list[bytes]()
    for digest in await store.digests():
        with contextlib.suppress(NotFound):  # models that have grown old go meanwhile
            found.append(bytes(await store.read(digest)))
    return found


def test_sessions_over_a_broker_as_documented(tmp_path, servers):
    broker, place = servers
    options = f"--broker {broker} --blobs {place}"
    with made_to_run(tmp_path, options) as url, httpx.Client(base_url=url, timeout=DEADLINE) as http:
        sign_up = http.post("/auth/signup", json={"username": "ada", "password": PASSWORD, "organisation": "Ward"})
        assert sign_up.status_code == 201
        assert http.get("/sessions/training-status").status_code == 401
        grant = http.post("/auth/signin", json={"username": "ada", "password": PASSWORD}).json()
        http.headers["authorization"] = f"Bearer {grant['access_token']}"
        ada = People(http)
        unknown, few = ada.start(user="nobody"), ada.start(peers=9)
        assert (unknown.status_code, unknown.json()["detail"]) == (404, "there is no account 'nobody'")
        assert (few.status_code, few.json()["detail"].partition(":")[0]) == (400, "not enough peers")

        first = ada.started(rounds=3, layers="[16]", per_peer='[{"epochs": 2, "batch_size": 8}]')
        assert ada.ended(first)["status"] == "COMPLETED"
        results = http.get(f"/sessions/{first}/results").json()
        assert {name: peer["metrics"]["batch_size"] for name, peer in results["peers"].items()} == {
            "peer-1": 8,
            "peer-2": 32,
        }
        assert results["aggregated"]["accuracy"] > 0.5

        second = ada.started(rounds=10_000)
        assert ada.start().status_code == 400  # the peers are locked
        until(lambda: http.get(f"/sessions/{second}"), lambda it: it.json()["rounds_done"] > 0)
        at_rest = asyncio.run(texts(place))
        assert len(at_rest) > 2
        assert not [text for text in at_rest if b"north" in text]
        assert http.post(f"/sessions/{second}/stop").status_code == 200
        assert ada.ended(second)["status"] == "STOPPED"
        assert ada.ended(ada.started(rounds=1))["status"] == "COMPLETED"  # they were released
