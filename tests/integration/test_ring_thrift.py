"""The ring's protocol on real sockets: a stock Apache client, blobs in chunks, TLS, limits; and rings that live."""

import asyncio
import os
import ssl
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
from blake3 import blake3
from cryptography.x509 import DNSName
from thrift.protocol.TBinaryProtocol import TBinaryProtocol
from thrift.Thrift import TApplicationException
from thrift.transport.TSocket import TSocket
from thrift.transport.TTransport import TFramedTransport

from support.authority import certificate, ip
from support.thrift_nodes import Running, in_order, ring
from tutti.adapters.thrift.client import Channel, UnknownCall, Unreachable
from tutti.adapters.thrift.frames import Frames
from tutti.adapters.thrift.idl import CHUNK, PROTOCOL, compute_node, key_bytes, peer_struct, supernode
from tutti.adapters.thrift.node import IDLE, MAX_UPLOADS, ThriftPeers, peer_at
from tutti.adapters.thrift.server import PortTaken, Server
from tutti.adapters.thrift.tls import BadCertificate, client_context, server_context
from tutti.core.errors import NotFound, UserError
from tutti.ring.identifiers import Peer, identifier
from tutti.services.ring import RingMember
from tutti.wire.thrift import MAX_FRAME, Kind, decode, encode

sys.path.insert(0, str(Path(__file__).parent.parent / "stock_thrift"))
from tutti_ring.compute_node import ComputeNode as Stock
from tutti_ring.compute_node import ttypes as stock

TIMEOUT = 60


@contextmanager
def stock_client(port):
    transport = TFramedTransport(TSocket("127.0.0.1", port))
    transport.open()
    yield Stock.Client(TBinaryProtocol(transport))
    transport.close()


async def test_a_stock_apache_client_can_call(tmp_path):
    def calls(port):
        with stock_client(port) as client:
            view = client.ask(PROTOCOL, key_bytes(5), None)
            client.tell(PROTOCOL, stock.Peer(key_bytes(identifier("h:1")), "h:1", 3))
            lacking = client.missing([digest])
            for offset in range(0, len(data), CHUNK):
                client.store(digest, len(data), offset, data[offset : offset + CHUNK])
            parts = [client.fetch(digest, offset) for offset in range(0, len(data), CHUNK)]
            with pytest.raises(stock.Refused, match=f"speaks protocol {PROTOCOL}, the caller 9: use one version"):
                client.ask(9, key_bytes(5), None)
            with pytest.raises(stock.NotFound, match="no blob"):
                client.fetch(bytes(32), 0)
            with pytest.raises(TApplicationException, match="should have 20 bytes"):
                client.ask(PROTOCOL, b"short", None)
            return view, lacking, parts, client.missing([digest])

    data = os.urandom(3 * CHUNK + 17)
    digest = blake3(data).digest()
    async with ring(tmp_path, 1) as (node,):
        view, lacking, parts, still = await asyncio.to_thread(calls, node.port)
        assert (view.peer.address, view.successors) == (node.peer.address, [])
        assert (lacking, still) == ([digest], [])
        assert b"".join(part.data for part in parts) == data
        assert {part.size for part in parts} == {len(data)}
        assert Peer(identifier("h:1"), "h:1", 3) in [claim.peer for claim in node.ring.member.roster.claims.values()]


async def test_blobs_go_from_member_to_member_in_chunks(tmp_path):
    async with ring(tmp_path, 2) as (a, b):
        for data in (b"", b"x", os.urandom(CHUNK), os.urandom(9 * CHUNK + 1)):
            digest = blake3(data).digest()
            await a.peers.store(b.peer, digest, data)
            assert bytes(await b.blobs.read(digest.hex())) == data
            assert b"".join([chunk async for chunk in a.peers.fetch(b.peer, digest)]) == data
            assert await a.peers.missing(b.peer, [digest, bytes(32)]) == [bytes(32)]
        with pytest.raises(NotFound):
            [chunk async for chunk in a.peers.fetch(b.peer, bytes(32))]


