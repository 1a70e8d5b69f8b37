"""The directory of blobs against the suite, and what is its own: partial uploads, damage, cleaning up."""

import asyncio
import fcntl
import os

import pytest

from tutti.adapters.blobs.directory import PARTIAL_KEPT, DirectoryBlobs
from tutti.adapters.blobs.held import SPARE, HeldBlobs
from tutti.adapters.blobs.layered import LayeredBlobs
from tutti.adapters.blobs.scratch import ScratchBlobs
from tutti.adapters.blobs.sink import BATCH
from tutti.core.errors import Conflict, CorruptBlob, NotFound, StorageError
from tutti.ports.blobs import BadDigest, TooLarge
from tutti.testing.blobs import MEGABYTE, BlobSuite, digest_of, pattern

SMALL, LARGE = pattern(1000), pattern(3 * MEGABYTE + 17)
both_sizes = pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])


def files(blobs, name):
    return sorted((blobs.root / name).iterdir())


class TestDirectoryBlobs(BlobSuite):
    @pytest.fixture
    def blobs(self, tmp_path):
        blobs = DirectoryBlobs(tmp_path / "blobs")
        yield blobs
        assert files(blobs, "tmp") == []


class TestHeldBlobs(BlobSuite):
    @pytest.fixture
    def blobs(self, tmp_path):
        return HeldBlobs(DirectoryBlobs(tmp_path / "blobs"))


class TestLayeredBlobs(BlobSuite):
    @pytest.fixture
    def blobs(self, tmp_path):
        return LayeredBlobs(DirectoryBlobs(tmp_path / "own"), ScratchBlobs(tmp_path / "shared"))


async def test_what_is_shared_is_read_and_stays(tmp_path):
    own, shared = ScratchBlobs(tmp_path / "own"), ScratchBlobs(tmp_path / "shared")
    blobs, digest = LayeredBlobs(own, shared), await shared.put(SMALL)
    assert await blobs.read(digest) == SMALL
    async with blobs.file(digest) as path:
        assert path.read_bytes() == SMALL
    await blobs.delete(digest)
    assert (await blobs.digests(), await shared.digests()) == ([], [digest])


class TestScratchBlobs(BlobSuite):
    @pytest.fixture
    def blobs(self, tmp_path):
        return ScratchBlobs(tmp_path / "blobs")


@pytest.fixture
def blobs(tmp_path):
    blobs = DirectoryBlobs(tmp_path / "blobs")
    yield blobs
    assert files(blobs, "tmp") == []


async def test_damage_is_noticed_by_the_next_process(blobs):
    digest = await blobs.put(SMALL)
    path = blobs.path(digest)
    path.write_bytes(b"X" + SMALL[1:])
    again = DirectoryBlobs(blobs.root)
    with pytest.raises(CorruptBlob, match=f"{digest} has been damaged"):
        await again.read(digest)
    await again.delete(digest)
    with pytest.raises(NotFound):
        await again.read(digest)


async def test_damage_is_not_mended_by_putting_again_without_deleting(blobs):
    digest = await blobs.put(SMALL)
    blobs.path(digest).write_bytes(b"X" + SMALL[1:])
    again = DirectoryBlobs(blobs.root)
    await again.put(SMALL, digest=digest)
    with pytest.raises(CorruptBlob):
        await again.read(digest)


async def test_a_blob_is_never_replaced(blobs):
    path = blobs.path(await blobs.put(SMALL))
    first = path.stat().st_ino
    await blobs.put(SMALL)
    assert path.stat().st_ino == first


async def test_blobs_are_there_after_reopening(blobs):
    digest = await blobs.put(SMALL)
    again = DirectoryBlobs(blobs.root)
    assert await again.digests() == [digest]
    assert (again.path(digest)).read_bytes() == SMALL


async def test_only_files_of_the_dead_are_cleaned_up(blobs):
    (blobs.root / "tmp" / "of-a-killed-process").write_bytes(SMALL)
    living = blobs.root / "tmp" / "of-a-living-process"
    with living.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        DirectoryBlobs(blobs.root)
        assert files(blobs, "tmp") == [living]
    living.unlink()


def test_a_directory_that_cannot_be_used(tmp_path):
    (tmp_path / "blobs").write_text("a file")
    with pytest.raises(StorageError, match="cannot use the blob directory"):
        DirectoryBlobs(tmp_path / "blobs")


async def test_a_blob_directory_that_vanished(tmp_path):
    blobs = DirectoryBlobs(tmp_path / "blobs")
    (tmp_path / "blobs" / "tmp").rmdir()
    with pytest.raises(StorageError, match=r"cannot store.*nothing was stored"):
        await blobs.put(SMALL)


