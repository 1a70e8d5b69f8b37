"""A table that somebody uploaded: what its columns are is inferred, and reported."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tutti.adapters.datasets._common import LARGEST, BadData
from tutti.core.registry import BadOption
from tutti.domain.sessions import ColumnReport
from tutti.domain.spec import DataSchema
from tutti.ports import Examples

MISSING = {"", "?", "na", "n/a", "nan", "null", "none", "-"}
MOST_CATEGORIES = 32
"""Words of a column that are taken for categories; a column with more is left out, as names and notes are."""

MOST_CLASSES = 100
MOST_COLUMNS = 4096

Cells = Sequence[str]


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Rows to learn from, what they are, and how that was found out; `dropped` rows had no target."""

    rows: Examples
    schema: DataSchema
    report: tuple[ColumnReport, ...]
    dropped: int


def inferred(body: bytes, target: str = "", task: str = "auto") -> Table:
    """Read a CSV file with a header; without a target it is the last column.

    Numbers are scaled to mean 0 and deviation 1, with the mean where a cell is empty; words become one column for each
    category, an empty cell one of them. A target of words, or of a few whole numbers, is classes. Raises BadData,
    BadOption naming row and column.
    """
    names, columns = _cells(body)
    target = target or names[-1]
    if target not in columns:
        raise BadOption(f"there is no column {target!r}; the columns are: {', '.join(names)}")
    has_target = [_present(cell) for cell in columns[target]]
    kept = {name: [cell for cell, has in zip(cells, has_target, strict=True) if has] for name, cells in columns.items()}
    if not kept[target]:
        raise BadData(f"column {target!r}: every target is missing")
    y, outputs, classes, said = _target(target, kept[target], task)
    parts, features, report = list[NDArray[np.float64]](), list[str](), [said]
    for name in names:
        if name != target:
            values, made, what = _feature(name, kept[name])
            parts += [values] if made else []
            features += made
            report.append(what)
    if not features:
        raise BadData("no column is left to learn from: " + "; ".join(f"{c.name}: {c.note}" for c in report[1:]))
    x = np.concatenate(parts, axis=1).astype(np.float32)
    schema = DataSchema("classification" if classes else "regression", (x.shape[1],), outputs, tuple(features), classes)
    return Table(Examples(x, y), schema, tuple(report), len(has_target) - len(y))


def _cells(body: bytes) -> tuple[list[str], Mapping[str, Cells]]:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadData(f"expected text in UTF-8; byte {error.start} is none: save the table as CSV in UTF-8") from None
    try:
        lines = [(line, number) for line, number in _lines(text) if line]
    except csv.Error as error:
        raise BadData(f"cannot be read as CSV: {error}") from None
    if len(lines) < 3:
        raise BadData(f"expected a header and at least two rows, came {len(lines)} lines")
    names = [cell.strip() for cell in lines[0][0]]
    if "" in names or len(set(names)) < len(names):
        raise BadData(f"the header must name every column, each once; it says: {', '.join(names)[:500]}")
    if not 2 <= len(names) <= MOST_COLUMNS:
        raise BadData(f"expected 2 to {MOST_COLUMNS} columns separated by commas, came {len(names)}")
    for line, number in lines:
        if len(line) != len(names):
            raise BadData(f"row {number}: expected {len(names)} columns, came {len(line)}")
    return names, dict(zip(names, zip(*(line for line, _ in lines[1:]), strict=True), strict=True))


def _lines(text: str) -> list[tuple[list[str], int]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    return [(line, reader.line_num) for line in reader]


def _present(cell: str) -> bool:
    return cell.strip().lower() not in MISSING


def _numbers(cells: Cells) -> NDArray[np.float64] | None:
    """float64 (n,), NaN where a cell is empty; None if some cell is a word, or beyond float32."""
    try:
        values = np.array([float(cell) if _present(cell) else np.nan for cell in cells])
    except ValueError:
        return None
    return values if not (np.abs(values[~np.isnan(values)]) > LARGEST).any() else None


def _target(
    name: str, cells: Cells, task: str
) -> tuple[NDArray[np.int64] | NDArray[np.float32], int, tuple[str, ...], ColumnReport]:
    """y, how many outputs, the names of the classes, and what to report."""
    numbers = _numbers(cells)
    whole = numbers is not None and bool((numbers == np.floor(numbers)).all())
    distinct = sorted({cell.strip() for cell in cells}, key=lambda text: (float(text) if whole else 0.0, text))
    if numbers is not None and (task == "regression" or (task == "auto" and not (whole and len(distinct) <= 20))):
        if np.ptp(numbers) == 0:
            raise BadData(f"column {name!r}: every target is {cells[0]}: there is nothing to learn")
        return numbers.astype(np.float32)[:, None], 1, (), ColumnReport(name, "target", "numbers: a regression")
    if task == "regression":
        raise BadData(f"column {name!r}: expected numbers for a regression, came words such as {distinct[0]!r}")
    if not 2 <= len(distinct) <= MOST_CLASSES:
        raise BadData(
            f"column {name!r}: expected 2 to {MOST_CLASSES} classes, came {len(distinct)}: "
            + (f"every row is {distinct[0]!r}" if len(distinct) == 1 else "is this the target?")
        )
    number = {text: i for i, text in enumerate(distinct)}
    y = np.array([number[cell.strip()] for cell in cells], np.int64)
    said = ColumnReport(name, "target", f"{len(distinct)} classes: a classification", categories=tuple(distinct))
    return y, len(distinct), tuple(distinct), said


def _feature(name: str, cells: Cells) -> tuple[NDArray[np.float64], list[str], ColumnReport]:
    """float64 (n, k), the k names, and what to report; k is 0 for a column that is left out."""
    missing = sum(not _present(cell) for cell in cells)
    nothing = np.empty((len(cells), 0))
    if missing == len(cells):
        return nothing, [], ColumnReport(name, "left out", "every cell is empty", missing)
    if (numbers := _numbers(cells)) is not None:
        mean, deviation = np.nanmean(numbers), np.nanstd(numbers)
        if deviation == 0 and not missing:
            return nothing, [], ColumnReport(name, "left out", f"every cell is {cells[0].strip()}")
        scaled = (np.where(np.isnan(numbers), mean, numbers) - mean) / (deviation or 1.0)
        note = f"scaled: mean {mean:.6g}, deviation {deviation:.6g}{'; empty cells have the mean' if missing else ''}"
        return scaled[:, None], [name], ColumnReport(name, "number", note, missing)
    texts = [cell.strip() if _present(cell) else "" for cell in cells]
    categories = sorted(set(texts))
    if len(categories) > MOST_CATEGORIES:
        return nothing, [], ColumnReport(name, "left out", f"{len(categories)} different words", missing)
    chosen = np.array([categories.index(text) for text in texts])
    made = [f"{name}={category or '(empty)'}" for category in categories]
    said = ColumnReport(name, "category", "a column for each", missing, tuple(categories))
    return np.eye(len(categories))[chosen], made, said
