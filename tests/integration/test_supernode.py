"""The supernode: who may join, through whom, and what its own death costs."""

import asyncio

import pytest

from support.thrift_nodes import in_order, ring
from tutti.adapters.thrift.client import Channel
from tutti.adapters.thrift.idl import PROTOCOL, compute_node, peer_from, peer_struct, supernode
from tutti.adapters.thrift.node import ThriftPeers, peer_at
from tutti.adapters.thrift.server import Server
from tutti.adapters.thrift.supernode import FRESH, GRACE, BadMembers, Supernode, parse_members
from tutti.services.ring import RingMember

WITHIN = 30


class At:
    """A supernode on a socket, with a clock that stands still until it is moved."""

    def __init__(self, members: tuple[str, ...] = ()) -> None:
        self.now = 0.0
        self.peers = ThriftPeers(within=5)
        self.server = Server(supernode.Supernode, Supernode(self.peers, lambda: self.now, members))

    async def __aenter__(self) -> "At":
        port = await self.server.start("127.0.0.1", 0)
        self.channel = Channel(supernode.Supernode, "127.0.0.1", port)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self.server.close()
        await self.peers.close()

    async def enrol(self, peer, protocol=PROTOCOL):
        contacts = await self.channel.call("enrol", protocol, peer_struct(peer), within=WITHIN)
        return [peer_from(contact) for contact in contacts]

    async def members(self):
        return [peer_from(peer) for peer in await self.channel.call("members", PROTOCOL, within=WITHIN)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("127.0.0.1", "line 1: expected an address such as 127.0.0.1:5001, came '127.0.0.1'"),
        ("# all\n\na:1\nb:99999", "line 4: expected an address"),
        ("# nobody", "it names nobody"),
        ("a:1\nb:2\na 1", "line 3: a:1 stands on line 1 already"),
    ],
)
def test_a_malformed_members_file_is_said_with_its_line(text, reason):
    with pytest.raises(BadMembers, match=reason):
        parse_members(text)


def test_members_files_are_read():
    assert parse_members("# id host\n127.0.0.1:5001\n127.0.0.1 5002 # second\nhost,5003\n[::1]:5004") == (
        "127.0.0.1:5001",
        "127.0.0.1:5002",
        "host:5003",
        "[::1]:5004",
    )


async def test_of_two_first_ones_one_is_first(tmp_path):
    async with At() as at:
        contacts = await asyncio.gather(at.enrol(peer_at("127.0.0.1:1")), at.enrol(peer_at("127.0.0.1:2")))
        assert sorted(map(len, contacts)) == [0, 1]
        at.now = GRACE  # neither ever answered: whoever comes now is first again
        assert await at.enrol(peer_at("127.0.0.1:3")) == []
        assert await at.members() == []


async def test_a_ring_that_starts_again_at_once_has_one_founder_and_who_dies_first_is_none():
    """None of them answers yet; the dead of the life before are not waited for longer than a moment."""
    async with At() as at:
        for life in (1, 2):
            for port in (1, 2, 3):
                contacts = await at.enrol(peer_at(f"127.0.0.1:{port}", life))
                assert bool(contacts) is not (life == port == 1)
            at.now += 1.0
        assert await at.enrol(peer_at("127.0.0.1:2", 2)) == [peer_at("127.0.0.1:1", 2)]
        assert await at.enrol(peer_at("127.0.0.1:1", 2)) == []  # asked again it hears that it shall begin
        at.now += GRACE - 1.0  # and it does not
        await at.enrol(peer_at("127.0.0.1:3", 2))
        at.now += 2.0
        assert await at.enrol(peer_at("127.0.0.1:3", 2)) == []


async def test_newcomers_join_through_those_who_answer(tmp_path):
    async with At() as at, ring(tmp_path, 4) as nodes, asyncio.timeout(WITHIN):
        await in_order(nodes)
        assert await at.enrol(nodes[0].peer) == []
        assert await at.enrol(nodes[1].peer) == [nodes[0].peer]
        assert await at.members() == sorted(node.peer for node in nodes)
        await nodes[0].stop()
        at.now = GRACE
        assert await at.enrol(peer_at("127.0.0.1:9")) == [nodes[1].peer]


async def test_strangers_doubles_and_other_versions_are_refused(tmp_path):
    async with ring(tmp_path, 1) as (node,), At((node.peer.address,)) as at:
        for peer, protocol, reason in (
            (peer_at("not an address"), PROTOCOL, "expected an address such as 127.0.0.1:5001, came 'not an address'"),
            (peer_at("127.0.0.1:9"), PROTOCOL, "127.0.0.1:9 is not among the 1 of the members file"),
            (peer_at(node.peer.address, 5), PROTOCOL, "another live process has"),
            (node.peer, PROTOCOL + 1, f"speaks protocol {PROTOCOL}, the caller {PROTOCOL + 1}"),
        ):
            with pytest.raises(compute_node.Refused) as refused:
                await at.enrol(peer, protocol)
            assert reason in refused.value.reason


async def test_a_supernode_that_starts_again_finds_the_members_of_its_file(tmp_path):
    async with ring(tmp_path, 3) as nodes, asyncio.timeout(WITHIN):
        await in_order(nodes)
        addresses = tuple(node.peer.address for node in nodes)
        async with At((*addresses, "127.0.0.1:9")) as at:
            contacts = await at.enrol(peer_at("127.0.0.1:9"))
        assert set(contacts) == {node.peer for node in nodes}
        await in_order(nodes)  # it is gone, and nothing happened


class Answers:
    """ports.ring.Peers: those answer that are `here`; `asked` is who was asked."""

    def __init__(self, *here) -> None:
        self.here = {peer.address: RingMember(peer, self) for peer in here}
        self.asked = []

    async def ask(self, peer, key, asker):
        self.asked.append(peer.address)
        await asyncio.sleep(0)
        there = self.here.get(peer.address)
        return None if there is None else await there.asked(key, asker)

    async def tell(self, peer, me):
        pass


async def test_those_who_enrol_within_a_moment_wait_for_a_silent_host_once():
    names = [f"10.0.0.1:{port}" for port in range(1, 9)]
    peers, clock = Answers(peer_at(names[0])), [0.0]
    handler = Supernode(peers, lambda: clock[0], (*names, "10.0.0.9:1"))

    async def contacts(name, life=0):
        return [
            peer_from(contact).address for contact in await handler.enrol(PROTOCOL, peer_struct(peer_at(name, life)))
        ]

    assert await asyncio.gather(*map(contacts, names)) == [[]] + [names[:1]] * 7
    assert peers.asked.count("10.0.0.9:1") == 1
    clock[0] += FRESH
    assert await asyncio.gather(*map(contacts, names)) == [[]] + [names[:1]] * 7
    assert peers.asked.count("10.0.0.9:1") == 2
    peers.here.clear()  # killed, and started again at once: it is no other process
    peers.here[names[1]] = RingMember(peer_at(names[1]), peers)
    assert await contacts(names[0], life=1) == [names[1]]