# -- partial uploads ---------------------------------------------------------------------------------


async def pieces(data, size=65536):
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def broken(data):
    """A stream whose sender goes away at the end of `data`."""
    async for piece in pieces(data):
        yield piece
    raise ConnectionResetError("the sender went away")


async def stalled(data, reached):
    """A stream that tells when it is through, and never ends."""
    async for piece in pieces(data):
        yield piece
    reached.set()
    await asyncio.Event().wait()


async def write(partial, data, *, offset=0, total=None, limit=None, source=pieces):
    return await partial.write(
        source(data[offset:]), offset=offset, total=len(data) if total is None else total, limit=limit
    )


@both_sizes
async def test_an_upload_in_one_go(blobs, data):
    partial = blobs.partial(digest_of(data), "n1")
    assert partial.size == 0
    assert await write(partial, data) is True
    assert partial.size == 0
    assert blobs.path(digest_of(data)).read_bytes() == data
    assert files(blobs, "partial") == []


async def test_an_upload_of_nothing(blobs):
    assert await write(blobs.partial(digest_of(b""), "n1"), b"") is True


@both_sizes
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
async def test_an_upload_goes_on_where_it_broke_off(blobs, data, share):
    broke = int(share * len(data))
    partial = blobs.partial(digest_of(data), "n1")
    with pytest.raises(ConnectionResetError):
        await write(partial, data[:broke], total=len(data) + 1, source=broken)
    assert partial.size == broke
    assert await blobs.digests() == []
    after_restart = DirectoryBlobs(blobs.root).partial(digest_of(data), "n1")
    assert after_restart.size == broke
    assert await write(after_restart, data, offset=broke) is True
    assert blobs.path(digest_of(data)).read_bytes() == data


async def test_a_stream_that_ends_early_is_kept(blobs):
    partial = blobs.partial(digest_of(LARGE), "n1")
    assert await write(partial, LARGE[:MEGABYTE], total=len(LARGE)) is False
    assert partial.size == MEGABYTE
    assert await write(partial, LARGE[: 2 * MEGABYTE], offset=MEGABYTE, total=len(LARGE)) is False
    assert await write(partial, LARGE, offset=2 * MEGABYTE) is True


async def test_an_upload_may_start_again_below_its_end(blobs):
    partial = blobs.partial(digest_of(LARGE), "n1")
    await write(partial, b"\0" * (2 * MEGABYTE), total=len(LARGE))
    assert await write(partial, LARGE) is True
    assert blobs.path(digest_of(LARGE)).read_bytes() == LARGE


async def test_an_upload_cannot_leave_a_gap(blobs):
    partial = blobs.partial(digest_of(SMALL), "n1")
    await write(partial, SMALL[:10], total=len(SMALL))
    with pytest.raises(Conflict, match="10 bytes of this upload are here"):
        await write(partial, SMALL, offset=11)
    assert partial.size == 10


@both_sizes
async def test_a_corrupt_upload_is_thrown_away(blobs, data):
    partial = blobs.partial(digest_of(b"something else"), "n1")
    with pytest.raises(CorruptBlob, match=digest_of(data)):
        await write(partial, data)
    assert partial.size == 0
    assert files(blobs, "partial") == []
    assert await blobs.digests() == []


async def test_an_upload_that_is_too_large(blobs):
    partial = blobs.partial(digest_of(SMALL), "n1")
    with pytest.raises(TooLarge, match="999"):
        await write(partial, SMALL, limit=999)
    assert files(blobs, "partial") == []
    with pytest.raises(TooLarge, match="900"):
        await write(partial, SMALL, total=900)


async def test_owners_do_not_disturb_each_other(blobs):
    mine, theirs = (blobs.partial(digest_of(SMALL), owner) for owner in ("n1", "../n2"))
    await write(theirs, b"spoilt", total=len(SMALL))
    assert mine.size == 0
    assert await write(mine, SMALL) is True
    assert await write(theirs, SMALL, offset=6) is True
    assert files(blobs, "partial") == []


async def test_what_is_there_is_not_read_again(blobs):
    digest = await blobs.put(SMALL)
    assert await blobs.partial(digest, "n1").write(broken(b""), offset=0, total=len(SMALL)) is True


async def test_the_newest_connection_takes_an_upload_over(blobs):
    digest, reached = digest_of(LARGE), asyncio.Event()
    go_on = asyncio.Event()

    async def hanging():
        yield LARGE[:BATCH]
        reached.set()
        await go_on.wait()
        yield LARGE[BATCH:]

    old = asyncio.ensure_future(blobs.partial(digest, "n1").write(hanging(), offset=0, total=len(LARGE)))
    await reached.wait()
    new = blobs.partial(digest, "n1")
    assert new.size == BATCH
    assert await write(new, LARGE, offset=BATCH) is True
    go_on.set()
    with pytest.raises(Conflict, match="took this upload over"):
        await old
    assert blobs.path(digest).read_bytes() == LARGE
    assert files(blobs, "partial") == []


