"""Whole members of a ring, in this process, on real sockets and disks: suspicions, a full disk, and what is kept."""

import asyncio
import contextlib
import json
import os
import sqlite3
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from support.ports import free_ports
from tutti.adapters.thrift.idl import PROTOCOL, peer_from, peer_struct, supernode
from tutti.adapters.thrift.node import ThriftPeers, peer_at
from tutti.adapters.thrift.server import Server
from tutti.adapters.thrift.supernode import Supernode
from tutti.apps.ringentry import Entry
from tutti.apps.ringnode import RingNode, RingNodeSettings
from tutti.core.errors import StorageError
from tutti.core.registry import Choice
from tutti.domain.policy import Policy
from tutti.domain.spec import load_spec
from tutti.ports import LinkLost
from tutti.ports.ring import Placement
from tutti.ring.identifiers import Peer
from tutti.ring.record import Seat
from tutti.services import leftovers
from tutti.services.ring import RingMember
from tutti.wire import tensors

WITHIN = 60
JOB = {"name": "toy", "dataset": "digits", "model": "linear", "rounds": 1, "evaluation": {"nodes": False}}


class Members:
    """A supernode, and members that each end by themselves; `lives` are their tasks."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self._folder, self._stack = folder, stack
        self.nodes: list[RingNode] = []
        self.lives: list[asyncio.Task[None]] = []

    async def start(self, count: int, data: Choice | None = None) -> None:
        peers = ThriftPeers(within=5)
        self._stack.push_async_callback(peers.close)
        self.supernode = Supernode(peers, asyncio.get_running_loop().time)
        server = Server(supernode.Supernode, self.supernode)
        self._stack.push_async_callback(server.close)
        address = f"127.0.0.1:{await server.start('127.0.0.1', 0)}"
        for port in free_ports(count):
            folder, ready = self._folder / str(port), asyncio.Event()
            folder.mkdir()
            settings = RingNodeSettings(
                port=port,
                supernodes=(address,),
                state_dir=folder,
                data=data,
                on_ready=lambda _, ready=ready: ready.set(),
            )
            node = RingNode(settings, Policy())
            life = asyncio.create_task(self._live(node))
            self._stack.push_async_callback(self._end, life)
            await ready.wait()
            self.nodes.append(node)
            self.lives.append(life)
        for node in self.nodes:
            await node.chain.until(lambda chain: bool(chain.records) and len(chain.records[-1].roster) == count)

    async def _live(self, node: RingNode) -> None:
        try:
            await node.run()
        finally:
            await node.close()

    async def _end(self, life: "asyncio.Task[None]") -> None:
        life.cancel()
        await asyncio.wait([life])

    def folder(self, node: RingNode) -> Path:
        return self._folder / node.address.rpartition(":")[2]


@pytest.fixture
async def members(tmp_path):
    async with asyncio.timeout(WITHIN), AsyncExitStack() as stack:
        yield Members(tmp_path, stack)


async def test_who_was_taken_for_dead_lives_on_in_a_life_that_is_written_down(members):
    await members.start(2)
    accuser, node = members.nodes
    before = node.me
    ring = accuser.ring
    ring.member = replace(ring.member, roster=ring.member.roster.lost(before))
    await node.ring.until(lambda member: member.me != before)
    now = node.ring.member.me
    file = members.folder(node) / "ring.json"
    assert json.loads(file.read_text())["incarnation"] == now.incarnation > before.incarnation
    assert (node.me, node.chain.seat) == (now, Seat(now.address, now.incarnation))
    contacts = await members.supernode.enrol(PROTOCOL, peer_struct(node.me))  # it is no other process
    assert [peer_from(contact).address for contact in contacts] == [accuser.address]
    again = Entry(file, now.address, (), ThriftPeers(), None)  # as after a loss of everything else
    assert again.me.incarnation > now.incarnation


class Accuser:
    """ports.ring.Peers: everybody is one member, which takes the dead for dead; `told` is whom it is told of."""

    def __init__(self, *dead: Peer) -> None:
        self.ring = RingMember(peer_at("10.0.0.1:1"), self)
        for peer in dead:
            self.ring.member = replace(self.ring.member, roster=self.ring.member.roster.lost(peer))
        self.told: list[Peer] = []

    async def ask(self, peer, key, asker):
        return await self.ring.asked(key, None)

    async def tell(self, peer, me):
        self.told.append(me)


async def test_nobody_hears_of_a_life_that_cannot_be_written_down():
    me = peer_at("10.0.0.1:2", 7)
    accuser = Accuser(me)
    member = RingMember(me, accuser)

    def full(life):
        raise StorageError(f"cannot write down life {life.incarnation}")

    member.on_life = full
    await member.told(accuser.ring.member.me)
    with pytest.raises(ExceptionGroup):
        await member.run()
    assert (member.member.me, [life for life in accuser.told if life != me]) == (me, [])
    member.on_life = lambda life: None
    running = asyncio.create_task(member.run())
    await member.until(lambda member: member.me.incarnation == 8)
    running.cancel()
    await asyncio.wait([running])


@pytest.mark.parametrize("data", [None, Choice.parse("digits:held_out=0")])
async def test_a_leader_that_cannot_write_ends_and_another_leads(members, data):
    """Also if it trains, and loses its own node's session with its lead."""
    await members.start(3, data)
    leader = next(node for node in members.nodes if node.chain.leading)
    others = [node for node in members.nodes if node is not leader]
    while leader.core is None or sum(leader.core.offers().values()) < (3 if data else 0):  # noqa: ASYNC110 - as below
        await asyncio.sleep(0)
    with contextlib.closing(sqlite3.connect(members.folder(leader) / "chain.sqlite")) as disk, disk:
        disk.execute("CREATE TRIGGER full BEFORE INSERT ON durable BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    job = msgspec.json.encode(load_spec(JOB))
    with pytest.raises((StorageError, LinkLost)):
        await leader.submit("key", job)
    with pytest.raises(StorageError, match="disk full"):
        await members.lives[members.nodes.index(leader)]
    led = [asyncio.create_task(node.chain.until(lambda chain: chain.leading)) for node in others]
    await asyncio.wait(led, return_when=asyncio.FIRST_COMPLETED)
    for task in led:
        task.cancel()


async def test_late_updates_go_and_parts_that_are_named_stay(members, monkeypatch):
    """Who places parts names them first, sends them, and names them again: that may take longer than two looks."""
    monkeypatch.setattr(leftovers, "SWEEP_SECONDS", 0.01)
    await members.start(1)
    (node,) = members.nodes
    late, part, other = (os.urandom(100) for _ in range(3))
    placement = Placement("toy", "c" * 64, 1)
    assert await node.keep(placement, [tensors.digest(part)]) == [tensors.digest(part)]
    for blob in (part, late):
        await node._here.hold(tensors.digest(blob), blob)
    await _gone(node, late)
    assert await node.keep(placement, [tensors.digest(part)]) == []
    await node.keep(Placement("toy", "d" * 64, 2), [tensors.digest(other)])  # that one gives way
    await _gone(node, part)


async def _gone(node: RingNode, blob: bytes) -> None:
    while node._here.has(tensors.digest(blob)):  # noqa: ASYNC110 - no event tells of it
        await asyncio.sleep(0)
