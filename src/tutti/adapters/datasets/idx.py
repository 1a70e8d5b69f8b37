"""MNIST and other sets in IDX files, gzipped or not (format: http://yann.lecun.com/exdb/mnist/)."""

import gzip
import os
import zlib
from math import prod
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from tutti.adapters.datasets._common import BadData, Rows, source
from tutti.domain.spec import DataSchema, Positive

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_LARGEST = 2**32


@source("idx")
def idx(images: str, labels: str, classes: Positive = 10, name: str = "") -> Rows:
    """Images and labels in a pair of IDX files of unsigned bytes; pixels are scaled to [0, 1]."""
    x, y = _pair(Path(images), Path(labels), classes)
    return Rows(x, y, _schema(x, classes), name=name)


def _mnist_schema() -> DataSchema:
    return DataSchema("classification", (1, 28, 28), 10)


@source("mnist", _mnist_schema)
def mnist(path: str = "") -> Rows:
    """70000 handwritten digits of 1x28x28 from the four original files; the official 10000 are split=test.

    The files are looked for in `path`, or else in the folders $TUTTI_DATA_DIR and ../shared/data.
    """
    files = _find(path)
    (x, y), (test_x, test_y) = _pair(files[0], files[1], 10), _pair(files[2], files[3], 10)
    test = np.arange(len(x), len(x) + len(test_x))
    return Rows(np.concatenate([x, test_x]), np.concatenate([y, test_y]), _mnist_schema(), test)


def _find(path: str) -> list[Path]:
    roots = [path] if path else [os.environ.get("TUTTI_DATA_DIR", ""), "../shared/data"]
    folders = [folder for root in roots if root for folder in (Path(root), Path(root) / "mnist")]
    for folder in folders:
        found = [file for name in _FILES for file in (folder / f"{name}.gz", folder / name) if file.is_file()]
        if len(found) >= len(_FILES):
            return [next(file for file in found if file.name.startswith(name)) for name in _FILES]
    raise BadData(
        f"mnist: expected {_FILES[0]}.gz and its three companions in one of {', '.join(map(str, folders))}; "
        "give path=…, or set TUTTI_DATA_DIR to the folder that has them"
    )


def _pair(images: Path, labels: Path, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    x, y = read_idx(images), read_idx(labels)
    if x.ndim not in (3, 4) or y.ndim != 1 or len(x) != len(y):
        raise BadData(f"{images} holds {x.shape}, {labels} holds {y.shape}: expected (n, height, width) and (n,)")
    if len(y) and y.max() >= classes:
        raise BadData(f"{labels}: label {y.max()} in row {int(y.argmax()) + 1}, expected 0 to {classes - 1}")
    return x.reshape(len(x), *_schema(x, classes).shape), y.astype(np.int64)


def _schema(x: NDArray[np.uint8], classes: int) -> DataSchema:
    return DataSchema("classification", x.shape[1:] if x.ndim == 4 else (1, *x.shape[1:]), classes)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes; raises BadData saying what is wrong with it."""
    try:
        with cast(IO[bytes], gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as file:
            return _read(file, path)
    except (OSError, EOFError, zlib.error) as error:
        raise BadData(f"{path}: cannot be read: {error}") from error


def _read(file: IO[bytes], path: Path) -> NDArray[np.uint8]:
    magic = file.read(4)
    if len(magic) != 4 or magic[:3] != b"\0\0\x08" or not 1 <= magic[3] <= 4:
        raise BadData(f"{path}: not an IDX file of unsigned bytes (it starts with {magic.hex(' ') or 'nothing'})")
    header = file.read(4 * magic[3])
    shape = tuple(int(n) for n in np.frombuffer(header[: len(header) // 4 * 4], ">u4"))
    if len(shape) != magic[3] or not 0 < prod(shape) <= _LARGEST:
        raise BadData(f"{path}: its header announces {shape}, which cannot be right")
    body = file.read(prod(shape) + 1)
    if len(body) != prod(shape):
        raise BadData(f"{path}: its header announces {shape}, {prod(shape)} bytes; the file holds {len(body)} or more")
    return np.frombuffer(body, np.uint8).reshape(shape)