@both_sizes
async def test_a_cancelled_upload_can_be_resumed(blobs, data):
    partial, reached = blobs.partial(digest_of(data), "n1"), asyncio.Event()
    uploading = asyncio.ensure_future(partial.write(stalled(data[:-1], reached), offset=0, total=len(data)))
    await reached.wait()
    uploading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await uploading
    assert await write(partial, data, offset=partial.size) is True


async def test_uploads_that_nobody_continues_are_given_up(blobs):
    old, young = (blobs.partial(digest_of(SMALL), owner) for owner in ("old", "young"))
    await write(old, SMALL[:1], total=len(SMALL))
    (path,) = files(blobs, "partial")
    stale = path.stat().st_mtime - PARTIAL_KEPT - 1
    os.utime(path, (stale, stale))
    await write(young, SMALL[:2], total=len(SMALL))
    DirectoryBlobs(blobs.root)
    assert (old.size, young.size) == (0, 2)


async def test_names_that_are_no_digests(blobs):
    with pytest.raises(BadDigest):
        blobs.partial("../" + digest_of(SMALL), "n1")


async def test_an_owner_has_one_unfinished_upload(blobs):
    for data in (LARGE, LARGE[1:], LARGE[2:]):
        assert await write(blobs.partial(digest_of(data), "n1"), data[:BATCH], total=len(data)) is False
    assert await write(blobs.partial(digest_of(LARGE), "n2"), LARGE[:BATCH], total=len(LARGE)) is False
    assert len(files(blobs, "partial")) == 2


# -- blobs that are held in memory ---------------------------------------------------------------------


async def test_what_is_held_is_read_without_a_file_until_there_is_no_room(tmp_path):
    disk = DirectoryBlobs(tmp_path / "blobs")
    blobs = HeldBlobs(disk, room=2 * MEGABYTE)
    held = [bytes([number]) * MEGABYTE for number in range(3)]
    for data in held:
        await blobs.hold(digest_of(data), data)
        assert await blobs.read(digest_of(data)) == data
    assert await disk.digests() == [digest_of(held[0])]  # the oldest
    assert set(await blobs.digests()) == {digest_of(data) for data in held}
    assert [await blobs.part(digest_of(data), MEGABYTE - 2, 9) for data in held] == [
        (MEGABYTE, data[:2]) for data in held
    ]
    async with blobs.file(digest_of(held[2])) as path:
        assert path.read_bytes() == held[2]
    await blobs.delete(*map(digest_of, held))
    assert await blobs.digests() == []
    with pytest.raises(NotFound):
        await blobs.part(digest_of(held[0]), 0, 9)


async def test_of_what_others_have_too_only_the_newest_are_held(tmp_path):
    blobs = HeldBlobs(DirectoryBlobs(tmp_path / "blobs"))
    models = [bytes([number]) * 10 for number in range(SPARE + 2)]
    for data in models:
        await blobs.hold(digest_of(data), data, spare=True)
    assert [blobs.has(digest_of(data)) for data in models] == [False, False, *[True] * SPARE]


@pytest.mark.parametrize("largest", [MEGABYTE, 4 * MEGABYTE], ids=["on disk", "in memory"])
async def test_pieces_make_a_blob(tmp_path, largest):
    disk = DirectoryBlobs(tmp_path / "blobs")
    blobs = HeldBlobs(disk, largest=largest)
    upload = blobs.pieces(digest_of(LARGE), len(LARGE))
    starts = range(0, len(LARGE), 65536)
    taken = await asyncio.gather(*(upload.take(start, LARGE[start : start + 65536]) for start in starts))
    assert taken == [False] * (len(starts) - 1) + [True]
    assert bytes(await blobs.read(digest_of(LARGE))) == LARGE
    assert disk.has(digest_of(LARGE)) == (largest == MEGABYTE)
    again = blobs.pieces(digest_of(SMALL), len(LARGE))
    with pytest.raises(Conflict, match="0 bytes of this upload are here"):
        await again.take(7, LARGE[7:])
    with pytest.raises(CorruptBlob):
        await again.take(0, LARGE)
    with pytest.raises(Conflict, match="was given up"):
        await again.take(len(LARGE), b"")
    assert not blobs.has(digest_of(SMALL))
    assert files(disk, "tmp") == []
