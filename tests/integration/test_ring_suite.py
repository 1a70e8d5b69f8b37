"""The ring's fabric against the suite: a leader and its nodes on real sockets, the leader's chain a real one."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.adapters.blobs.held import HeldBlobs
from tutti.adapters.blobs.ring import RingBlobs
from tutti.adapters.chains.sqlite import SqliteChain
from tutti.adapters.fabrics.ring import PROCESS, RingFabric, RingLink
from tutti.adapters.thrift.idl import training_node
from tutti.adapters.thrift.node import ThriftPeers, peer_at
from tutti.adapters.thrift.server import Server
from tutti.adapters.thrift.training import ThriftVoices, TrainingNode
from tutti.core.errors import Conflict
from tutti.ports import Arrived, Left, LinkLost, LinkRefused, Said
from tutti.ring.record import Seat
from tutti.services.chain import ChainMember
from tutti.testing.fabrics import FabricSuite, Setup, news, progress, registration, soon
from tutti.wire.messages import Registered, encode

LEADER = "leader"


class AddressBook(ThriftPeers):
    """Members are called by name here, and this says where they listen: node `n1` has the address n1."""

    def __init__(self, ports: dict[str, int]) -> None:
        super().__init__(within=30.0)
        self._ports = ports

    async def _call(self, peer, name, *arguments):
        return await super()._call(peer_at(f"127.0.0.1:{self._ports[peer.address]}"), name, *arguments)


class Member:
    """What answers at one address: the leader's fabric, or a node's link (adapters.thrift.training.Host, as far as
    sessions go)."""

    def __init__(self, root: Path, fabric: RingFabric | None = None) -> None:
        self.blobs = HeldBlobs(DirectoryBlobs(root))
        self.fabric, self.link = fabric, None
        self.server = Server(training_node.TrainingNode, TrainingNode(self, self.blobs))

    async def attach(self, address, session, frame):
        await self.fabric.attach(address, session, frame)

    async def say(self, session, frame):
        await self.fabric.say(session, frame)

    def leave(self, session):
        self.fabric.leave(session)

    def hear(self, leader, session, frame):
        self.link.hear(leader, session, frame)

    def over(self, leader, session, reason, *, replaced):
        self.link.over(leader, session, reason, replaced=replaced)


class Ring:
    """A leader whose committee is itself, and links to it."""

    def __init__(self, root: Path, stack: AsyncExitStack) -> None:
        self.root, self.stack = root, stack
        self.ports: dict[str, int] = {}
        self.peers = AddressBook(self.ports)
        self.made = defaultdict(int)
        self.admitted: list[str] = []
        self.fabric = RingFabric(self.peers, LEADER, self.admit)
        self.leader = Member(root / LEADER, self.fabric)

    async def admit(self, node, key):
        self.admitted.append(node)

    async def start(self) -> None:
        self.ports[LEADER] = await self.leader.server.start("127.0.0.1", 0)
        store = SqliteChain(self.root / "chain.sqlite")
        self.stack.callback(store.close)
        self.chain = ChainMember(
            Seat(LEADER),
            store,
            ThriftVoices(peer_at(LEADER), self.peers),
            verify=lambda record, asked_for: asyncio.sleep(0, ""),
            roster=lambda: (Seat(LEADER),),
            clock=time.monotonic,
        )
        running = asyncio.create_task(self.chain.run(founds=True))
        await self.chain.until(lambda chain: chain.leading)
        self.stack.push_async_callback(ended, running)
        self.stack.push_async_callback(self.leader.server.close)
        self.stack.push_async_callback(self.peers.close)
        self.stack.callback(self.fabric.close)

    def link(self, node: str, token: str = "") -> RingLink:
        """A further process of that name has another address: a hyphen at the end is no part of a node's name."""
        address = node + "-" * self.made[node]
        self.made[node] += 1
        member = Member(self.root / address)
        blobs = RingBlobs(address, member.blobs, self.peers, lambda: [LEADER])
        member.link = Started(member, self.ports, address, self.chain, self.peers, blobs, time.monotonic)
        self.stack.push_async_callback(member.server.close)
        self.stack.push_async_callback(member.link.close)
        return member.link


