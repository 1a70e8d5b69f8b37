"""Blobs on a real S3 server: against the suite, by pre-signed addresses, and what people get wrong."""

import asyncio
import re
import secrets
import shlex
import shutil
import subprocess
import time
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from support.services import S3, bucket, missing, overwrite
from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.adapters.blobs.mirrored import MirroredBlobs
from tutti.adapters.blobs.s3 import S3Blobs
from tutti.adapters.fabrics.bucket import BucketDepot
from tutti.adapters.logs.memory import MemoryLog
from tutti.core.errors import CorruptBlob, NotFound, StorageError, UserError
from tutti.ports.blobs import TooLarge
from tutti.services.journal import Journal
from tutti.services.keeping import BlobKeeper
from tutti.testing.blobs import MEGABYTE, BlobSuite, digest_of, pattern

ROOT = Path(__file__).parents[2]
DATA = pattern(20_000)
LARGE = pattern(17 * MEGABYTE)


@pytest.fixture
async def url(monkeypatch):
    async with bucket(monkeypatch) as url:
        yield url


@pytest.fixture
async def blobs(url):
    return await S3Blobs.open(url)


class TestS3Blobs(BlobSuite):
    @pytest.fixture
    async def blobs(self, url):
        return await S3Blobs.open(url)


class TestMirroredBlobs(BlobSuite):
    @pytest.fixture
    async def blobs(self, url, tmp_path):
        return MirroredBlobs(tmp_path / "blobs", await S3Blobs.open(url))


async def test_a_large_blob_goes_in_parts_and_is_mapped(blobs, url):
    digest = await blobs.put(LARGE)
    again = await S3Blobs.open(url)
    assert bytes(await again.read(digest)) == LARGE
    assert await blobs.put(memoryview(LARGE), digest=digest) == digest


async def test_damage_is_noticed(blobs):
    digest, other = await blobs.put(DATA), digest_of(b"announced")
    await overwrite(blobs, other, DATA)
    with pytest.raises(CorruptBlob, match=digest):
        await blobs.read(other)
    await blobs.delete(other)
    assert await blobs.digests() == [digest]


async def test_a_lost_directory_is_filled_again(url, tmp_path):
    far = await S3Blobs.open(url)
    model, update = b"a model", b"an update"
    mirrored = MirroredBlobs(tmp_path / "one", far)
    await asyncio.gather(mirrored.put(model), mirrored.put(update, sync=False))
    assert await far.digests() == [digest_of(model)]
    again = MirroredBlobs(tmp_path / "two", far)
    assert await again.read(digest_of(model)) == model
    assert again.path(digest_of(model)).read_bytes() == model
    with pytest.raises(NotFound):
        await again.read(digest_of(update))


# -- pre-signed addresses ----------------------------------------------------------------------------------


async def test_a_link_reads_one_blob_and_its_ranges(blobs):
    digest, other = await blobs.put(DATA), await blobs.put(b"other")
    link = await blobs.link(digest, 60)
    async with httpx.AsyncClient() as client:
        assert (await client.get(link)).content == DATA
        part = await client.get(link, headers={"Range": "bytes=100-"})
        assert (part.status_code, part.content) == (206, DATA[100:])
        assert (await client.get(link.replace(digest, other))).status_code == 403
        assert (await client.put(link, content=b"else")).status_code == 403
        assert (await client.get(link.replace("X-Amz-Expires=60", "X-Amz-Expires=600"))).status_code == 403
        assert (await client.get(link.partition("?")[0])).status_code == 403
    with pytest.raises(NotFound):
        await blobs.link(digest_of(b"nothing"), 60)


async def test_a_link_expires(blobs):
    link = await blobs.link(await blobs.put(DATA), 1)
    assert parse_qs(urlsplit(link).query)["X-Amz-Expires"] == ["1"]
    async with httpx.AsyncClient() as client, asyncio.timeout(20):
        while (await client.get(link)).status_code != 403:
            pass


@pytest.fixture
async def mirrored(url, tmp_path):
    return MirroredBlobs(tmp_path / "blobs", await S3Blobs.open(url))


async def uploaded(blobs: MirroredBlobs, node: str, name: str, data: bytes) -> None:
    async with httpx.AsyncClient() as client:
        (await client.put(await blobs.far.upload_link(node, name, 60), content=data)).raise_for_status()


async def is_uploaded(far: S3Blobs, node: str, name: str) -> bool:
    try:
        await far.uploaded(node, name)
    except NotFound:
        return False
    return True


@pytest.mark.parametrize("data", [DATA, LARGE], ids=["small", "large"])
async def test_an_upload_is_a_blob_once_it_is_taken_in(mirrored, data):
    digest = digest_of(data)
    await uploaded(mirrored, "n1", "update", data)
    assert await mirrored.digests() == []
    with pytest.raises(NotFound):
        await mirrored.take_in(digest, "n2", "update", len(data))
    await mirrored.take_in(digest, "n1", "update", len(data))
    await uploaded(mirrored, "n2", "update", b"garbage")
    await mirrored.take_in(digest, "n2", "update", len(data))
    assert bytes(await mirrored.read(digest)) == data
    await mirrored.far.forget_upload("n1", "update")
    with pytest.raises(NotFound):
        await mirrored.far.uploaded("n1", "update")