async def test_bad_uploads_are_refused_and_leave_nothing(tmp_path):
    async with ring(tmp_path, 2) as (a, b):
        data = os.urandom(CHUNK + 1)
        with pytest.raises(compute_node.Refused) as corrupt:
            await a.peers.store(b.peer, bytes(32), data)
        assert "digest" in corrupt.value.reason
        channel = Channel(compute_node.ComputeNode, "127.0.0.1", b.port)
        digest = blake3(data).digest()
        for size, offset, part, reason in (
            (20_000_000, 0, b"", "at most 10000000 bytes are allowed"),
            (CHUNK + 1, 0, data, f"at most {CHUNK} bytes within the blob"),
            (CHUNK + 1, 7, b"x", "0 bytes of this upload are here"),
            (10, 0, data[:11], "within the blob, came 11 bytes at 0 of 10"),
        ):
            with pytest.raises(compute_node.Refused) as refused:
                await channel.call("store", digest, size, offset, part, within=TIMEOUT)
            assert reason in refused.value.reason
        for number in range(MAX_UPLOADS):
            await channel.call("store", blake3(bytes([number])).digest(), 2, 0, b"x", within=TIMEOUT)
        with pytest.raises(compute_node.Refused) as refused:
            await channel.call("store", digest, 2, 0, b"x", within=TIMEOUT)
        assert "64 uploads are under way here" in refused.value.reason
        await channel.call("store", blake3(bytes([0])).digest(), 2, 1, b"", within=TIMEOUT)  # one of them goes on
        assert await b.blobs.digests() == []
        await channel.close()


async def test_bad_frames_end_the_connection_and_nothing_else(tmp_path):
    async with ring(tmp_path, 1) as (node,):
        for noise in (b"GET / HTTP/1.1\r\n\r\n", (MAX_FRAME + 1).to_bytes(4), b"\x00\x00\x00\x04\x80\x01\x00\x01"):
            reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
            writer.write(noise)
            async with asyncio.timeout(TIMEOUT):
                assert await reader.read() == b""
            writer.close()
        channel = Channel(supernode.Supernode, "127.0.0.1", node.port)
        with pytest.raises(UnknownCall, match="there is no call 'members'"):
            await channel.call("members", PROTOCOL, within=TIMEOUT)
        with pytest.raises(UserError, match="send less at once"):
            await Channel(compute_node.ComputeNode, "127.0.0.1", node.port).call(
                "store", b"", 0, 0, bytes(MAX_FRAME), within=TIMEOUT
            )
        assert node.ring.member.joined
        await channel.close()


async def test_many_calls_share_one_connection(tmp_path):
    async with ring(tmp_path, 1) as (node,):
        channel = Channel(compute_node.ComputeNode, "127.0.0.1", node.port)
        calls = [channel.call("ask", PROTOCOL, key_bytes(key), None, within=TIMEOUT) for key in range(200)]
        assert {view.peer.address for view in await asyncio.gather(*calls)} == {node.peer.address}
        assert len(node.server._connections) == 1
        await channel.close()


async def test_connections_that_nobody_uses_are_closed(tmp_path):
    """Strangers may make up any number of callers, to whom a member answers."""
    now = 0.0
    async with asyncio.timeout(TIMEOUT), ring(tmp_path / "a", 1) as (used,), ring(tmp_path / "b", 1) as (idle,):
        peers = ThriftPeers(within=TIMEOUT, clock=lambda: now)
        for peer in (*(peer_at(f"127.0.0.1:{port}") for port in range(1, 6)), idle.peer, used.peer):
            await peers.tell(peer, used.peer)
        connections = [*idle.server._connections, *used.server._connections]
        now = TIMEOUT + IDLE
        assert await peers.missing(used.peer, [bytes(32)]) == [bytes(32)]
        assert len(peers._channels) == 7
        now += 1
        assert await peers.missing(used.peer, [bytes(32)]) == [bytes(32)]
        assert [*peers._channels] == [used.peer.address]
        closed, kept = connections
        await asyncio.wait([closed])
        assert used.server._connections == {kept}
        await peers.close()


