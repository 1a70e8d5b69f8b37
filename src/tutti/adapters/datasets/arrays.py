"""Arrays: NPZ files, and whatever a Python function of the node's owner returns."""

import zlib
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from tutti.adapters._imports import BadEntry, load_entry
from tutti.adapters.datasets._common import LARGEST, BadData, Rows, source, unreadable
from tutti.domain.spec import DataSchema


@source("npz")
def npz(
    path: str,
    x: str = "x",
    y: str = "y",
    task: Literal["auto", "classification", "regression"] = "auto",
    classes: int = 0,
    name: str = "",
) -> Rows:
    """Two arrays of an .npz file. Integer y are classes, others targets; uint8 x are pixels, scaled to [0, 1]."""
    inputs, targets = _read_npz(path, x, y)
    rows = from_arrays(inputs, targets, path, task, classes)
    return Rows(rows.x, rows.y, rows.schema, name=name or Path(path).stem)


def _read_npz(path: str, *names: str) -> list[NDArray[Any]]:
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, NpzFile):
            raise BadData(f"{path}: expected an .npz with several arrays, came a single array (.npy)")
        with file:
            if missing := [name for name in names if name not in file.files]:
                raise BadData(f"{path}: has no array {missing[0]!r}; it has: {', '.join(file.files)}")
            return [file[name] for name in names]
    except ValueError:  # numpy's message advises to trust the file
        why = "it is damaged, no .npz, or holds Python objects in place of numbers"
        raise BadData(f"{path}: cannot be read as .npz of plain arrays: {why}") from None
    except (OSError, EOFError, BadZipFile, zlib.error) as error:
        raise unreadable(path, ".npz of plain arrays", error) from error


@source("python")
def python(entry: str, classes: int = 0, name: str = "") -> Rows:
    """What entry=package.module:function returns: (x, y) arrays, integer y being classes, others targets."""
    found = load_entry(entry)()
    if isinstance(found, Rows):
        return found
    if not (isinstance(found, tuple) and len(found) == 2):
        raise BadEntry(f"entry {entry!r}: expected it to return two arrays (x, y), came {type(found).__name__}")
    rows = from_arrays(np.asarray(found[0]), np.asarray(found[1]), entry, classes=classes)
    return Rows(rows.x, rows.y, rows.schema, name=name or entry.partition(":")[2])


def from_arrays(x: NDArray[Any], y: NDArray[Any], where: str, task: str = "auto", classes: int = 0) -> Rows:
    """Rows from arrays; `where` names them in errors. Classes count from 0; `classes` 0 means up to the largest."""
    for name, array in (("x", x), ("y", y)):
        if array.dtype.kind not in "fiub" or array.ndim < 1 or len(array) == 0:
            raise BadData(f"{where}: {name} should be a non-empty array of numbers, is {array.dtype}{array.shape}")
        fits = np.abs(array) <= LARGEST if array.dtype.kind == "f" else np.True_
        if not fits.all():
            row = int(np.argwhere(~fits)[0][0])
            raise BadData(
                f"{where}: {name} has a missing or infinite value, or one beyond {LARGEST:.2g}, in row {row}; "
                "mend or leave out that row"
            )
    if x.ndim < 2 or len(x) != len(y):
        raise BadData(f"{where}: expected x of shape (n, …) and y of as many rows, came {x.shape} and {y.shape}")
    if task == "classification" or (task == "auto" and y.dtype.kind != "f"):
        return _classes(x, y, where, classes)
    targets = y.reshape(len(y), -1).astype(np.float32)
    return Rows(x, targets, DataSchema("regression", x.shape[1:], targets.shape[1]))


def _classes(x: NDArray[Any], y: NDArray[Any], where: str, classes: int) -> Rows:
    if y.ndim != 1 or (y.dtype.kind == "f" and (y != np.floor(y)).any()):
        raise BadData(f"{where}: classes should be whole numbers of shape ({len(x)},), are {y.dtype}{y.shape}")
    labels = y.astype(np.int64)
    outputs = classes or int(labels.max()) + 1
    if labels.min() < 0 or labels.max() >= outputs:
        raise BadData(f"{where}: expected classes 0 to {outputs - 1}, came {labels.min()} to {labels.max()}")
    if not classes and (labels.min() > 0 or outputs == 1):
        raise BadData(
            f"{where}: expected classes 0, 1, 2 …, came {labels.min()} to {labels.max()}; number them from 0, or, if "
            "this node has none of the others, say how many there are: classes=3"
        )
    return Rows(x, labels, DataSchema("classification", x.shape[1:], outputs))