class Started(RingLink):
    """A link whose member listens before it connects."""

    def __init__(self, member: Member, ports: dict[str, int], *arguments: object) -> None:
        super().__init__(*arguments)
        self._member, self._ports = member, ports

    async def connect(self, registration):
        if self._me not in self._ports:
            self._ports[self._me] = await self._member.server.start("127.0.0.1", 0)
        return await super().connect(registration)


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


@pytest.fixture
async def ring(tmp_path: Path) -> AsyncIterator[Ring]:
    async with AsyncExitStack() as stack:
        ring = Ring(tmp_path, stack)
        await ring.start()
        yield ring


class TestRingFabric(FabricSuite):
    flood = 600

    @pytest.fixture
    def setup(self, ring: Ring) -> Setup:
        return Setup(ring.fabric, ring.leader.blobs, ring.link)


# -- what is particular to it --------------------------------------------------------------------------------


def session(process: int, count: int = 1) -> int:
    return process << PROCESS | count


async def attach(ring: Ring, number: int, node: str = "n1") -> None:
    await ring.fabric.attach(node, number, encode(registration(node)))


async def test_nobody_takes_the_name_of_another_address(ring: Ring):
    with pytest.raises(LinkRefused, match="n1 is called 'n1', it says 'n2'"):
        await ring.link("n1").connect(registration("n2"))
    assert ring.admitted == []


async def test_a_process_that_connects_anew_is_no_other_process(ring: Ring):
    events = ring.fabric.events()
    await attach(ring, session(1, 1))
    await attach(ring, session(1, 2))
    with pytest.raises(LinkLost, match="has connected anew since"):  # the first call of the two, if it comes late
        await attach(ring, session(1, 1))
    heard = [await soon(events) for _ in range(3)]
    assert [type(event) for event in heard] == [Arrived, Left, Arrived]
    with pytest.raises(LinkLost, match="connect anew"):
        await ring.fabric.say(session(1, 1), encode(progress(0)))
    await ring.fabric.say(session(1, 2), encode(progress(1)))
    assert await soon(events) == Said("n1", progress(1))


async def test_who_was_replaced_is_told_also_if_that_was_lost(ring: Ring):
    """The process at the address is another one now, so nobody else can tell it."""
    await attach(ring, session(1))
    await attach(ring, session(2))
    with pytest.raises(LinkRefused, match="another process has connected"):
        await ring.fabric.say(session(1), encode(progress(0)))


async def test_what_waits_for_room_is_not_heard_after_the_end(ring: Ring):
    await attach(ring, session(1))
    said = [asyncio.create_task(ring.fabric.say(session(1), encode(progress(i)))) for i in range(100)]
    await asyncio.wait(said, timeout=0.05)
    ring.fabric.disconnect("n1", "a fault")
    outcomes = await asyncio.gather(*said, return_exceptions=True)
    assert 0 < sum(isinstance(outcome, LinkLost) for outcome in outcomes) < 100
    events, heard = ring.fabric.events(), []
    while not isinstance(event := await soon(events), Left):
        heard.append(event)
    assert len(heard) == 1 + outcomes.count(None)


async def test_who_calls_twice_at_once_calls_again(ring: Ring):
    async def admit(node, key):
        raise Conflict(f"the name {node} is taken")

    ring.fabric._admit = admit
    with pytest.raises(LinkLost, match="is taken"):
        await ring.link("n1").connect(registration("n1"))


async def test_a_node_that_ends_says_so(ring: Ring):
    link, events = ring.link("n1"), ring.fabric.events()
    messages = await link.connect(registration("n1"))
    assert isinstance(await soon(messages), Registered)
    assert isinstance(await soon(events), Arrived)
    await link.close()
    assert await soon(events) == Left("n1", "the node does not listen any more")
    with pytest.raises(LinkLost):
        await soon(messages)


async def test_another_leader_ends_the_session(ring: Ring):
    link = ring.link("n1")
    messages = await link.connect(registration("n1"))
    assert isinstance(await soon(messages), Registered)
    ring.fabric.close()
    with pytest.raises(LinkLost, match="another member leads"):
        await soon(messages)
    assert ring.fabric.send("n1", news(1)) is False