async def test_a_forged_caller_is_refused(tmp_path):
    """An identifier that is not its address's would let a stranger choose which keys it gets."""
    async with ring(tmp_path, 1) as (node,):
        channel = Channel(compute_node.ComputeNode, "127.0.0.1", node.port)
        with pytest.raises(compute_node.Refused) as refused:
            await channel.call("tell", PROTOCOL, peer_struct(Peer(5, "h:1")), within=TIMEOUT)
        assert "is not that of 'h:1'" in refused.value.reason
        assert node.ring.member.roster.alive == ()
        await channel.close()


@pytest.mark.parametrize("address", ["a..b:80", f"{'x' * 64}:80", "a\0b:80"])
async def test_an_address_that_no_resolver_takes_is_refused_and_cannot_be_reached(tmp_path, address):
    """Looked up, it raises what is no OSError; members tell one another whom they have heard of."""
    host = address.removesuffix(":80")
    async with asyncio.timeout(TIMEOUT), ring(tmp_path, 2) as nodes:
        channel = Channel(compute_node.ComputeNode, "127.0.0.1", nodes[0].port)
        for call in (("tell",), ("ask", key_bytes(5))):
            with pytest.raises(compute_node.Refused) as refused:
                await channel.call(*call[:1], PROTOCOL, *call[1:], peer_struct(peer_at(address)), within=TIMEOUT)
            assert "expected an address such as 127.0.0.1:5001" in refused.value.reason
        await channel.close()
        with pytest.raises(Unreachable, match="cannot reach"):
            await Channel(compute_node.ComputeNode, host, 80).call("missing", [], within=TIMEOUT)
        await in_order(nodes)


class Nothing:
    """An answer without any field."""

    thrift_spec: ClassVar = {}


class Half:
    """An answer whose View lacks its fields."""

    thrift_spec: ClassVar = {0: (12, "success", Nothing, False)}

    def __init__(self):
        self.success = Nothing()


@pytest.mark.parametrize("answer", [Nothing(), Half()])
async def test_an_answer_that_is_none_ends_nobody(answer):
    """To whoever asks, such a member is as good as dead."""

    async def serve(frames):
        while (frame := await frames.read()) is not None:
            message = decode(frame)
            await frames.write(encode(message.name, Kind.REPLY, message.seqid, answer))
            answered.set()

    answered, serving = asyncio.Event(), set()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Frames(lambda frames: serving.add(loop.create_task(serve(frames)))), "127.0.0.1", 0
    )
    port, peers = server.sockets[0].getsockname()[1], ThriftPeers(within=TIMEOUT)
    try:
        async with asyncio.timeout(TIMEOUT):
            member = RingMember(peer_at("127.0.0.1:1"), peers, (peer_at(f"127.0.0.1:{port}"),), every=0.01)
            running = asyncio.create_task(member.run())
            for _ in range(2):  # it asks again
                await answered.wait()
                answered.clear()
            assert not running.done()
            running.cancel()
            with pytest.raises(Unreachable, match="gave no answer to 'missing'"):
                await peers.missing(peer_at(f"127.0.0.1:{port}"), [])
            await asyncio.wait([running])
    finally:
        await peers.close()
        await asyncio.wait(serving)
        server.close()


async def test_a_port_in_use_and_a_dead_address_are_said(tmp_path):
    async with ring(tmp_path, 1) as (node,):
        with pytest.raises(PortTaken, match="choose another port"):
            await Running(tmp_path / "other").server.start("127.0.0.1", node.port)
    with pytest.raises(Unreachable, match="cannot reach"):
        await Channel(compute_node.ComputeNode, "127.0.0.1", node.port).call("missing", [], within=TIMEOUT)
    assert await node.peers.ask(peer_at("no-port"), 1, None) is None


