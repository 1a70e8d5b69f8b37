"""A data directory in one file, and back: every byte is verified on both ways.

The databases are copied while a coordinator runs (SQLite's own backup, each consistent in itself), blobs are
copied before and after, so that everything that the copied log names is there. The file is a tar archive; its last
member, `manifest.json`, has the digest of each other one.
"""

import io
import re
import sqlite3
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
from blake3 import blake3

from tutti.core.errors import Conflict, NotFound, StorageError, UserError
from tutti.version import __version__

MANIFEST = "manifest.json"
DATABASES = ("log.sqlite", "accounts.sqlite", "ledger.sqlite", "chain.sqlite", "chain-sent.sqlite")
SECRETS = ("operator-token", "session-key", "ledger.key", "chain.key", "chain.json")
_NAMES = re.compile(r"blobs/[0-9a-f]{2}/[0-9a-f]{64}|" + "|".join(map(re.escape, (*DATABASES, *SECRETS))))
_BLOBS = "[0-9a-f][0-9a-f]/*"

Progress = Callable[[str], None]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`files` by name, with the BLAKE3 digest of each."""

    version: str
    files: dict[str, str]


class BadBackup(UserError):
    """The file is no backup, is not whole, or was changed."""


def backup(data_dir: Path, file: Path, progress: Progress = lambda name: None) -> Manifest:
    """Write a backup; the file is there whole or not at all. Raises NotFound, Conflict, StorageError."""
    if not any((data_dir / name).is_file() for name in ("log.sqlite", "ledger.key", "operator-token")):
        raise NotFound(f"{data_dir} is no data directory of a coordinator: it has neither log.sqlite nor a secret")
    if file.exists():
        raise Conflict(f"{file} is there already: choose another name")
    partial = file.with_name(f".{file.name}.partial")
    with _storage_errors(f"write {file}"):
        try:
            with tarfile.open(partial, "w") as archive:
                writer = _Writer(archive, progress)
                writer.add_blobs(data_dir)
                for name in DATABASES:
                    if (data_dir / name).is_file():
                        writer.add_bytes(name, _copied(data_dir / name))
                writer.add_blobs(data_dir)
                for name in SECRETS:
                    if (data_dir / name).is_file():
                        writer.add_bytes(name, (data_dir / name).read_bytes())
                manifest = writer.finish()
            partial.chmod(0o600)
            partial.rename(file)
        finally:
            partial.unlink(missing_ok=True)
    return manifest


class _Writer:
    def __init__(self, archive: tarfile.TarFile, progress: Progress) -> None:
        self._archive, self._progress = archive, progress
        self._files: dict[str, str] = {}

    def add_blobs(self, data_dir: Path) -> None:
        """Those that are not in yet; one that is deleted meanwhile was not needed."""
        for path in sorted((data_dir / "blobs").glob(_BLOBS)):
            name = f"blobs/{path.parent.name}/{path.name}"
            if name not in self._files and _NAMES.fullmatch(name):
                try:
                    data = path.read_bytes()
                except FileNotFoundError:
                    continue
                if blake3(data).hexdigest() != path.name:
                    raise StorageError(f"blob {path.name} has been damaged on disk: look after it before the backup")
                self.add_bytes(name, data)

    def add_bytes(self, name: str, data: bytes) -> None:
        self._add(name, data)
        self._files[name] = blake3(data).hexdigest()
        self._progress(name)

    def finish(self) -> Manifest:
        manifest = Manifest(version=__version__, files=self._files)
        self._add(MANIFEST, msgspec.json.encode(manifest))
        return manifest

    def _add(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(data), 0o600
        self._archive.addfile(member, io.BytesIO(data))


def restore(file: Path, data_dir: Path, progress: Progress = lambda name: None) -> Manifest:
    """Make a data directory from a backup, all of it or nothing; raises BadBackup, Conflict, StorageError."""
    if data_dir.exists() and any(data_dir.iterdir()):
        raise Conflict(f"{data_dir} is not empty: restore into a new directory")
    with (
        _storage_errors(f"restore {file}"),
        tempfile.TemporaryDirectory(prefix=f".{data_dir.name}.", dir=_made(data_dir.parent)) as folder,
    ):
        root = Path(folder) / "data"
        manifest = _unpacked(file, root, progress)
        for name in DATABASES:
            if name in manifest.files:
                _check(root / name)
        if data_dir.exists():
            data_dir.rmdir()
        root.rename(data_dir)
    return manifest


def _unpacked(file: Path, root: Path, progress: Progress) -> Manifest:
    found: dict[str, str] = {}
    manifest: Manifest | None = None
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                data = _bytes_of(archive, member)
                if member.name == MANIFEST:
                    manifest = msgspec.json.decode(data, type=Manifest)
                    continue
                target = root / member.name
                target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                target.write_bytes(data)
                target.chmod(0o600)
                found[member.name] = blake3(data).hexdigest()
                progress(member.name)
    except (tarfile.TarError, EOFError, msgspec.MsgspecError) as error:
        raise BadBackup(f"{file} is no backup of Tutti that can be read: {error}") from None
    if manifest is None:
        raise BadBackup(f"{file} has no manifest: it is not whole")
    if wrong := sorted(
        name for name in found.keys() | manifest.files.keys() if found.get(name) != manifest.files.get(name)
    ):
        raise BadBackup(f"{file} is not as it was written: {len(wrong)} files differ, the first is {wrong[0]}")
    return manifest


def _bytes_of(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Names are those that `backup` writes, and nothing but files."""
    opened = archive.extractfile(member) if member.isreg() else None
    if opened is None or not (member.name == MANIFEST or _NAMES.fullmatch(member.name)):
        raise BadBackup(f"the backup has a member {member.name[:200]!r}, which none of ours has")
    return opened.read()


def _copied(path: Path) -> bytes:
    """A database as it is at one moment, whoever writes to it."""
    with tempfile.NamedTemporaryFile(prefix="tutti-backup-") as copy:
        with (
            closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(copy.name)) as target,
        ):
            source.backup(target)
        return Path(copy.name).read_bytes()


def _check(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        (verdict,) = db.execute("PRAGMA integrity_check").fetchone()
    if verdict != "ok":
        raise BadBackup(f"the database {path.name} of the backup is damaged: {verdict}")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _storage_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StorageError(f"cannot {doing}: {error}") from error
    except OSError as error:
        raise StorageError(f"cannot {doing}: {error.strerror or error}") from error
