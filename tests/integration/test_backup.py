"""Backups of a coordinator that runs, restored elsewhere, and what is refused."""

import io
import os
import tarfile
from contextlib import closing
from pathlib import Path

import pytest

from support.worlds import World, toy_spec
from tutti.adapters.logs.sqlite import SqliteLog
from tutti.apps.backup import MANIFEST, BadBackup, backup, restore
from tutti.core.errors import Conflict, NotFound


async def made(folder: Path) -> tuple[Path, str]:
    """A backup taken while the coordinator runs, and the model of its job."""
    world = World(folder)
    await world.up()
    for part in range(3):
        await world.join(f"n{part}", part)
    job = await world.finished(await world.core.submit(toy_spec()))
    (folder / "operator-token").write_text("secret")
    backup(folder, folder.parent / "backup.tar")
    await world.close()
    return folder.parent / "backup.tar", job.model


async def test_everything_comes_back(tmp_path):
    file, model = await made(tmp_path / "data")
    assert file.stat().st_mode & 0o077 == 0
    manifest = restore(file, tmp_path / "new" / "data")
    assert {"log.sqlite", "ledger.sqlite", "ledger.key", "operator-token"} <= manifest.files.keys()
    again = World(tmp_path / "new" / "data")
    await again.up()
    (job,) = again.core.jobs.values()
    assert (job.status, job.model) == ("completed", model)
    assert len(await again.core.blobs.read(model)) > 0
    await again.close()
    assert (tmp_path / "new" / "data" / "operator-token").stat().st_mode & 0o077 == 0


async def test_a_backup_that_was_changed_is_refused_and_nothing_is_restored(tmp_path):
    file, _ = await made(tmp_path / "data")
    whole = file.read_bytes()
    for spoiled in (whole[: len(whole) // 2], b"no archive at all", whole.replace(b"NodeJoined", b"NodeJoinef")):
        file.write_bytes(spoiled)
        with pytest.raises(BadBackup):
            restore(file, tmp_path / "new")
        assert not (tmp_path / "new").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup.tar", "data"]


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "blobs/ab/../../evil", "notes.txt"])
def test_members_of_other_names_are_refused(tmp_path, name):
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        member = tarfile.TarInfo(name)
        member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(BadBackup, match="none of ours"):
        restore(tmp_path / "b.tar", tmp_path / "new")


def test_where_the_events_are_in_postgresql_secrets_are_backed_up(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ledger.key").write_text("secret")
    assert backup(tmp_path / "data", tmp_path / "b.tar").files.keys() == {"ledger.key"}
    restore(tmp_path / "b.tar", tmp_path / "new")
    assert (tmp_path / "new" / "ledger.key").read_text() == "secret"


def test_what_cannot_be_done(tmp_path):
    with pytest.raises(NotFound, match="no data directory"):
        backup(tmp_path, tmp_path / "b.tar")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(Conflict, match="not empty"):
        restore(tmp_path / "b.tar", tmp_path / "full")


async def test_a_backup_never_overwrites(tmp_path):
    log = await SqliteLog.open(tmp_path / "data" / "log.sqlite")
    (tmp_path / "b.tar").touch()
    with pytest.raises(Conflict, match="choose another name"):
        backup(tmp_path / "data", tmp_path / "b.tar")
    await log.close()
    os.unlink(tmp_path / "b.tar")
    backup(tmp_path / "data", tmp_path / "b.tar")
    with closing(tarfile.open(tmp_path / "b.tar")) as archive:
        assert archive.getnames()[-1] == MANIFEST
