"""A real S3 store that is full, or goes away in the middle: what is said, and that it goes on by itself."""

import asyncio

import pytest

from support.gateway import gateway, set_quota, user_with_quota
from support.services import bucket
from tutti.adapters.blobs.mirrored import MirroredBlobs
from tutti.adapters.blobs.s3 import S3Blobs
from tutti.adapters.fabrics import presigned
from tutti.adapters.fabrics.download import Download
from tutti.core.errors import StorageError
from tutti.ports import LinkLost
from tutti.testing.blobs import MEGABYTE, digest_of, pattern


async def test_a_store_that_is_full_says_so_and_takes_more_once_there_is_room(monkeypatch, tmp_path):
    with user_with_quota(3 * MEGABYTE) as (user, keys):
        async with bucket(monkeypatch, keys=keys) as url, presigned.open_session(5, 10, None) as node:
            blobs = MirroredBlobs(tmp_path, await S3Blobs.open(url))
            first, large = await blobs.put(pattern(2 * MEGABYTE)), pattern(20 * MEGABYTE)
            for data in (pattern(2 * MEGABYTE + 1), large):  # in one go, and in parts
                with pytest.raises(StorageError, match=r"the store is full.*raise its quota, or free some space"):
                    await blobs.put(data)
                assert digest_of(data) not in await blobs.digests()
            place = await blobs.far.upload_link("n1", "update", 60)
            with pytest.raises(LinkLost, match=r"the store answered 403 .*QuotaExceeded"):
                await presigned.write(node, place, memoryview(large), 10)
            assert bytes(await blobs.read(first)) == pattern(2 * MEGABYTE)
            set_quota(user, 100 * MEGABYTE)
            await blobs.put(large)
            await presigned.write(node, place, memoryview(large), 10)
            await blobs.take_in(digest_of(large), "n1", "update", len(large))


async def test_a_store_that_goes_away_and_comes_back_is_used_again(monkeypatch, tmp_path):
    with gateway(tmp_path) as server:
        async with bucket(monkeypatch, server=server.url) as url, presigned.open_session(5, 10, None) as node:
            blobs = await S3Blobs.open(url)
            digest = await blobs.put(pattern(MEGABYTE))
            link, place = await blobs.link(digest, 60), await blobs.upload_link("n1", "update", 60)
            await asyncio.to_thread(server.stop)
            with pytest.raises(StorageError, match="look after the store"):
                await blobs.put(b"more")
            with pytest.raises(StorageError, match="look after the store"):
                await blobs.read(digest)
            with pytest.raises(LinkLost):
                await presigned.read(node, link, Download(digest))
            with pytest.raises(LinkLost):
                await presigned.write(node, place, memoryview(b"update"), 10)
            await asyncio.to_thread(server.start)
            await blobs.put(b"more")
            assert bytes(await presigned.read(node, link, Download(digest))) == pattern(MEGABYTE)
            await presigned.write(node, place, memoryview(b"update"), 10)
            assert (await blobs.uploaded("n1", "update"))[0] == 6
