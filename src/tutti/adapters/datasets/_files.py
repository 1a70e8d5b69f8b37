"""Where the files of a known data set lie, whether they are the right ones, and where to get them."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tutti.adapters.datasets._common import BadData
from tutti.core.registry import BadOption


@dataclass(frozen=True, slots=True)
class File:
    """One original file: its name, what it hashes to (`sha256:…` or `md5:…`) and its public address, if any."""

    name: str
    digest: str = ""
    url: str = ""


def locate(dataset: str, files: Sequence[File], path: str, *, download: bool = False, source: str = "") -> list[Path]:
    """The files, all in one folder, checked; raises BadData saying where they were looked for and where to get them.

    Looked for in `path`, or else in the folders $TUTTI_DATA_DIR and ../shared/data, directly or in a subfolder named
    like the data set. With `download` they are fetched into $TUTTI_DATA_DIR if they are not there yet.
    """
    searched = folders(dataset, path)
    for folder in searched:
        if all((folder / file.name).is_file() for file in files):
            return [_checked(folder / file.name, file) for file in files]
    if download:
        return _fetched(dataset, files)
    where = source or "; ".join(file.url for file in files if file.url)
    fetch = ", or download=true" if all(file.url for file in files) else ""
    raise BadData(
        f"{dataset}: expected {', '.join(file.name for file in files)} in one of {', '.join(map(str, searched))}; "
        f"give path=…, or set TUTTI_DATA_DIR to the folder that has them{fetch}" + (f" (from {where})" if where else "")
    )


def folders(dataset: str, path: str) -> list[Path]:
    """Where to look for a data set, in order."""
    roots = [path] if path else [os.environ.get("TUTTI_DATA_DIR", ""), "../shared/data"]
    return [folder for root in roots if root for folder in (Path(root), Path(root) / dataset)]


def _checked(path: Path, file: File) -> Path:
    if file.digest and (came := digest(path, file.digest.partition(":")[0])) != file.digest:
        raise BadData(
            f"{path}: expected {file.digest}, came {came}; it is damaged or another version: fetch the original again, "
            "or read a file of your own with the sources csv, parquet, npz, idx or images"
        )
    return path


def digest(path: Path, algorithm: str) -> str:
    """`algorithm:hex` of a file's bytes."""
    try:
        with path.open("rb") as file:
            return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"
    except OSError as error:
        raise BadData(f"{path}: cannot be read: {error}") from error


def _fetched(dataset: str, files: Sequence[File]) -> list[Path]:
    """Only into the folder that this machine's owner has named: a job may ask for a download, not for a place."""
    from tutti.adapters.datasets._download import download

    if missing := [file.name for file in files if not file.url]:
        raise BadOption(f"{dataset}: download=true, but {missing[0]} has no public address; get it by hand")
    root = os.environ.get("TUTTI_DATA_DIR", "")
    if not root:
        raise BadOption(f"{dataset}: download=true needs TUTTI_DATA_DIR to be set to the folder that shall hold it")
    folder = Path(root) / dataset
    return [_checked(download(file.url, folder / file.name, file.digest), file) for file in files]
