"""Directories written by Hugging Face datasets' save_to_disk, read without that library.

Layout: state.json names the Arrow stream files of one split; dataset_dict.json names the splits, each a subfolder
(https://huggingface.co/docs/datasets/process#save).
"""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tutti.adapters._imports import extra
from tutti.adapters.datasets._columns import Columns, ids_of, schema_names, to_rows
from tutti.adapters.datasets._common import BadData, Rows, source
from tutti.adapters.datasets.arrays import from_arrays
from tutti.core.registry import BadOption


@source("huggingface")
def huggingface(
    path: str,
    y: str = "label",
    x: str = "",
    id: str = "",
    classes: int | str = "",
    drop: str = "",
    one_hot: str = "",
    test: str = "test",
    name: str = "",
) -> Rows:
    """A folder of datasets' save_to_disk: y=label, and as x one column of images or lists (x=image) or all numbers.

    Of several splits, the one called as `test` says is split=test and train is the rest. Images must be of one size.
    Further options are those of csv.
    """
    folder = Path(path)
    splits = _splits(folder, test)
    tables = [_table(each) for each in splits]
    cells: dict[str, Any] = {key: [row for table in tables for row in table[key]] for key in tables[0]}
    columns = Columns(path, cells, range(1, len(next(iter(cells.values()))) + 1))
    title = name or folder.resolve().name
    held = len(columns.row_numbers) - len(next(iter(tables[0].values())))
    rows = (
        _one_column(columns, x, y, id, classes, title)
        if x
        else to_rows(columns, y, task="auto", classes=classes, drop=drop, one_hot=one_hot, id=id, name=title)
    )
    count = len(rows.x)
    return replace(rows, test=np.arange(count - held, count))


def _splits(folder: Path, test: str) -> list[Path]:
    """The folders of the training rows and, if there is one, of the test rows."""
    if (folder / "state.json").is_file():
        return [folder]
    names = _json(folder / "dataset_dict.json").get("splits", [])
    train = [name for name in names if name != test]
    if "train" in train:
        train = ["train"]
    if len(train) != 1:
        raise BadOption(f"{folder}: expected a split 'train' or one beside test={test}, came {', '.join(names)}")
    return [folder / train[0], *([folder / test] if test in names else [])]


def _table(folder: Path) -> dict[str, list[Any]]:
    with extra("data", "data source 'huggingface'"):
        import pyarrow
        import pyarrow.ipc
    files = [folder / Path(str(each["filename"])).name for each in _json(folder / "state.json")["_data_files"]]
    try:
        parts = [pyarrow.ipc.open_stream(pyarrow.memory_map(str(file))).read_all() for file in files]
        table = pyarrow.concat_tables(parts)
    except (OSError, pyarrow.ArrowException) as error:
        raise BadData(f"{folder}: cannot be read as Arrow streams: {error}") from error
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadData(
            f"{file}: cannot be read: {error}; give path= of a folder written by datasets' save_to_disk"
        ) from error
    if not isinstance(content, dict):
        raise BadData(f"{file}: expected an object, came {type(content).__name__}")
    return content


def _one_column(columns: Columns, x: str, y: str, id: str, classes: int | str, name: str) -> Rows:
    for wanted in (x, y):
        if wanted not in columns.cells:
            raise BadOption(f"{columns.path}: there is no column {wanted!r}; it has: {', '.join(columns.cells)}")
    arrays = [_array(cell, columns.at(row, x)) for row, cell in enumerate(columns.cells[x])]
    for row, array in enumerate(arrays):
        if array.shape != arrays[0].shape:
            raise BadData(f"{columns.at(row, x)}: expected {arrays[0].shape} as in the first row, came {array.shape}")
    count = len(classes.split("|")) if isinstance(classes, str) and classes else int(classes or 0)
    found = from_arrays(np.stack(arrays), np.array(columns.cells[y]), columns.path, classes=count)
    labels = schema_names(classes.split("|")) if isinstance(classes, str) and classes else ()
    schema = msgspec.structs.replace(found.schema, classes=labels)
    return Rows(found.x, found.y, schema, name=name, ids=ids_of(columns, id) if id else None)


def _array(cell: Any, where: str) -> NDArray[Any]:
    """A list of numbers, or the pixels (channels, height, width) of an encoded image {"bytes": …}."""
    if not isinstance(cell, dict):
        return np.array(cell, np.float32)
    with extra("data", "images of data source 'huggingface'"):
        from PIL import Image
    if not cell.get("bytes"):
        raise BadData(f"{where}: the image is not in the file; save it with its bytes (embed_external_files)")
    try:
        with Image.open(io.BytesIO(cell["bytes"])) as image:
            pixels = np.asarray(image.convert("L" if image.mode in ("L", "1", "I;16") else "RGB"), np.uint8)
    except (OSError, ValueError) as error:
        raise BadData(f"{where}: cannot be read as an image: {error}") from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
