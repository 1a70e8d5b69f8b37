"""Fetching a file of a data set: with progress, checked before it takes its place."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

import httpx
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from tutti.adapters.datasets._common import BadData

TIMEOUT = 30.0
LARGEST = 2**32


def download(url: str, target: Path, digest: str) -> Path:
    """`target`, fetched from `url` unless it is there; raises BadData if it cannot be had or hashes to another value.

    `digest` is `sha256:…` or `md5:…`. Progress goes to standard error where that is a terminal.
    """
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _arriving(target) as file:
            _fetch(url, file, digest)
    except (httpx.HTTPError, OSError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise BadData(f"{url}: cannot be downloaded: {reason}; fetch it by hand into {target.parent}") from error
    return target


def _fetch(url: str, file: IO[bytes], digest: str) -> None:
    algorithm = digest.partition(":")[0]
    sum_ = hashlib.new(algorithm)
    with httpx.stream("GET", url, follow_redirects=True, timeout=TIMEOUT) as response, _progress() as progress:
        response.raise_for_status()
        length = int(response.headers.get("content-length", 0)) or None
        bar = progress.add_task(url.rpartition("/")[2], total=length)
        for chunk in response.iter_bytes():
            file.write(chunk)
            sum_.update(chunk)
            progress.advance(bar, len(chunk))
            if file.tell() > LARGEST:
                raise BadData(f"{url}: more than {LARGEST} bytes came; this cannot be the file")
    if (came := f"{algorithm}:{sum_.hexdigest()}") != digest:
        raise BadData(f"{url}: expected {digest}, came {came}; the file there is damaged or was replaced")


@contextmanager
def _arriving(target: Path) -> Iterator[IO[bytes]]:
    """A file that takes its place when the block succeeds, and is gone when it does not."""
    with NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
        try:
            yield file
            file.flush()
            os.replace(file.name, target)
        except BaseException:
            os.unlink(file.name)
            raise


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
