"""A ring of real processes: the documented commands, the hub's very model, and deaths that cost no update."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from signal import SIGKILL, SIGTERM

import httpx
import pytest

import tutti
from support.commands import background, running
from support.commands import tutti as command
from support.ports import free_port
from support.ring_processes import Ring, owned_rows
from tutti.adapters.datasets import parts
from tutti.adapters.fabrics.ring import node_of
from tutti.apps.nodes import load_data
from tutti.core.registry import Choice
from tutti.ports.training import Data, Examples
from tutti.services.views.ring import RingView, ring_lights
from tutti.sim.federation import Federation

MEMBERS = 3
ROWS = 1438  # of the digits, to train on
JOB = ("--model", "linear", "--rounds", "4", "--seed", "3", "--batch-size", "32", "--lr", "0.1")


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[Ring]:
    with ExitStack() as stack:
        port = free_port()
        supernode = stack.enter_context(running("ring", "supernode", "--port", port, cwd=tmp_path))
        ring = Ring(tmp_path, stack, port, supernode)
        for _ in range(MEMBERS):
            ring.start(free_port())
        ring.until_all_are_there()
        yield ring


def eventually(url: str) -> httpx.Response:
    """The page, once it is served."""
    with httpx.Client(transport=httpx.HTTPTransport(retries=8)) as client:
        return client.get(url)


def federation_of(addresses: list[str]) -> Federation:
    """The same rows at the same nodes, for the same round machine in one process."""
    whole = load_data(Choice("digits", {"held_out": 0}))
    none = Examples(whole.train.x[:0], whole.train.y[:0])
    return Federation.of(
        {
            node_of(address): Data("digits", whole.schema, Examples(whole.train.x[rows], whole.train.y[rows]), none)
            for address, rows in owned_rows(whole, addresses).items()
        }
    )


def spec_of(nodes: int) -> dict:
    return {
        "name": "digits",
        "dataset": "digits",
        "model": "linear",
        "rounds": 4,
        "seed": 3,
        "training": {"batch_size": 32, "lr": 0.1},
        "evaluation": {"nodes": False},
        "cohort": {"min_nodes": nodes},
    }


def settled(views: list[RingView]) -> bool:
    """One chain, all lights well, and every part of the data set owned by one member and copied to the others."""
    well = all(light.ok for lights in (ring_lights(views), *(view.lights for view in views)) for light in lights)
    parts_there = sum(view.parts_owned for view in views) == min(parts.PARTS, ROWS)
    return well and parts_there and len({view.digest for view in views}) == 1


def test_a_ring_trains_to_the_model_of_a_hub_and_a_dead_leader_does_not_change_it(ring):
    holders = len(federation_of(list(ring.members)).nodes)
    train = ("ring", "train", "127.0.0.1", ring.port, "--data", "digits", *JOB, "--nodes", holders)
    everybody = ("--set", f"cohort.quorum={holders}", "--set", "cohort.grace=60")
    done = command(*train, *everybody, "--json", cwd=ring.folder)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    expected = tutti.simulate(spec_of(holders), federation_of(list(ring.members)), engine="sequential")
    assert said["model"] == expected.model
    assert said["error_rate"] < 0.2

    # the page that shows it
    listen = free_port()
    with background("ring", "view", "127.0.0.1", ring.port, "--listen", listen, cwd=ring.folder):
        page = eventually(f"http://127.0.0.1:{listen}/")
        assert "<title>Tutti ring</title>" in page.text
        shown = httpx.get(f"http://127.0.0.1:{listen}/ring.json").json()
        assert {view["address"] for view in shown["members"]} == set(ring.members)
        assert (shown["absent"], shown["note"]) == ([], "")

    # a job of which the leader dies, and the supernode and the client too
    detached = command(*train, "--rounds", "40", "--detach", "--json", "--nodes", "1", cwd=ring.folder)
    assert detached.returncode == 0, detached.stderr
    job = json.loads(detached.stdout)["job"]
    views = asyncio.run(ring.until(lambda views: any(j.id == job and j.rounds_done > 2 for v in views for j in v.jobs)))
    leader = next(view.leader for view in views if view.leader)
    ring.supernode.end(SIGKILL)
    ring.members.pop(leader).end(SIGKILL)
    survivor = next(iter(ring.members))
    host, port = survivor.split(":")
    fetched = command("ring", "result", job, host, port, "--json", cwd=ring.folder)
    assert fetched.returncode == 0, fetched.stderr
    assert json.loads(fetched.stdout)["rounds"] == 40
    views = asyncio.run(ring.until(settled, survivor))
    assert {view.address for view in views} == set(ring.members)
    assert {next(j.model_digest for j in view.jobs if j.id == job) for view in views} == {
        json.loads(fetched.stdout)["model"]
    }
    shown = command("ring", "show", host, port, cwd=ring.folder)
    assert shown.returncode == 0, shown.stderr
    bad = [line for line in shown.stdout.splitlines() if "BAD" in line]  # by name, where pytest cuts the whole
    assert not bad
    for member in ring.members.values():
        assert member.end(SIGTERM) == 0
