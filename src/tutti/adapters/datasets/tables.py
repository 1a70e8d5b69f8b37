"""Tables of the node's owner: CSV and Parquet files."""

import csv as csv_format
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from tutti.adapters._imports import extra
from tutti.adapters.datasets._columns import Columns, to_rows
from tutti.adapters.datasets._common import BadData, Rows, source, unreadable

Separator: TypeAlias = Literal[",", ";", "tab"]
TaskOption: TypeAlias = Literal["auto", "classification", "regression"]


@source("csv")
def csv(
    path: str,
    target: str,
    task: TaskOption = "auto",
    classes: int | str = "",
    drop: str = "",
    one_hot: str = "",
    header: bool = True,
    separator: Separator = ",",
    id: str = "",
    name: str = "",
) -> Rows:
    """A CSV file of numbers, with a header unless header=false (columns are then c0, c1, c2 …).

    Whole numbers from 0 to 99 in the column `target` are classes, others targets; task= decides otherwise.
    classes=2 or classes=no|yes, drop=id|name, one_hot=colour:red|green;size:S|M, separator=; or separator=tab.
    id=hospital says whom rows belong to (partition=natural-id) and is not learnt from.
    """
    columns = read_csv(path, header=header, separator=separator)
    return to_rows(
        columns, target, task=task, classes=classes, drop=drop, one_hot=one_hot, id=id, name=name or Path(path).stem
    )


@source("parquet")
def parquet(
    path: str,
    target: str,
    task: TaskOption = "auto",
    classes: int | str = "",
    drop: str = "",
    one_hot: str = "",
    id: str = "",
    name: str = "",
) -> Rows:
    """A Parquet file of numeric columns, with the options of csv."""
    columns = read_parquet(path)
    return to_rows(
        columns, target, task=task, classes=classes, drop=drop, one_hot=one_hot, id=id, name=name or Path(path).stem
    )


def read_csv(path: str, *, header: bool = True, separator: Separator = ",") -> Columns:
    """The cells as text, with each row's line number; raises BadData for ragged rows and files that are no CSV."""
    lines: list[list[str]] = []
    numbers: list[int] = []
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv_format.reader(file, strict=True, delimiter="\t" if separator == "tab" else separator)
            for cells in reader:
                if cells:
                    lines.append(cells)
                    numbers.append(reader.line_num)
    except (OSError, UnicodeDecodeError, csv_format.Error) as error:
        raise unreadable(path, "CSV in UTF-8", error) from error
    if not lines:
        raise BadData(f"{path}: the file is empty")
    if len(lines[0]) == 1 and ";" in lines[0][0]:
        raise BadData(f"{path}: its columns are separated by semicolons: give 'separator=;'")
    names = [cell.strip() for cell in lines[0]] if header else [f"c{i}" for i in range(len(lines[0]))]
    _check_names(path, names)
    first = 1 if header else 0
    for cells, number in zip(lines[first:], numbers[first:], strict=True):
        if len(cells) != len(names):
            raise BadData(f"{path}, row {number}: expected {len(names)} columns, came {len(cells)}")
    table = zip(*lines[first:], strict=True) if len(lines) > first else ([] for _ in names)
    return Columns(path, dict(zip(names, table, strict=True)), numbers[first:])


def _check_names(path: str, names: list[str]) -> None:
    for position, name in enumerate(names):
        if not name:
            raise BadData(f"{path}: column {position + 1} has no name in the header; give it one, or use header=false")
        if name in names[:position]:
            raise BadData(f"{path}: the header names column {name!r} twice")


def read_parquet(path: str) -> Columns:
    """The cells, with rows counted from 1; raises BadData."""
    with extra("data", "data source 'parquet'"):
        import pyarrow
        import pyarrow.parquet
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise unreadable(path, "Parquet", error) from error
    _check_names(path, table.column_names)
    cells = {}
    for name in table.column_names:
        column = table.column(name)
        numeric = pyarrow.types.is_floating(column.type) or pyarrow.types.is_integer(column.type)
        cells[name] = np.asarray(column) if numeric and not column.null_count else column.to_pylist()
    return Columns(path, cells, range(1, table.num_rows + 1))
