"""Replicas add up the updates of their own nodes: one coordinator's model, whatever becomes of whoever kept them.

They speak by a Redis that takes TLS only.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from support.certificates import certificate
from support.commands import DEADLINE, running
from support.ports import free_ports
from support.redis import USER, redis_server
from support.replicas import TOKEN, Replicas, three
from tutti.apps.client import Client

SPEC = {
    "dataset": "digits",
    "model": "mlp:hidden=1024",
    "name": "sums",
    "rounds": 4,
    "seed": 3,
    "training": {"lr": 0.05, "batch_size": 32},
    "cohort": {"min_nodes": 3, "grace": 60},
    "evaluation": {"nodes": False},
}
"""Its updates are too large to come with a message, and are sent once they are asked for."""

NODES = ("n1", "n0", "n5")
"""Whom nginx leads, by their names, to the first, second and third replica."""


AS_OPERATOR = {"Authorization": f"Bearer {TOKEN}"}


class Place:
    def __init__(self, replicas: Replicas, nodes: dict[str, int]) -> None:
        self.replicas, self.pids = replicas, nodes

    def relay(self) -> int:
        return next(which for which in range(3) if which != self.replicas.owner)

    def sums(self) -> float:
        """That relays have made."""
        return sum(self._measured(at, "tutti_relay_sums_total") for at in range(3) if at != self.replicas.owner)

    def received(self) -> float:
        """Bytes of updates that came to the owner."""
        return self._measured(self.replicas.owner, 'tutti_bytes_total{codec="identity",direction="in"}')

    def _measured(self, which: int, name: str) -> float:
        url = f"http://127.0.0.1:{self.replicas.ports[which]}/metrics"
        text = httpx.get(url, headers=AS_OPERATOR, timeout=DEADLINE).text
        return float(next(line for line in text.splitlines() if line.startswith(name)).split()[1])


def joined(stack: ExitStack, client: Client, folder: Path) -> dict[str, int]:
    """The nodes, once they are connected; and the numbers of their processes."""
    link, pids = client.invite(uses=3).link, dict[str, int]()
    for part, name in enumerate(NODES):
        join = ["join", link, "--data", f"digits:part={part}/3", "--name", name, "--state-dir", folder / name]
        pids[name] = stack.enter_context(running(*join, cwd=folder)).process.pid
    last = time.monotonic() + DEADLINE
    while {node.name for node in client.nodes() if node.connected} != {*NODES}:
        assert time.monotonic() < last
        time.sleep(0.05)
    return pids


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model of the same nodes with one coordinator, which sums every update itself."""
    folder = tmp_path_factory.mktemp("alone")
    with ExitStack() as stack:
        up = stack.enter_context(running("up", "--port", 0, "--data-dir", folder / "data", cwd=folder))
        client = stack.enter_context(Client(up.ready["url"]))
        joined(stack, client, folder)
        done = client.wait(client.submit(SPEC).id)
    assert done.status == "completed"
    return done.model_digest


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("sums")
    with ExitStack() as stack:
        (port,), (cert, key) = free_ports(1), certificate(folder)
        stack.enter_context(redis_server(folder, port, (cert, key)))
        redis = f"rediss://{USER}127.0.0.1:{port}/0?ssl_ca_certs={cert}"
        its = stack.enter_context(three(folder, redis=redis))
        with its.client() as client:
            pids = joined(stack, client, folder)
        yield Place(its, pids)


def test_relays_add_up_what_their_nodes_hand_in(place: Place, alone: str) -> None:
    before, own = place.received(), NODES[place.replicas.owner]
    with place.replicas.client() as client:
        done = client.wait(client.submit(SPEC).id)
        accepted = [event.data for event in client.events_of("UpdateAccepted", stream=f"job:{done.id}")]
    assert (done.status, done.model_digest) == ("completed", alone)
    sizes = [each["bytes"] for each in accepted if each["node"] == own]
    assert len(sizes) == SPEC["rounds"]
    assert place.received() - before < 1.01 * sum(sizes), "the owner is sent the updates of its own node only"
    assert place.sums() == 2 * SPEC["rounds"], "two relays, each with a node"


def test_what_needs_single_updates_reads_them(place: Place) -> None:
    before = place.sums()
    with place.replicas.client() as client:
        done = client.wait(client.submit({**SPEC, "reducer": "median", "rounds": 1}).id)
    assert done.status == "completed"
    assert place.sums() == before


def test_kill_a_relay_between_an_update_and_the_end_of_the_round(place: Place, alone: str) -> None:
    """The update goes with it: its node connects elsewhere and is asked again. Another node holds the round open."""
    its = place.replicas
    lost = place.relay()
    mine, slow, accepted, closed, again = NODES[lost], NODES[its.owner], [], [], []
    os.kill(place.pids[slow], signal.SIGSTOP)
    try:
        with its.client() as client:
            job = client.submit(SPEC)
            for event in client.follow(job.id):
                if event.type == "UpdateAccepted" and event.data["round"] == 1:
                    accepted.append(event.data["node"])
                    if event.data["node"] == mine and len(again) == 0 and its.processes.get(lost):
                        its.processes[lost].kill()
                        its.lose(lost)
                if event.type == "UpdateLost":
                    again.append((event.data["node"], event.data["reason"]))
                    os.kill(place.pids[slow], signal.SIGCONT)
                if event.type == "RoundClosed":
                    closed.append((event.data["round"], sorted(event.data["counted"])))
            done = client.wait(job.id)
    finally:
        os.kill(place.pids[slow], signal.SIGCONT)
    assert (done.status, done.model_digest) == ("completed", alone)
    assert again == [(mine, "the replica that kept it is gone")]
    assert sorted(accepted) == sorted([*NODES, mine])
    assert closed == [(round, sorted(NODES)) for round in range(1, SPEC["rounds"] + 1)]
    its.start(lost)
    its.await_standby(lost)
