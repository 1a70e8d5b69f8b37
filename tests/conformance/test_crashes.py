"""Real processes, killed with SIGKILL while they store, or out of space: what was acknowledged is there, whole."""

import shutil
import subprocess
import sys
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import pytest
from blake3 import blake3
from victim import EVENTS_IN_BATCH, pattern

from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.adapters.logs.group import LogInUse
from tutti.adapters.logs.sqlite import SqliteLog
from tutti.testing.logs import news

VICTIM = [sys.executable, str(Path(__file__).with_name("victim.py"))]


@contextmanager
def victim(kind, directory):
    process = subprocess.Popen([*VICTIM, kind, str(directory)], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def acknowledged(kind, directory, lines):
    """What a victim had acknowledged when it was killed, in the middle of its work, after some lines."""
    with victim(kind, directory) as process:
        seen = [process.stdout.readline() for _ in range(lines)]
        process.kill()
        seen += process.stdout.readlines()  # written before it died
    return [line.split() for line in seen if line.endswith("\n")]


def check_batches(recorded, acks):
    """Each stream holds whole batches, all that were acknowledged, and at most one that was not."""
    streams = defaultdict(list)
    for each in recorded:
        streams[each.stream].append(each.event)
    for stream in {stream for stream, _ in acks}:
        batches, rest = divmod(len(streams[stream]), EVENTS_IN_BATCH)
        assert rest == 0
        assert batches - 1 - max(int(i) for s, i in acks if s == stream) in (0, 1)
        assert streams[stream] == [event for i in range(batches) for event in news(EVENTS_IN_BATCH, first=i)]


async def read_all(log):
    recorded = []
    while batch := await log.read(len(recorded)):
        recorded += batch
    return recorded


@pytest.mark.parametrize("lines", [1, 40, 900])
async def test_a_log_survives_sigkill(tmp_path, lines):
    acks = acknowledged("log", tmp_path, lines)
    log = await SqliteLog.open(tmp_path / "events.db")
    check_batches(await read_all(log), acks)
    await log.append("again", 0, news(1))
    await log.close()


async def test_a_killed_owner_gives_the_log_free(tmp_path):
    path = tmp_path / "events.db"
    with victim("log", tmp_path) as process:
        process.stdout.readline()
        with pytest.raises(LogInUse, match=f"process {process.pid}"):
            await SqliteLog.open(path)
    log = await SqliteLog.open(path)
    await log.close()


@pytest.mark.parametrize("lines", [1, 7])
async def test_blobs_survive_sigkill(tmp_path, lines):
    acks = acknowledged("blobs", tmp_path, lines)
    blobs = DirectoryBlobs(tmp_path)
    held = await blobs.digests()
    assert {digest for digest, _ in acks} <= set(held)
    for digest in held:
        await blobs.read(digest)
    assert not list((tmp_path / "tmp").iterdir())


def starved(*command):
    """What a starved victim had acknowledged, the error that it met, and how much its store holds at the end."""
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    *lines, holds = ended.stdout.splitlines()
    (full,) = [i for i, line in enumerate(lines) if line.startswith("full ")]
    assert 0 < full == len(lines) - 2, "some fit before the disk was full, one after"
    return [line.split() for line in lines if line != lines[full]], lines[full], int(holds.split()[1])


async def test_a_log_goes_on_after_a_failed_write(tmp_path):
    acks, error, holds = starved(*VICTIM, "log", str(tmp_path), "limit", "200000")
    assert "cannot write the event log" in error
    assert "nothing was recorded" in error
    log = await SqliteLog.open(tmp_path / "events.db")
    recorded = await read_all(log)
    assert len(recorded) == len(acks) * EVENTS_IN_BATCH == holds
    check_batches(recorded, acks)
    await log.close()


async def test_blobs_go_on_after_a_failed_write(tmp_path):
    acks, error, holds = starved(*VICTIM, "blobs", str(tmp_path), "limit", "1000000")
    assert "nothing was stored" in error
    assert [digest for digest, _ in acks] == [blake3(pattern(int(i))).hexdigest() for _, i in acks]
    assert set(await DirectoryBlobs(tmp_path).digests()) == {digest for digest, _ in acks}
    assert holds == len(acks)


@pytest.fixture
def small_disk(tmp_path):
    """A command prefix: what follows sees a disk of 8 MB at `tmp_path`, which is gone afterwards."""
    mount = f'mount -t tmpfs -o size=8m none {tmp_path} && exec "$@"'
    prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a disk of their own")
    return prefix


@pytest.mark.parametrize(("kind", "free", "each"), [("log", 100_000, EVENTS_IN_BATCH), ("blobs", 1_000_000, 1)])
def test_a_full_disk(tmp_path, small_disk, kind, free, each):
    acks, error, holds = starved(*small_disk, *VICTIM, kind, str(tmp_path), "ballast", str(free))
    assert "full" in error or "No space left" in error
    assert "free some space" in error
    assert holds == each * len(acks)
