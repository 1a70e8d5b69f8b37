"""Three coordinators behind nginx on one database and one bucket; whichever owns the database is lost, in every way."""

import asyncio
import contextlib
import os
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from support.commands import DEADLINE, ENVIRONMENT, running, tutti
from support.services import S3_KEYS, alone, bucket, database, missing
from tutti.apps.client import Client
from tutti.core.errors import UserError
from tutti.services.views import JobView

CONFIGURATION = Path(__file__).parents[2] / "deploy/nginx.conf"
SPEC = {
    "dataset": "digits",
    "model": "mlp:hidden=256",
    "name": "replicas",
    "rounds": 8,
    "seed": 3,
    "training": {"lr": 0.05, "batch_size": 32},
    "cohort": {"min_nodes": 2, "grace": 60},
}
"""Its updates do not fit into a message: they are PUT, and whoever takes over has none of them."""

TOKEN, KEY = secrets.token_urlsafe(32), secrets.token_hex(32)

CUT = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()"""


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        free = [stack.enter_context(closing(socket.create_server(("127.0.0.1", 0)))) for _ in range(count)]
        return [each.getsockname()[1] for each in free]


class Replicas:
    """Three of them, each started again when it was ended, as a supervisor would."""

    def __init__(self, folder: Path, stores: list[str], ports: list[int], url: str) -> None:
        self.folder, self.stores, self.ports, self.url = folder, stores, ports, url
        self.database = stores[1]
        self.processes: dict[int, subprocess.Popen[str]] = {}
        self.owner = -1

    def client(self) -> Client:
        return Client(self.url, token=TOKEN)

    def start(self, which: int) -> None:
        data = self.folder / f"data{which}"
        if not data.exists():  # what its operator gives each of them
            data.mkdir()
            (data / "operator-token").write_text(TOKEN)
            (data / "session-key").write_text(KEY)
        up = ["up", "--standby", "--port", str(self.ports[which]), "--data-dir", str(data)]
        with (self.folder / f"log{which}").open("a") as log:
            self.processes[which] = subprocess.Popen(
                [sys.executable, "-m", "tutti.apps.cli", *up, "--public-url", self.url, *self.stores, "--json"],
                env=ENVIRONMENT | S3_KEYS,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def await_owner(self) -> None:
        """Until one of them says that it is ready."""
        lines = {process.stdout: which for which, process in self.processes.items()}
        ready, _, _ = select.select([*lines], [], [], DEADLINE)
        assert ready, "nobody took over"
        self.owner = lines[ready[0]]
        assert self.url in ready[0].readline()

    def await_standby(self, which: int) -> None:
        """Until it says that it waits."""
        last = time.monotonic() + DEADLINE
        while (
            not (self.folder / f"log{which}")
            .read_text()
            .endswith("standing by: another coordinator owns the database\n")
        ):
            assert time.monotonic() < last
            time.sleep(0.05)

    def lose(self, which: int) -> int:
        """Wait for its end; returns the exit code."""
        process = self.processes.pop(which)
        with process:
            return process.wait(DEADLINE)

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            with process:
                process.wait()


@contextmanager
def stores() -> Iterator[list[str]]:
    with asyncio.Runner() as runner, pytest.MonkeyPatch.context() as patched:
        its = contextlib.AsyncExitStack()
        try:
            url = runner.run(its.enter_async_context(database()))
            place = runner.run(its.enter_async_context(bucket(patched)))
            yield ["--database", url, "--blobs", place]
        finally:
            runner.run(its.aclose())


@contextmanager
def nginx(folder: Path, port: int, ports: list[int]) -> Iterator[None]:
    """The real one, with the file that is shipped, on other ports."""
    command = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if command is None:
        missing("nginx", "it is not installed")
    new = dict(zip(range(8000, 8004), [port, *ports], strict=True))
    text = re.sub(r"127\.0\.0\.1:(\d+)", lambda found: f"127.0.0.1:{new[int(found[1])]}", CONFIGURATION.read_text())
    folder.mkdir()
    (folder / "nginx.conf").write_text(text)
    options = ["-p", str(folder), "-e", "stderr", "-c", "nginx.conf", "-g", "daemon off;"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([command, *options], stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(DEADLINE)


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    folder = tmp_path_factory.mktemp("replicas")
    port, *ports = free_ports(4)
    url = f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        stack.enter_context(nginx(folder / "nginx", port, ports))
        its = Replicas(folder, stack.enter_context(stores()), ports, url)
        stack.callback(its.close)
        for which in range(3):
            its.start(which)
        its.await_owner()
        with its.client() as client:
            link = client.invite(uses=2).link
        assert link.startswith(url)
        for name in ("n0", "n1"):
            source = f"digits:part={name[1]}/2"
            join = ["join", link, "--data", source, "--name", name, "--state-dir", folder / name]
            stack.enter_context(running(*join, cwd=folder))
        yield its


@pytest.fixture(scope="module")
def undisturbed(replicas: Replicas) -> JobView:
    with replicas.client() as client:
        return client.wait(client.submit(SPEC).id)


def check_disturbed(replicas: Replicas, undisturbed: JobView, *losses) -> None:
    """The same model as ever, each round closed once with the updates of both nodes, whatever was lost in each."""
    with replicas.client() as client:
        job, closed, due = client.submit(SPEC), [], list(losses)
        for event in client.follow(job.id):
            if event.type == "RoundClosed":
                closed.append((event.data["round"], sorted(event.data["counted"])))
            if event.type == "UpdateAccepted" and due and event.data["round"] == 2 * (1 + len(losses) - len(due)):
                due.pop(0)()
        done = client.wait(job.id)
    assert not due
    assert (done.status, done.model_digest) == ("completed", undisturbed.model_digest)
    assert closed == [(round, ["n0", "n1"]) for round in range(1, SPEC["rounds"] + 2)]  # the last one measures


def test_kill_each_in_turn(replicas, undisturbed):
    killed: list[int] = []

    def kill() -> None:
        if len(killed) == 2:
            for which in killed:
                replicas.start(which)
                replicas.await_standby(which)
        killed.append(lost := replicas.owner)
        replicas.processes[lost].kill()
        assert replicas.lose(lost) == -signal.SIGKILL
        replicas.await_owner()

    check_disturbed(replicas, undisturbed, kill, kill, kill)
    replicas.start(killed[2])
    assert sorted(killed) == [0, 1, 2]


def test_one_that_stood_still_and_wakes_up_is_refused_and_ends(replicas, undisturbed):
    """For a moment two of them believe that the job is theirs."""

    def stand_still() -> None:
        lost = replicas.owner
        os.kill(replicas.processes[lost].pid, signal.SIGSTOP)
        before = replicas.processes.pop(lost)
        replicas.await_owner()  # once the lease has lapsed
        replicas.processes[lost] = before
        os.kill(before.pid, signal.SIGCONT)
        assert replicas.lose(lost) == 6
        assert "has taken over the event log" in (replicas.folder / f"log{lost}").read_text()
        replicas.start(lost)

    check_disturbed(replicas, undisturbed, stand_still)


def test_the_database_drops_everybody(replicas, undisturbed):
    """The owner comes back, or another one was faster: either way there is one."""
    check_disturbed(replicas, undisturbed, lambda: asyncio.run(alone(replicas.database, CUT)))
    assert len({which for which, process in replicas.processes.items() if process.poll() is None}) >= 2


def test_rewards_are_refused(replicas):
    rewards = {"pool": 10, "sponsor": "bank", "data": "digits:split=test"}
    with replicas.client() as client, pytest.raises(UserError, match="have no ledger in common"):
        client.submit({**SPEC, "rewards": rewards})


def test_bad_settings(tmp_path):
    alone_ = tutti("up", "--standby", cwd=tmp_path)
    assert (alone_.returncode, "--standby needs --database and --blobs" in alone_.stderr) == (2, True)
    path = tutti("up", "--public-url", "tutti.example.org/here", cwd=tmp_path)
    assert (path.returncode, "expected an address such as https://" in path.stderr) == (2, True)
