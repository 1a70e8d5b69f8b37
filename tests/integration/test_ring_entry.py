"""How a ring is entered: who begins it, where supernodes differ and where there is none."""

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from support.thrift_nodes import Running, in_order
from tutti.adapters.thrift.idl import PROTOCOL, peer_struct, supernode
from tutti.adapters.thrift.node import ThriftPeers, peer_at
from tutti.adapters.thrift.server import Server
from tutti.adapters.thrift.supernode import Supernode
from tutti.apps.ringentry import Entry

WITHIN = 30
DEAD = "127.0.0.1:1"


@pytest.fixture
async def waiting(tmp_path):
    """Two processes that are in no ring yet, by address: whom they could join through is dead."""
    async with AsyncExitStack() as stack:
        nodes = []
        for name in "ab":
            node = Running(tmp_path / name)
            stack.push_async_callback(node.stop)
            await node.start((peer_at(DEAD),))
            nodes.append(node)
        yield sorted(nodes, key=lambda node: node.peer.address)


@pytest.fixture
async def supernodes():
    """Two of them, which know nobody: their handlers by address."""
    async with AsyncExitStack() as stack:
        found = {}
        for _ in range(2):
            peers = ThriftPeers(within=5)
            stack.push_async_callback(peers.close)
            handler = Supernode(peers, lambda: 0.0)
            server = Server(supernode.Supernode, handler)
            stack.push_async_callback(server.close)
            found[f"127.0.0.1:{await server.start('127.0.0.1', 0)}"] = handler
        yield found


def entry(folder: Path, node: Running, supernodes: tuple[str, ...], *remembered: str) -> Entry:
    folder.mkdir()
    file = folder / "ring.json"
    if remembered:
        file.write_text(json.dumps({"incarnation": 1, "peers": remembered}))
    return Entry(file, node.peer.address, supernodes, node.peers, None)


@pytest.mark.parametrize("last", [0, 1])
async def test_where_two_supernodes_name_different_ones_one_of_them_begins(tmp_path, waiting, supernodes, last):
    """Each has heard of another one first."""
    entries = [entry(tmp_path / str(number), node, tuple(supernodes)) for number, node in enumerate(waiting)]
    for handler, of in zip(supernodes.values(), entries, strict=True):
        await handler.enrol(PROTOCOL, peer_struct(of.me))
    async with asyncio.timeout(WITHIN):
        told = {of: await of.contacts() for of in (entries[last], entries[1 - last])}
    smaller, larger = entries
    assert told == {smaller: ((), True), larger: ((smaller.me,), False)}


async def test_members_that_were_all_killed_begin_again_without_a_supernode(tmp_path, waiting):
    addresses = [node.peer.address for node in waiting]
    entries = [entry(tmp_path / str(number), node, (DEAD,), *addresses) for number, node in enumerate(waiting)]
    async with asyncio.timeout(WITHIN), asyncio.TaskGroup() as group:
        staying = []
        for of, node in zip(entries, waiting, strict=True):
            contacts, first = await of.contacts()
            assert not first
            node.ring.meet(*contacts)
            staying.append(group.create_task(of.stay(node.ring, node.ring.found)))
        await in_order(waiting)
        for task in staying:
            task.cancel()
