"""What every BlobStore must do. Inherit, and say how to make an empty one:

    class TestMyBlobs(BlobSuite):
        @pytest.fixture
        def blobs(self) -> BlobStore:
            return MyBlobs()

Needs pytest-asyncio in its auto mode.
"""

import asyncio

import pytest
from blake3 import blake3

from tutti.core.errors import CorruptBlob, NotFound
from tutti.ports.blobs import BadDigest, BlobStore

MEGABYTE = 1 << 20
EMPTY = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
"""BLAKE3 of no bytes, https://github.com/BLAKE3-team/BLAKE3/blob/master/test_vectors/test_vectors.json"""


def pattern(size: int) -> bytes:
    """Bytes with a period of 251, as in BLAKE3's own test vectors."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def digest_of(data: bytes) -> str:
    digest: str = blake3(data).hexdigest()
    return digest


class BlobSuite:
    @pytest.fixture
    def blobs(self) -> BlobStore:
        raise NotImplementedError("return an empty store")

    @pytest.mark.parametrize("size", [0, 1, 7000, 65535, 65536, MEGABYTE + 1, 3 * MEGABYTE + 17])
    async def test_bytes_come_back_under_their_digest(self, blobs: BlobStore, size: int) -> None:
        data = pattern(size)
        digest = await blobs.put(data)
        assert digest == digest_of(data)
        assert bytes(await blobs.read(digest)) == data
        assert await blobs.size(digest) == size
        async with blobs.file(digest) as path:
            assert path.read_bytes() == data
        assert await blobs.digests() == [digest]

    async def test_no_bytes(self, blobs: BlobStore) -> None:
        assert await blobs.put(b"") == EMPTY

    async def test_any_kind_of_buffer(self, blobs: BlobStore) -> None:
        for buffer in (b"together", bytearray(b"together"), memoryview(b"together").cast("I")):
            assert await blobs.put(buffer) == digest_of(b"together")

    @pytest.mark.parametrize("size", [100, 3 * MEGABYTE])
    async def test_another_digest_than_announced(self, blobs: BlobStore, size: int) -> None:
        with pytest.raises(CorruptBlob, match=EMPTY):
            await blobs.put(pattern(size), digest=EMPTY)
        assert await blobs.digests() == []

    async def test_one_that_fails_does_not_spoil_the_others(self, blobs: BlobStore) -> None:
        one, false, other = await asyncio.gather(
            blobs.put(b"one"), blobs.put(b"false", digest=EMPTY), blobs.put(b"other"), return_exceptions=True
        )
        assert isinstance(false, CorruptBlob)
        assert set(await blobs.digests()) == {one, other}

    async def test_a_put_that_is_cancelled_does_not_spoil_the_others(self, blobs: BlobStore) -> None:
        putting = [asyncio.ensure_future(blobs.put(pattern(MEGABYTE + i))) for i in range(4)]
        await asyncio.sleep(0)
        putting[1].cancel()
        putting[2].cancel()
        outcomes = await asyncio.gather(*putting, return_exceptions=True)
        assert {outcomes[0], outcomes[3]} <= set(await blobs.digests())

    async def test_what_is_there_stays(self, blobs: BlobStore) -> None:
        digest = await blobs.put(b"here")
        assert await blobs.put(b"here", digest=digest) == digest
        assert await blobs.put(b"here") == digest
        assert await blobs.read(digest) == b"here"

    async def test_what_is_not_there(self, blobs: BlobStore) -> None:
        with pytest.raises(NotFound, match=EMPTY):
            await blobs.read(EMPTY)
        with pytest.raises(NotFound, match=EMPTY):
            await blobs.size(EMPTY)
        with pytest.raises(NotFound, match=EMPTY):
            async with blobs.file(EMPTY):
                pass

    @pytest.mark.parametrize("size", [100, 3 * MEGABYTE])
    async def test_the_same_blob_from_many_at_once(self, blobs: BlobStore, size: int) -> None:
        data = pattern(size)
        assert set(await asyncio.gather(*(blobs.put(data) for _ in range(8)))) == {digest_of(data)}
        async with blobs.file(digest_of(data)) as path:
            assert path.read_bytes() == data

    async def test_many_blobs(self, blobs: BlobStore) -> None:
        stored = await asyncio.gather(*(blobs.put(str(i).encode()) for i in range(100)))
        assert stored == [digest_of(str(i).encode()) for i in range(100)]
        assert sorted(await blobs.digests()) == sorted(stored)

    async def test_delete(self, blobs: BlobStore) -> None:
        digest, other = await blobs.put(b"one"), await blobs.put(b"two")
        await blobs.delete(digest)
        await blobs.delete(digest)
        assert await blobs.digests() == [other]
        with pytest.raises(NotFound, match=digest):
            await blobs.read(digest)
        assert await blobs.put(b"one", digest=digest) == digest
        async with blobs.file(digest) as path:
            assert path.read_bytes() == b"one"

    @pytest.mark.parametrize("name", ["", "../../../etc/passwd", EMPTY[:-1], EMPTY + "0", EMPTY.upper(), EMPTY + "\n"])
    async def test_names_that_are_no_digests(self, blobs: BlobStore, name: str) -> None:
        with pytest.raises(BadDigest, match="64 hex digits"):
            async with blobs.file(name):
                pass
        with pytest.raises(BadDigest):
            await blobs.read(name)
        with pytest.raises(BadDigest):
            await blobs.put(b"", digest=name)
        with pytest.raises(BadDigest):
            await blobs.delete(name)