async def test_an_ipv6_address_is_reached_with_brackets_and_without():
    class Handler:
        async def members(self, protocol):
            return []

    server = Server(supernode.Supernode, Handler())
    port = await server.start("::1", 0)
    for host in ("::1", "[::1]"):
        channel = Channel(supernode.Supernode, host, port)
        assert await channel.call("members", PROTOCOL, within=TIMEOUT) == []
        await channel.close()
    await server.close()


# -- rings that live -----------------------------------------------------------------------------------------


async def test_members_find_their_order_and_one_another(tmp_path):
    async with asyncio.timeout(TIMEOUT), ring(tmp_path, 8) as nodes:
        await in_order(nodes)
        ids = sorted(node.peer.id for node in nodes)
        for number in range(20):
            key = identifier(f"key {number}")
            found = await nodes[number % 8].ring.look_up(key)
            assert found.holders[0].id == next((id for id in ids if id >= key), ids[0])


async def test_the_ring_goes_on_without_the_dead_and_takes_them_back(tmp_path):
    async with asyncio.timeout(TIMEOUT), ring(tmp_path, 6) as nodes:
        await in_order(nodes)
        await nodes[0].stop()  # through whom all the others came
        await nodes[3].stop()
        living = [node for node in nodes if node not in (nodes[0], nodes[3])]
        await in_order(living)
        back = Running(tmp_path / "back")
        nodes.append(back)
        await back.start((living[0].peer,), port=nodes[3].port, incarnation=9)
        await in_order([*living, back])


async def test_a_ring_shrinks_to_one_and_grows_again(tmp_path):
    async with asyncio.timeout(TIMEOUT), ring(tmp_path, 5) as nodes:
        await in_order(nodes)
        for node in nodes[1:]:
            await node.stop()
        await in_order(nodes[:1])
        for number in range(4):
            node = Running(tmp_path / f"new{number}")
            nodes.append(node)
            await node.start((nodes[0].peer,))
        await in_order([nodes[0], *nodes[5:]])


async def test_two_rings_that_have_never_heard_of_each_other_meet_through_one_address(tmp_path):
    async with asyncio.timeout(TIMEOUT), ring(tmp_path / "one", 3) as ours, ring(tmp_path / "other", 3) as theirs:
        await in_order(ours)
        await in_order(theirs)
        ours[1].ring.meet(theirs[2].peer)
        await in_order([*ours, *theirs])


async def test_who_has_nobody_to_join_through_waits_for_somebody(tmp_path):
    async with asyncio.timeout(TIMEOUT), ring(tmp_path, 1) as nodes:
        late = Running(tmp_path / "late")
        nodes.append(late)
        await late.start((peer_at("127.0.0.1:1"),))
        assert not late.ring.member.joined
        late.ring.meet(nodes[0].peer)
        await in_order(nodes)


# -- TLS -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority, and a certificate for 127.0.0.1 that it signed; and another authority with its own."""
    root = tmp_path_factory.mktemp("tls")
    for name in ("ours", "theirs"):
        authority = certificate(root / f"{name}-ca", None, None)
        certificate(root / name, *authority)
        if name == "ours":
            certificate(root / "elsewhere", *authority, ip("10.0.0.7"), ip("fe80::1"), DNSName("*.example.org"))
    return root


async def test_a_ring_over_mutual_tls(tmp_path, certificates):
    ours, authority = certificates / "ours.pem", certificates / "ours-ca.pem"
    server_tls = server_context(ours, ours.with_suffix(".key"), clients=authority)
    tls = client_context(authority, certificate=ours, key=ours.with_suffix(".key"))
    async with asyncio.timeout(TIMEOUT), ring(tmp_path, 3, server_tls=server_tls, tls=tls) as nodes:
        await in_order(nodes)
        data = os.urandom(2 * CHUNK + 5)
        digest = blake3(data).digest()
        await nodes[0].peers.store(nodes[1].peer, digest, data)
        assert b"".join([chunk async for chunk in nodes[2].peers.fetch(nodes[1].peer, digest)]) == data


