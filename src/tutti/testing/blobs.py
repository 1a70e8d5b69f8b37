"""What every BlobStore must do. Inherit, and say how to make an empty one:

    class TestMyBlobs(BlobSuite):
        @pytest.fixture
        def blobs(self) -> BlobStore:
            return MyBlobs()

Needs pytest-asyncio in its auto mode.
"""

import asyncio
from collections.abc import AsyncIterator

import pytest
from blake3 import blake3

from tutti.core.errors import CorruptBlob, NotFound
from tutti.ports.blobs import BadDigest, BlobStore, TooLarge

MEGABYTE = 1 << 20
EMPTY = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
"""BLAKE3 of no bytes, https://github.com/BLAKE3-team/BLAKE3/blob/master/test_vectors/test_vectors.json"""


def pattern(size: int) -> bytes:
    """Bytes with a period of 251, as in BLAKE3's own test vectors."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def digest_of(data: bytes) -> str:
    digest: str = blake3(data).hexdigest()
    return digest


async def pieces(data: bytes, size: int = 65536) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def broken(data: bytes) -> AsyncIterator[bytes]:
    """A stream whose sender goes away at the end of `data`."""
    async for piece in pieces(data):
        yield piece
    raise ConnectionResetError("the sender went away")


async def stalled(data: bytes, reached: asyncio.Event) -> AsyncIterator[bytes]:
    """A stream that tells when it is through, and never ends."""
    async for piece in pieces(data):
        yield piece
    reached.set()
    await asyncio.Event().wait()


class BlobSuite:
    @pytest.fixture
    def blobs(self) -> BlobStore:
        raise NotImplementedError("return an empty store")

    @pytest.mark.parametrize("piece", [1000, 65536, 10 * MEGABYTE])
    @pytest.mark.parametrize("size", [0, 1, 7000, MEGABYTE - 1, MEGABYTE, MEGABYTE + 1, 3 * MEGABYTE + 17])
    async def test_bytes_come_back_under_their_digest(self, blobs: BlobStore, size: int, piece: int) -> None:
        data = pattern(size)
        digest = await blobs.put(pieces(data, piece))
        assert digest == digest_of(data)
        assert (await blobs.path(digest)).read_bytes() == data
        assert await blobs.digests() == [digest]

    async def test_no_bytes(self, blobs: BlobStore) -> None:
        assert await blobs.put(pieces(b"")) == EMPTY

    async def test_pieces_may_be_any_kind_of_buffer(self, blobs: BlobStore) -> None:
        async def mixed() -> AsyncIterator[bytes | bytearray | memoryview]:
            yield b"to"
            yield bytearray(b"ge")
            yield b""
            yield memoryview(b"ther").cast("I")

        assert await blobs.put(mixed()) == digest_of(b"together")

    @pytest.mark.parametrize("size", [100, 3 * MEGABYTE])
    async def test_another_digest_than_announced(self, blobs: BlobStore, size: int) -> None:
        with pytest.raises(CorruptBlob, match=EMPTY):
            await blobs.put(pieces(pattern(size)), digest=EMPTY)
        assert await blobs.digests() == []

    @pytest.mark.parametrize("size", [100, 3 * MEGABYTE])
    async def test_limit(self, blobs: BlobStore, size: int) -> None:
        with pytest.raises(TooLarge, match=str(size - 1)):
            await blobs.put(pieces(pattern(size)), limit=size - 1)
        assert await blobs.digests() == []
        await blobs.put(pieces(pattern(size)), limit=size)

    @pytest.mark.parametrize("size", [100, 3 * MEGABYTE])
    async def test_a_broken_stream_leaves_nothing(self, blobs: BlobStore, size: int) -> None:
        with pytest.raises(ConnectionResetError):
            await blobs.put(broken(pattern(size)))
        assert await blobs.digests() == []

    @pytest.mark.parametrize("size", [100, 3 * MEGABYTE])
    async def test_nothing_is_visible_before_the_end(self, blobs: BlobStore, size: int) -> None:
        reached = asyncio.Event()
        putting = asyncio.ensure_future(blobs.put(stalled(pattern(size), reached), digest=digest_of(pattern(size))))
        await reached.wait()
        assert await blobs.digests() == []
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting
        assert await blobs.digests() == []

    async def test_what_is_there_is_not_read_again(self, blobs: BlobStore) -> None:
        digest = await blobs.put(pieces(b"here"))
        assert await blobs.put(broken(b""), digest=digest) == digest
        assert await blobs.put(pieces(b"here")) == digest
        assert (await blobs.path(digest)).read_bytes() == b"here"

    @pytest.mark.parametrize("size", [100, 3 * MEGABYTE])
    async def test_the_same_blob_from_many_at_once(self, blobs: BlobStore, size: int) -> None:
        data = pattern(size)
        assert set(await asyncio.gather(*(blobs.put(pieces(data)) for _ in range(8)))) == {digest_of(data)}
        assert (await blobs.path(digest_of(data))).read_bytes() == data

    async def test_many_blobs(self, blobs: BlobStore) -> None:
        stored = await asyncio.gather(*(blobs.put(pieces(str(i).encode())) for i in range(100)))
        assert stored == [digest_of(str(i).encode()) for i in range(100)]
        assert sorted(await blobs.digests()) == sorted(stored)

    async def test_delete(self, blobs: BlobStore) -> None:
        digest, other = await blobs.put(pieces(b"one")), await blobs.put(pieces(b"two"))
        await blobs.delete(digest)
        await blobs.delete(digest)
        assert await blobs.digests() == [other]
        with pytest.raises(NotFound, match=digest):
            await blobs.path(digest)
        assert await blobs.put(pieces(b"one"), digest=digest) == digest
        assert (await blobs.path(digest)).read_bytes() == b"one"

    @pytest.mark.parametrize("name", ["", "../../../etc/passwd", EMPTY[:-1], EMPTY + "0", EMPTY.upper(), EMPTY + "\n"])
    async def test_names_that_are_no_digests(self, blobs: BlobStore, name: str) -> None:
        with pytest.raises(BadDigest, match="64 hex digits"):
            await blobs.path(name)
        with pytest.raises(BadDigest):
            await blobs.put(pieces(b""), digest=name)
        with pytest.raises(BadDigest):
            await blobs.delete(name)
