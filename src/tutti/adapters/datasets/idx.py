"""MNIST and other sets in IDX files, gzipped or not (format: http://yann.lecun.com/exdb/mnist/)."""

import gzip
import zlib
from math import prod
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from tutti.adapters.datasets._common import BadData, Rows, source
from tutti.adapters.datasets._files import File, folders, locate
from tutti.domain.spec import DataSchema, Positive

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_MNIST = [
    File(f"{name}.gz", f"sha256:{sha}", f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}.gz")
    for name, sha in zip(
        _FILES,
        (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
        strict=True,
    )
]
_FASHION = [
    File(f"{name}.gz", f"md5:{md5}", f"http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{name}.gz")
    for name, md5 in zip(
        _FILES,
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        strict=True,
    )
]
_LARGEST = 2**32
_CLOTHES = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)


@source("idx")
def idx(images: str, labels: str, classes: Positive = 10, name: str = "") -> Rows:
    """Images and labels in a pair of IDX files of unsigned bytes; pixels are scaled to [0, 1]."""
    x, y = _pair(Path(images), Path(labels), classes)
    return Rows(x, y, _schema(x, classes), name=name)


def _mnist_schema() -> DataSchema:
    return DataSchema("classification", (1, 28, 28), 10)


@source("mnist", _mnist_schema)
def mnist(path: str = "", download: bool = False) -> Rows:
    """70000 handwritten digits of 1x28x28 from the four original files; the official 10000 are split=test.

    The files are looked for in `path`, or else in the folders $TUTTI_DATA_DIR and ../shared/data; download=true fetches
    them into $TUTTI_DATA_DIR.
    """
    return _four("mnist", _MNIST, path, _mnist_schema(), download=download)


def _fashion_schema() -> DataSchema:
    return DataSchema("classification", (1, 28, 28), 10, classes=_CLOTHES)


@source("fashion-mnist", _fashion_schema)
def fashion_mnist(path: str = "", download: bool = False) -> Rows:
    """70000 articles of clothing of 1x28x28 (Xiao et al. 2017, https://arxiv.org/abs/1708.07747), as mnist.

    download=true fetches the four files into $TUTTI_DATA_DIR.
    """
    return _four("fashion-mnist", _FASHION, path, _fashion_schema(), download=download)


def _four(name: str, originals: list[File], path: str, schema: DataSchema, *, download: bool) -> Rows:
    """The two pairs of files in one folder, gzipped or not; their official test set."""
    plain = [File(file.name.removesuffix(".gz")) for file in originals]
    unpacked = any(all((folder / file.name).is_file() for file in plain) for folder in folders(name, path))
    files = locate(name, plain if unpacked else originals, path, download=download)
    (x, y), (test_x, test_y) = _pair(files[0], files[1], 10), _pair(files[2], files[3], 10)
    test = np.arange(len(x), len(x) + len(test_x))
    return Rows(np.concatenate([x, test_x]), np.concatenate([y, test_y]), schema, test)


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