async def test_who_has_a_certificate_speaks_for_its_own_host_only(tmp_path, certificates):
    """And, where there is a members file, for an address in it."""
    ours, elsewhere, authority = (certificates / f"{name}.pem" for name in ("ours", "elsewhere", "ours-ca"))
    server_tls = server_context(ours, ours.with_suffix(".key"), clients=authority)
    listed = {"127.0.0.1:5", "10.0.0.7:5", "a.example.org:5", "[fe80::1]:5"}
    async with ring(tmp_path, 1, server_tls=server_tls, members=listed) as (node,):

        async def said(certificate, address):
            """Why the member refuses whoever shows this certificate, and says that this address is its own."""
            tls = client_context(authority, certificate=certificate, key=certificate.with_suffix(".key"))
            channel = Channel(compute_node.ComputeNode, "127.0.0.1", node.port, tls=tls)
            refusals = []
            for name, *arguments in (("tell",), ("ask", key_bytes(5))):
                try:
                    await channel.call(name, PROTOCOL, *arguments, peer_struct(peer_at(address)), within=TIMEOUT)
                except compute_node.Refused as refused:
                    refusals.append(refused.reason)
            await channel.close()
            assert len(refusals) in (0, 2)
            return refusals[:1]

        assert await said(ours, "127.0.0.1:5") == []
        assert await said(elsewhere, "127.0.0.1:5") == ["the caller's certificate is not for the host of '127.0.0.1:5'"]
        for address in sorted(listed - {"127.0.0.1:5"}):
            assert await said(elsewhere, address) == []
        (unknown,) = await said(ours, "127.0.0.1:6")
        assert unknown == "127.0.0.1:6 is not among the 4 of the members file: add it there"
        assert {claim.peer.address for claim in node.ring.member.roster.claims.values()} == listed


@pytest.mark.parametrize("caller", ["nobody", "theirs", "plain"])
async def test_mutual_tls_refuses_strangers(tmp_path, certificates, caller):
    ours, theirs, authority = (certificates / f"{name}.pem" for name in ("ours", "theirs", "ours-ca"))
    server_tls = server_context(ours, ours.with_suffix(".key"), clients=authority)
    tls: ssl.SSLContext | None = client_context(authority)
    if caller == "theirs":
        tls = client_context(authority, certificate=theirs, key=theirs.with_suffix(".key"))
    async with ring(tmp_path, 1, server_tls=server_tls) as (node,):
        channel = Channel(compute_node.ComputeNode, "127.0.0.1", node.port, tls=None if caller == "plain" else tls)
        with pytest.raises(Unreachable):
            await channel.call("missing", [], within=5)
        await channel.close()


async def test_a_server_that_another_authority_signed_is_not_believed(tmp_path, certificates):
    theirs = certificates / "theirs.pem"
    async with ring(tmp_path, 1, server_tls=server_context(theirs, theirs.with_suffix(".key"))) as (node,):
        tls = client_context(certificates / "ours-ca.pem")
        channel = Channel(compute_node.ComputeNode, "127.0.0.1", node.port, tls=tls)
        with pytest.raises(Unreachable, match="certificate verify failed"):
            await channel.call("missing", [], within=TIMEOUT)


def test_files_that_are_no_certificates_are_said(tmp_path):
    (tmp_path / "no.pem").write_text("nothing")
    with pytest.raises(BadCertificate, match=r"no\.pem"):
        client_context(tmp_path / "no.pem")
    with pytest.raises(BadCertificate, match=r"absent\.pem.*No such file"):
        server_context(tmp_path / "absent.pem", tmp_path / "no.key")