async def test_uploads_that_are_not_what_they_should_be_are_no_blobs(mirrored):
    await uploaded(mirrored, "n1", "update", DATA)
    with pytest.raises(TooLarge, match="at most 100 bytes"):
        await mirrored.take_in(digest_of(DATA), "n1", "update", 100)
    with pytest.raises(CorruptBlob):
        await mirrored.take_in(digest_of(b"other"), "n1", "update", len(DATA))
    assert await mirrored.digests() == []


async def test_uploads_that_nobody_handed_in_are_forgotten_after_a_while(mirrored, monkeypatch):
    await uploaded(mirrored, "n1", "update", DATA)
    await mirrored.far.forget_old_uploads()
    await mirrored.far.uploaded("n1", "update")
    monkeypatch.setattr("tutti.adapters.blobs.s3.INCOMING_KEPT", timedelta(0))
    await mirrored.far.forget_old_uploads()
    with pytest.raises(NotFound):
        await mirrored.far.uploaded("n1", "update")


async def test_old_uploads_are_cleared_away_now_and_then_also_if_a_look_fails(mirrored, monkeypatch, caplog):
    await uploaded(mirrored, "n1", "update", DATA)
    depot = BucketDepot(mirrored, lambda node, digest: False, lambda node: 0)
    here, away = mirrored.far, S3Blobs(f"s3://tutti-no-such-bucket?endpoint={S3}")
    monkeypatch.setattr("tutti.adapters.fabrics.bucket.TIDY_SECONDS", 0.01)
    monkeypatch.setattr("tutti.adapters.blobs.s3.INCOMING_KEPT", timedelta(0))
    mirrored.far = away
    tidying = asyncio.create_task(depot.keep_tidy())
    async with asyncio.timeout(20):
        while "no such bucket" not in caplog.text:
            await here.uploaded("n1", "update")
        mirrored.far = here
        while await is_uploaded(here, "n1", "update"):
            pass
    assert not tidying.done()
    tidying.cancel()


async def test_blobs_that_nobody_needs_are_swept_out_of_the_bucket(url, tmp_path, monkeypatch, caplog):
    """By the loop that a coordinator runs, whose first look fails; what a job needs stays."""
    monkeypatch.setattr("tutti.services.keeping.SWEEP_SECONDS", 0.01)
    blobs = MirroredBlobs(tmp_path, await S3Blobs.open(url))
    needed, orphan = await blobs.put(b"a model"), await blobs.put(b"a model that nobody knows")
    update = await blobs.put(b"an update that came late", sync=False)
    keeper = BlobKeeper(blobs, Journal(MemoryLog(), time.time))
    keeper.retained = lambda: {needed}
    here, blobs.far = blobs.far, S3Blobs(f"s3://tutti-no-such-bucket?endpoint={S3}")
    looks = []

    async def tidy():
        looks.append(None)

    sweeping = asyncio.create_task(keeper.sweep(tidy))
    async with asyncio.timeout(20):
        while "cannot clear away old blobs" not in caplog.text:
            assert orphan in await here.digests()
        blobs.far = here
        while orphan in await blobs.far.digests() or update in await blobs.digests():
            pass
    sweeping.cancel()
    assert looks
    assert await blobs.far.digests() == await DirectoryBlobs(tmp_path).digests() == [needed]


async def test_a_bucket_is_made_as_documented(url):
    (line,) = re.findall(r"^\$ (curl -X PUT .*)$", (ROOT / "docs" / "broker.md").read_text(), re.MULTILINE)
    name = f"tutti-test-{secrets.token_hex(6)}"
    curl = shutil.which("curl") or missing("curl", "not installed")
    command = [curl, "-sf", *shlex.split(line)[1:]]
    command[-1] = f"{S3}/{name}"
    for method in ("PUT", "DELETE"):
        command[command.index("-X") + 1] = method
        await asyncio.to_thread(subprocess.run, command, timeout=20, check=True)
        if method == "PUT":
            assert await (await S3Blobs.open(f"s3://{name}?endpoint={S3}")).digests() == []


# -- what people get wrong ---------------------------------------------------------------------------------


async def test_a_bucket_that_is_not_there(url):
    with pytest.raises(UserError, match="s3://tutti-no-such-bucket: there is no such bucket: make it first"):
        await S3Blobs.open(f"s3://tutti-no-such-bucket?endpoint={S3}")


async def test_a_wrong_key(url, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UserError, match=r"access denied.*check AWS_ACCESS_KEY_ID"):
        await S3Blobs.open(url)


async def test_the_bucket_of_an_address_without_a_store_is_one_at_aws(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "who")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "what")
    S3Blobs("s3://bucket/prefix?region=eu-central-1")


async def test_a_store_that_does_not_answer(monkeypatch, url):
    with pytest.raises(StorageError, match="look after the store"):
        await S3Blobs.open("s3://bucket?endpoint=http://127.0.0.1:1")


@pytest.mark.parametrize("wrong", ["s3://", "http://bucket", "s3://key:secret@bucket", "s3://bucket?endpiont=x"])
async def test_addresses_that_are_none(wrong):
    with pytest.raises(UserError, match="expected a bucket such as"):
        await S3Blobs.open(wrong)
