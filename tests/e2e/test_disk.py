"""Disks that are full or damaged: the job waits, says why, and goes on to the same bits once the disk is well again."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from support.commands import running
from tutti.apps.client import Client
from tutti.services.views import JobView

SPEC = {"dataset": "digits", "model": "sgd-linear", "seed": 3, "training": {"lr": 0.02, "batch_size": 32}}


@pytest.fixture
def small_disk(tmp_path: Path) -> list[str]:
    """A command prefix: what follows sees a disk of 6 MB at `tmp_path/data`, which is gone afterwards."""
    data = tmp_path / "data"
    data.mkdir()
    mount = f'mount -t tmpfs -o size=6m none {data} && exec "$@"'
    prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a disk of their own")
    return prefix


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def join(stack: ExitStack, client: Client, folder: Path) -> None:
    link = client.invite(uses=2).link
    for part in range(2):
        source, name = f"digits:part={part}/2", f"n{part}"
        command = ("join", link, "--data", source, "--name", name, "--state-dir", folder / name)
        stack.enter_context(running(*command, cwd=folder))


def run(client: Client, **fields: object) -> JobView:
    return client.wait(client.submit({**SPEC, "cohort": {"min_nodes": 2}, **fields}).id)


def test_a_full_disk_holds_the_job_up_and_loses_nothing(tmp_path, small_disk, stack):
    up = ("up", "--port", "0", "--data-dir", tmp_path / "data")
    coordinator = stack.enter_context(running(*up, cwd=tmp_path, prefix=small_disk))
    client = stack.enter_context(Client(coordinator.ready["url"]))
    join(stack, client, tmp_path)
    expected = run(client, rounds=6)
    assert expected.status == "completed"

    disk = Path(f"/proc/{coordinator.process.pid}/root{tmp_path}/data")
    job = client.submit({**SPEC, "cohort": {"min_nodes": 2}, "rounds": 6})
    for event in client.follow(job.id):
        if event.type == "RoundClosed" and event.data["round"] == 2:
            fill(disk / "ballast")
            break
    while not (held := client.job(job.id)).reason.startswith("cannot"):
        assert held.status not in ("completed", "failed"), held.reason
    assert "free some space" in held.reason
    (disk / "ballast").unlink()
    done = client.wait(job.id)
    assert (done.status, done.model_digest) == ("completed", expected.model_digest)


def fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def test_a_damaged_model_pauses_the_job_until_it_is_restored(tmp_path, stack):
    data = tmp_path / "data"
    with running("up", "--port", "0", "--data-dir", data, cwd=tmp_path) as coordinator:
        port = coordinator.ready["url"].rpartition(":")[2]
        client = stack.enter_context(Client(coordinator.ready["url"]))
        join(stack, client, tmp_path)
        expected = run(client, rounds=6)
        job = client.submit({**SPEC, "cohort": {"min_nodes": 2}, "rounds": 6})
        for event in client.follow(job.id):
            if event.type == "RoundClosed" and event.data["round"] == 2:
                os.kill(coordinator.process.pid, signal.SIGKILL)
                break
    digest = newest_model(data / "log.sqlite")
    blob = data / "blobs" / digest[:2] / digest
    sound = blob.read_bytes()
    blob.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with running("up", "--port", port, "--data-dir", data, cwd=tmp_path):
        for event in client.follow(job.id):
            if event.type == "JobPaused":
                break
        paused = client.job(job.id)
        assert "damaged" in paused.reason
        assert "resume" in paused.reason
        blob.write_bytes(sound)
        client.resume(job.id)
        done = client.wait(job.id)
    assert (done.status, done.model_digest) == ("completed", expected.model_digest)


def newest_model(log: Path) -> str:
    """The model that the job goes on from, by the log that a killed coordinator left."""
    with closing(sqlite3.connect(log)) as db:
        (data,) = db.execute("SELECT data FROM events WHERE type = 'RoundClosed' ORDER BY offset DESC").fetchone()
    return json.loads(data)["model"]
