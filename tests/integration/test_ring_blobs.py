"""Blobs from other members: who has other bytes under a name is passed over, and who is away may have it."""

import asyncio
import os
from contextlib import asynccontextmanager

import pytest
from blake3 import blake3

from support.thrift_nodes import ring
from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.adapters.blobs.held import SPARE, HeldBlobs
from tutti.adapters.blobs.ring import HolderAway, RingBlobs
from tutti.adapters.thrift.idl import CHUNK
from tutti.core.errors import CorruptBlob, NotFound

SIZE = 3 * CHUNK + 5


@asynccontextmanager
async def holders(root, count):
    """A reader, and members that may have what it wants."""
    async with asyncio.timeout(60), ring(root, count + 1) as nodes:
        reader, *others = nodes
        addresses = [node.peer.address for node in others]
        yield RingBlobs("reader", HeldBlobs(DirectoryBlobs(root / "mine")), reader.peers, lambda: addresses), others


async def damaged(node, digest, data):
    """It has other bytes under that name, as after a fault of its disk."""
    await node.blobs.put(data)
    async with node.blobs.file(digest) as path:
        path.chmod(0o600)
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize("rotten", [(0,), (1,), (0, 1), (1, 2)])
async def test_damaged_copies_are_passed_over(tmp_path, rotten):
    data = os.urandom(SIZE)
    digest = blake3(data).hexdigest()
    async with holders(tmp_path, 3) as (blobs, others):
        for number, node in enumerate(others):
            if number in rotten:
                await damaged(node, digest, data)
            else:
                await node.blobs.put(data)
        assert bytes(await blobs.read(digest)) == data


async def test_where_all_copies_are_damaged_that_is_said(tmp_path):
    data = os.urandom(SIZE)
    digest = blake3(data).hexdigest()
    async with holders(tmp_path, 2) as (blobs, others):
        for node in others:
            await damaged(node, digest, data)
        with pytest.raises(CorruptBlob, match="every copy"):
            await blobs.read(digest)


async def test_one_of_another_length_is_passed_over(tmp_path):
    data = os.urandom(SIZE)
    digest = blake3(data).hexdigest()
    async with holders(tmp_path, 2) as (blobs, others):
        await others[0].blobs.put(data)
        async with others[0].blobs.file(digest) as path:
            path.chmod(0o600)
            path.write_bytes(data + data)
        await others[1].blobs.put(data)
        assert bytes(await blobs.read(digest)) == data


async def test_nobody_has_it_and_somebody_is_away(tmp_path):
    async with holders(tmp_path, 2) as (blobs, others):
        with pytest.raises(NotFound) as absent:
            await blobs.read("a" * 64)
        assert not isinstance(absent.value, HolderAway)
        await others[1].stop()
        with pytest.raises(HolderAway):
            await blobs.read("a" * 64)


async def test_updates_that_were_fetched_stay_here(tmp_path):
    """A vote reads each of them twice: once to have it, and once to sum it up."""
    updates = [os.urandom(1000) for _ in range(2 * SPARE)]
    async with holders(tmp_path, 1) as (blobs, (other,)):
        digests = [await other.blobs.put(update) for update in updates]
        for digest in digests:
            await blobs.obtain_update(digest)
        await other.stop()
        assert [bytes(await blobs.read(digest)) for digest in digests] == updates
