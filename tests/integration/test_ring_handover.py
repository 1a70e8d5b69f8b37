"""Blobs between members on one machine: real sockets, real files."""

import asyncio
import os
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from tutti.adapters.blobs import handover
from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.adapters.blobs.held import HeldBlobs
from tutti.adapters.blobs.ring import RingBlobs
from tutti.adapters.thrift.idl import training_node
from tutti.adapters.thrift.node import ThriftPeers
from tutti.adapters.thrift.server import Server
from tutti.adapters.thrift.training import TrainingNode
from tutti.core.errors import NotFound
from tutti.wire import tensors

BLOB = os.urandom(3_000_001)
DIGEST = tensors.digest(BLOB)

pytestmark = pytest.mark.skipif(not handover.POSSIBLE, reason="members hand over files on Linux only")


@pytest.fixture
async def member(tmp_path):
    """An address, and the blobs of the member there."""
    blobs = HeldBlobs(DirectoryBlobs(tmp_path / "member"))
    address = f"127.0.0.1:{os.getpid()}"  # a name; nothing listens at that port
    serving = handover.Handover(address, blobs, limit=len(BLOB))
    serving.start()
    yield address, blobs
    await serving.close()


async def test_a_blob_is_given_and_taken_without_a_copy(member):
    address, blobs = member
    assert await handover.near(address)
    blob = handover.sealed(BLOB)
    await handover.give(address, DIGEST, blob)
    await handover.give(address, DIGEST, blob)
    blob.close()
    assert bytes(await blobs.read(DIGEST)) == BLOB
    assert await handover.take(address, DIGEST) is None  # it has no file of it
    await blobs.put(BLOB)
    assert bytes(await handover.take(address, DIGEST)) == BLOB
    assert await handover.take(address, tensors.digest(b"another")) is None


async def test_what_is_wrong_is_refused(member):
    address, blobs = member
    blob = handover.sealed(BLOB)
    with pytest.raises(handover.NotHandedOver, match="those that came have"):
        await handover.give(address, tensors.digest(b"another"), blob)
    large = handover.sealed(BLOB + b"1")
    with pytest.raises(handover.NotHandedOver, match=f"at most {len(BLOB)} bytes are allowed here"):
        await handover.give(address, tensors.digest(BLOB + b"1"), large)
    file = os.memfd_create("open", os.MFD_ALLOW_SEALING)
    os.write(file, BLOB)
    loose = handover.Sealed(file)
    with pytest.raises(handover.NotHandedOver, match="can still be changed"):
        await handover.give(address, DIGEST, loose)
    for each in (blob, large, loose):
        each.close()
    assert not blobs.has(DIGEST)


@pytest.mark.parametrize("packet", [b"G", b"X" + bytes(32), b"T" + bytes(5), b"T" + bytes(32), b"G" + bytes(32)])
async def test_packets_that_cannot_be_done_are_answered(member, packet):
    address, _ = member
    answer, file = await asyncio.to_thread(handover._exchange, address, packet, None, handover.WITHIN)
    assert answer.startswith(b"-")
    assert file is None


async def test_nobody_is_near_where_nobody_listens():
    assert not await handover.near("192.0.2.1:5001")
    assert await handover.take("192.0.2.1:5001", DIGEST) is None
    blob = handover.sealed(BLOB)
    with pytest.raises(OSError, match="refused"):
        await handover.give("192.0.2.1:5001", DIGEST, blob)
    blob.close()


async def test_a_member_that_refuses_a_file_is_sent_the_bytes(tmp_path, caplog):
    blobs = HeldBlobs(DirectoryBlobs(tmp_path / "there"))
    server = Server(training_node.TrainingNode, TrainingNode(None, blobs))
    address = f"127.0.0.1:{await server.start('127.0.0.1', 0)}"
    peers = ThriftPeers(within=10.0)
    mine = RingBlobs("127.0.0.1:1", HeldBlobs(DirectoryBlobs(tmp_path / "me")), peers, lambda: [address])
    full = handover.Handover(address, blobs, limit=10)
    full.start()
    assert await mine.spread(DIGEST, BLOB, [address], 1) == 1
    assert blobs.has(DIGEST)
    assert "could not be handed over" in caplog.text
    assert bytes(await mine.read(DIGEST)) == BLOB  # held in memory there: it comes over the network
    with pytest.raises(NotFound):
        await mine.read(tensors.digest(b"another"))
    await full.close()
    await peers.close()
    await server.close()


async def test_a_silent_connection_is_closed(member, monkeypatch):
    monkeypatch.setattr(handover, "SILENT", 0.01)
    connection = handover._connected(member[0])
    connection.settimeout(30.0)
    assert await asyncio.to_thread(connection.recv, 10) == b""
    connection.close()


async def test_a_frozen_member_holds_up_a_fetch_for_a_moment_and_nothing_else(tmp_path):
    """Its name is there, and nobody accepts."""
    frozen = f"127.0.0.1:{os.getpid()}"
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(handover._NAME + frozen)
        listener.listen()
        async with asyncio.timeout(handover.WITHIN / 2):
            takes = [asyncio.create_task(handover.take(frozen, DIGEST)) for _ in range(4)]
            await asyncio.sleep(0)
            await asyncio.to_thread(bytes)
            assert not any(take.done() for take in takes)
            assert await asyncio.gather(*takes) == [None] * 4


class Vanishing(DirectoryBlobs):
    """Deletes each blob just before its file is opened."""

    def path(self, digest):
        place = super().path(digest)
        place.unlink()
        return place


async def test_a_blob_that_is_deleted_meanwhile_is_said_to_be_gone(tmp_path):
    blobs, address = HeldBlobs(Vanishing(tmp_path)), f"127.0.0.1:{os.getpid()}"
    serving = handover.Handover(address, blobs)
    serving.start()
    await blobs.put(BLOB)
    packet = b"T" + bytes.fromhex(DIGEST)
    answer, file = await asyncio.to_thread(handover._exchange, address, packet, None, handover.WITHIN)
    assert (answer[:1], file) == (b"-", None)
    await serving.close()
