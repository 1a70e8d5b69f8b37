"""LEAF's JSON files, by user (Caldas et al. 2018, https://arxiv.org/abs/1812.01097).

Each file holds {"users": […], "num_samples": […], "user_data": {user: {"x": […], "y": […]}}}; LEAF's preprocessing
(github.com/TalwalkarLab/leaf) leaves them in data/train and data/test.
"""

import json
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase, digits
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutti.adapters.datasets._common import BadData, Rows, source
from tutti.adapters.datasets._files import folders
from tutti.core.registry import BadOption
from tutti.domain.spec import DataSchema, Positive

ALPHABET = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
"""LEAF's characters: 80."""


@source("leaf")
def leaf(path: str, shape: Positive | list[Positive], classes: Positive, name: str = "") -> Rows:
    """A folder of LEAF's JSON files, with shape=28x28,classes=62; its subfolder test, if any, is split=test.

    Numbers are read as they are, texts as places in LEAF's 80 characters. partition=natural-id makes a node of each
    user.
    """
    wanted = (shape,) if isinstance(shape, int) else tuple(shape)
    folder = Path(path)
    return _rows(folder, DataSchema("classification", wanted, classes), name or folder.resolve().name)


def _femnist_schema() -> DataSchema:
    return DataSchema("classification", (1, 28, 28), 62, classes=tuple(digits + ascii_uppercase + ascii_lowercase))


@source("femnist", _femnist_schema)
def femnist(path: str = "") -> Rows:
    """FEMNIST: handwritten digits and letters of 1x28x28 by writer, 62 classes, as LEAF's preprocessing leaves them.

    The folders train and test of LEAF's data/femnist/data are looked for in `path`, or else in femnist below
    $TUTTI_DATA_DIR and ../shared/data.
    """
    searched = folders("femnist", path)
    found = next((folder for folder in searched if (folder / "train").is_dir()), None)
    if found is None:
        raise BadData(
            f"femnist: expected the folder train with LEAF's JSON files in one of {', '.join(map(str, searched))}; "
            "make it with data/femnist/preprocess.sh of github.com/TalwalkarLab/leaf, and give path=…"
        )
    return _rows(found, _femnist_schema(), "femnist")


def _rows(folder: Path, schema: DataSchema, name: str) -> Rows:
    shape, classes = schema.shape, schema.outputs
    train = _folder(folder / "train" if (folder / "train").is_dir() else folder, shape, classes)
    parts = [train, *([_folder(folder / "test", shape, classes)] if (folder / "test").is_dir() else [])]
    x, y, ids = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Rows(x, y, schema, np.arange(len(train[1]), len(y)), name, ids)


def _folder(folder: Path, shape: tuple[int, ...], classes: int) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[Any]]:
    files = sorted(folder.glob("*.json"))
    if not files:
        raise BadData(f"{folder}: expected LEAF's JSON files here, there is none")
    users = [(user, *_user(file, user, data, shape, classes)) for file in files for user, data in _users(file)]
    x = np.concatenate([x for _, x, _ in users])
    y = np.concatenate([y for _, _, y in users])
    return x, y, np.repeat([user for user, _, _ in users], [len(y) for _, _, y in users])


def _users(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        content = json.loads(file.read_text("utf-8"))
        yield from ((user, content["user_data"][user]) for user in content["users"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadData(f"{file}: not a JSON file of LEAF: {error or type(error).__name__}") from error


def _user(
    file: Path, user: str, data: Any, shape: tuple[int, ...], classes: int
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    where = f"{file}, user {user!r}"
    try:
        x, y = _numbers(data["x"], where), _numbers(data["y"], where).astype(np.int64)
    except (KeyError, TypeError, ValueError) as error:
        raise BadData(f"{where}: expected lists x and y of equal rows, came {error}") from error
    if len(x) != len(y) or x[0].size != prod(shape):
        raise BadOption(f"{where}: {len(x)} rows of {x[0].size} values and {len(y)} classes do not fit shape={shape}")
    if not np.isfinite(x).all() or y.min() < 0 or y.max() >= classes:
        raise BadData(f"{where}: expected finite values and classes 0 to {classes - 1}, came {y.min()} to {y.max()}")
    return x.reshape(len(x), *shape), y.reshape(len(y))


def _numbers(cells: list[Any], where: str) -> NDArray[Any]:
    if not cells:
        raise BadData(f"{where}: has no rows; leave the user out")
    if isinstance(cells[0], str):
        return np.squeeze(np.array([_codes(text, where) for text in cells], np.int8))
    return np.array(cells, np.float32)


def _codes(text: Iterable[str], where: str) -> list[int]:
    codes = [ALPHABET.find(character) for character in text]
    if min(codes, default=-1) < 0:
        raise BadData(f"{where}: a character of {''.join(text)!r} is none of LEAF's {len(ALPHABET)}")
    return codes
