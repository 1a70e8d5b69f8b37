"""Three coordinators behind nginx on one database and one bucket; whichever owns the database is lost, in every way."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from support.commands import running, tutti
from support.line import Line, line_to
from support.replicas import Replicas, three
from support.services import alone
from tutti.adapters.identities.ed25519 import verify
from tutti.domain.ledger import Account, verify_chain
from tutti.services.views import JobView

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

CUT = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()"""


class ToDatabase:
    """The line by which all of them reach the database, once they are told of it."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.line: Line

    def by(self, database: str) -> str:
        parts = urlsplit(database)
        self.line = self._stack.enter_context(line_to(f"{parts.hostname}:{parts.port or 5432}"))
        return parts._replace(netloc=f"{parts.username}@{self.line.url.removeprefix('http://')}").geturl()


@pytest.fixture(scope="module")
def to_database() -> Iterator[ToDatabase]:
    with ExitStack() as stack:
        yield ToDatabase(stack)


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory, to_database: ToDatabase) -> Iterator[Replicas]:
    folder = tmp_path_factory.mktemp("replicas")
    with three(folder, by=to_database.by) as its, ExitStack() as stack:
        with its.client() as client:
            link = client.invite(uses=2).link
        assert link.startswith(its.url)
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
        killed.append(replicas.kill())
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


def test_the_database_is_gone_for_longer_than_the_lease(replicas, undisturbed, to_database):
    """The owner ends, for another one may reach it; the others wait, and once it is back one of them takes over."""

    def gone() -> None:
        to_database.line.cut()
        lost = replicas.owner
        assert replicas.lose(lost) == 6
        assert len(replicas.processes) == 2
        to_database.line.mend()
        replicas.await_owner()
        replicas.start(lost)

    check_disturbed(replicas, undisturbed, gone)


def test_whoever_takes_over_goes_on_with_the_ledger(replicas):
    with replicas.client() as client:
        client.mint("bank", 100, key="first")
        before = client.ledger()
        replicas.kill()
        replicas.await_owner()
        assert client.ledger() == before
        assert client.mint("bank", 100, key="first").free == 100  # the same order again
        assert client.transfer("bank", "lab", 30, key="second").free == 70
        entries = list(client.entries())
        assert verify_chain(entries, verify, before.public_key, head=before.head).account("lab") == Account(free=30)


def test_bad_settings(tmp_path):
    alone_ = tutti("up", "--standby", cwd=tmp_path)
    assert (alone_.returncode, "--standby needs --database and --blobs" in alone_.stderr) == (2, True)
    path = tutti("up", "--public-url", "tutti.example.org/here", cwd=tmp_path)
    assert (path.returncode, "expected an address such as https://" in path.stderr) == (2, True)
