"""A client of a ring whose members do not all see the same: whom it asks, and whom it believes."""

import asyncio
from contextlib import AsyncExitStack

import msgspec
import pytest

from tutti.adapters.thrift.client import Unreachable
from tutti.adapters.thrift.idl import PROTOCOL, peer_struct, supernode, training_node
from tutti.adapters.thrift.node import peer_at
from tutti.adapters.thrift.server import Server
from tutti.apps import ringclient
from tutti.apps.ringclient import RingClient
from tutti.core.errors import NotFound, UserError
from tutti.domain import events as e
from tutti.domain import jobs
from tutti.domain.spec import DataSchema, load_spec
from tutti.services.views import job_view, round_views

TIMEOUT = 30
SPEC = load_spec({"name": "toy", "dataset": "toy", "model": "linear", "rounds": 2, "evaluation": {"nodes": False}})
SUBMITTED = jobs.begin(jobs.submit("toy-1", SPEC, DataSchema("classification", (2,), 2), now=1.0))
READY = jobs.evolve(SUBMITTED, e.JobInitialised(at=2.0, model="m0", state="s0", parameters=6))
OPENED = jobs.evolve(
    READY,
    e.RoundOpened(
        at=3.0, round=1, attempt=0, task="train", model="m0", cohort=("a",), wanted=1, quorum=1, deadline=9.0
    ),
)
STOPPED = jobs.evolve(READY, e.JobStopped(at=4.0, reason="asked"))


class Member:
    """What one member answers to each call: a function that is set, which may raise. `asked` counts the calls."""

    def __init__(self):
        self.asked = 0
        self.says = None

    async def submit(self, protocol, key, job):
        return self._answer()

    async def progress(self, protocol, job):
        its = self._answer()
        return training_node.Progress(msgspec.json.encode(job_view(its)), msgspec.json.encode(round_views(its)))

    def _answer(self):
        self.asked += 1
        return self.says()


class Known:
    """A supernode that knows these addresses."""

    def __init__(self, addresses):
        self._addresses = addresses

    async def members(self, protocol):
        assert protocol == PROTOCOL
        return [peer_struct(peer_at(address)) for address in self._addresses]


@pytest.fixture
async def ring_of():
    """Begins a ring whose members give these answers, in the order in which a client asks them."""
    async with AsyncExitStack() as stack:

        async def begin(*answers, dead=()):
            members = []
            for _ in answers:
                member = Member()
                server = Server(training_node.TrainingNode, member)
                stack.push_async_callback(server.close)
                members.append((peer_at(f"127.0.0.1:{await server.start('127.0.0.1', 0)}"), member))
            members.sort(key=lambda each: each[0])
            for (_, member), says in zip(members, answers, strict=True):
                member.says = says
            entry = Server(supernode.Supernode, Known([peer.address for peer, _ in members] + list(dead)))
            stack.push_async_callback(entry.close)
            client = RingClient(f"127.0.0.1:{await entry.start('127.0.0.1', 0)}")
            stack.push_async_callback(client.close)
            await stack.enter_async_context(asyncio.timeout(TIMEOUT))
            return client, *(member for _, member in members)

        yield begin


def sees(job):
    return lambda: job


def sees_no_leader():
    raise training_node.NotNow("nobody leads the ring at the moment")


def fails():
    raise UserError("cannot be read here")


async def test_a_member_that_sees_no_leader_does_not_keep_a_job_from_the_others(ring_of):
    client, first, second = await ring_of(sees_no_leader, lambda: "toy-1")
    assert [await client.submit(SPEC) for _ in range(3)] == ["toy-1"] * 3
    assert (first.asked, second.asked) == (1, 3)


async def test_a_job_waits_for_a_leader_though_some_members_do_not_answer(ring_of):
    words = iter([sees_no_leader, sees_no_leader, lambda: "toy-1"])
    client, first, second = await ring_of(lambda: next(words)(), fails)
    assert await client.submit(SPEC) == "toy-1"
    assert (first.asked, second.asked) == (3, 2)


async def test_a_job_that_nobody_takes_is_refused_for_the_reason_that_they_gave(ring_of, monkeypatch):
    monkeypatch.setattr(ringclient, "PATIENCE", 0.5)

    def full():
        raise training_node.NotNow("cannot write the ring's chain: disk is full")

    client, _ = await ring_of(full)
    with pytest.raises(Unreachable, match=r"took no job within 0\.5 s: .*disk is full"):
        await client.submit(SPEC)


async def test_who_failed_is_asked_after_the_others(ring_of):
    client, first, second, third = await ring_of(fails, sees(SUBMITTED), sees(SUBMITTED))
    for _ in range(5):
        assert await client.progress("toy-1") == (job_view(SUBMITTED), round_views(SUBMITTED))
    assert (first.asked, second.asked, third.asked) == (1, 5, 0)


async def test_a_member_that_is_cut_off_is_not_followed_for_ever(ring_of, monkeypatch):
    """Nor is what a member that lags behind says taken for news."""
    monkeypatch.setattr(ringclient, "LOOK_EVERY", 0.01)
    client, *_ = await ring_of(sees(OPENED), sees(SUBMITTED), sees(STOPPED))
    seen = [view async for view, _ in client.follow("toy-1")]
    assert seen == [job_view(OPENED), job_view(STOPPED)]


async def test_a_ring_of_which_nobody_answers_cannot_be_forced(ring_of):
    client, *_ = await ring_of(dead=["127.0.0.1:1"])
    with pytest.raises(NotFound, match=r"no member of the ring at .* answers"):
        await client.reform()
