"""Named columns to rows: every cell a number, or refused by file, row and column."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from re import fullmatch
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from tutti.adapters.datasets._common import LARGEST, BadData, Rows
from tutti.core.registry import BadOption
from tutti.domain.spec import DataSchema

_MISSING = {"", "?", "na", "n/a", "nan", "null", "none", "-"}
_AT_MOST_CLASSES = 100
_SURELY_CLASSES = 10
"""So many whole numbers and one that is not are classes with a mistake."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Cells by column name, with the file they are from and each row's number in it, for error messages."""

    path: str
    cells: Mapping[str, Sequence[Any] | NDArray[Any]]
    row_numbers: Sequence[int]

    def at(self, row: int, name: str) -> str:
        return f"{self.path}, row {self.row_numbers[row]}, column {name!r}"


def to_rows(
    columns: Columns, target: str, *, task: str, classes: int | str, drop: str, one_hot: str, id: str, name: str
) -> Rows:
    """Rows with the column `target` as y, `id` as ids and the others, in alphabetical order, as x.

    The order of columns in the file does not matter, so files of several owners fit together.
    """
    if target not in columns.cells:
        raise BadOption(f"{columns.path}: there is no column {target!r}; its columns are: {', '.join(columns.cells)}")
    if not columns.row_numbers:
        raise BadData(f"{columns.path}: has a header and no rows")
    ids = ids_of(columns, id) if id else None
    x = features(columns, drop="|".join(filter(None, [drop, target, id])), one_hot=one_hot)
    y = _targets(columns, target, task, classes)
    outputs = y.shape[1] if y.ndim == 2 else _count(y, classes)
    named = schema_names(feature_names(columns, drop="|".join(filter(None, [drop, target, id])), one_hot=one_hot))
    labels = schema_names(classes.split("|")) if isinstance(classes, str) and classes else ()
    schema = DataSchema("regression" if y.ndim == 2 else "classification", x.shape[1:], outputs, named, labels)
    place = _places(columns, drop="|".join(filter(None, [drop, target, id])), one_hot=one_hot)
    return Rows(x, y, schema, name=name, ids=ids, place=place)


def _places(columns: Columns, *, drop: str, one_hot: str) -> Callable[[int, int], str]:
    def place(row: int, column: int) -> str:
        return columns.at(row, feature_names(columns, drop=drop, one_hot=one_hot)[column])

    return place


def ids_of(columns: Columns, name: str) -> NDArray[np.str_]:
    """Text (n,): whom each row belongs to; raises BadData for the first cell that does not say."""
    if name not in columns.cells:
        raise BadOption(f"{columns.path}: there is no column {name!r}; its columns are: {', '.join(columns.cells)}")
    texts = ["" if cell is None else _text(cell) for cell in columns.cells[name]]
    for row, text in enumerate(texts):
        if text.lower() in _MISSING:
            raise BadData(f"{columns.at(row, name)}: the id is missing; fill it in, or leave out the row")
    return np.array(texts, np.str_)


def features(columns: Columns, *, drop: str, one_hot: str) -> NDArray[np.float32]:
    """float32 (n, features): all columns but those in drop=a|b, in alphabetical order."""
    used, encoded = _used(columns, drop, one_hot)
    parts = [_encode(columns, n, encoded[n]) if n in encoded else _numbers(columns, n)[:, None] for n in used]
    return np.concatenate(parts, axis=1).astype(np.float32)


def complete_features(columns: Columns, *, drop: str, one_hot: str) -> NDArray[np.float32]:
    """The same; raises BadData for the first cell that is missing."""
    x = features(columns, drop=drop, one_hot=one_hot)
    for row, column in np.argwhere(np.isnan(x))[:1].tolist():
        name = feature_names(columns, drop=drop, one_hot=one_hot)[column].lstrip("0123456789 ")
        raise BadData(f"{columns.at(row, name)}: the value is missing; fill it in, or leave out the row")
    return x


def feature_names(columns: Columns, *, drop: str, one_hot: str) -> list[str]:
    """Names of what `features` gives, in its order; `colour=red` for a category."""
    used, encoded = _used(columns, drop, one_hot)
    each = ([f"{name}={category}" for category in encoded[name]] if name in encoded else [name] for name in used)
    return [name for names in each for name in names]


MOST_NAMES, LONGEST_NAMES = 512, 16_384
"""Names that a schema spells out, and their characters in all: it travels with every task."""


def schema_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names for a DataSchema; too many become one, their digest, which still tells different ones apart."""
    if len(names) <= MOST_NAMES and sum(map(len, names)) <= LONGEST_NAMES:
        return tuple(names)
    return (f"{len(names)} names, blake3 {blake3(repr(list(names)).encode()).hexdigest()[:32]}",)


def _used(columns: Columns, drop: str, one_hot: str) -> tuple[list[str], dict[str, list[str]]]:
    dropped, encoded = set(filter(None, drop.split("|"))), _parse_one_hot(one_hot)
    if unknown := sorted((dropped | encoded.keys()) - columns.cells.keys()):
        raise BadOption(
            f"{columns.path}: there is no column {unknown[0]!r}; its columns are: {', '.join(columns.cells)}"
        )
    used = sorted(columns.cells.keys() - dropped)
    if not used:
        raise BadData(f"{columns.path}: no column is left to learn from")
    return used, encoded


def _parse_one_hot(text: str) -> dict[str, list[str]]:
    """one_hot=colour:red|green;size:S|M. Categories are written out, since every node must number them alike."""
    encoded: dict[str, list[str]] = {}
    for part in filter(None, text.split(";")):
        name, colon, categories = part.partition(":")
        if not colon or not categories:
            raise BadOption(f"expected one_hot=column:category|category;column:…, came {part!r}")
        encoded[name] = categories.split("|")
    return encoded


def _encode(columns: Columns, name: str, categories: list[str]) -> NDArray[np.float64]:
    return np.eye(len(categories))[_numbered(columns, name, categories)]


def _numbered(columns: Columns, name: str, categories: list[str]) -> NDArray[np.int64]:
    """The place of each cell in `categories`; raises BadData for a cell that is none of them."""
    number = {category: i for i, category in enumerate(categories)}
    texts = [_text(cell) for cell in columns.cells[name]]
    for row, text in enumerate(texts):
        if text not in number:
            raise BadData(f"{columns.at(row, name)}: {text!r} is none of {'|'.join(categories)}")
    return np.array([number[text] for text in texts], np.int64)


def _text(cell: Any) -> str:
    """A category as written; 1.0 in one file and 1 in another are the same one."""
    text = str(cell).strip()
    return text[:-2] if text.endswith(".0") and text[:-2].lstrip("-").isdigit() else text


def _numbers(columns: Columns, name: str, *, complete: bool = False) -> NDArray[np.float64]:
    """A column as float64, NaN where a cell is missing; raises BadData for the first cell that is no number.

    With `complete`, a missing cell is refused too.
    """
    cells = columns.cells[name]
    try:
        values = np.asarray(cells, np.float64)
    except (TypeError, ValueError):
        values = np.array([_number(columns, row, name, cell) for row, cell in enumerate(cells)])
    for row in np.flatnonzero(~(np.abs(values) <= LARGEST)).tolist():
        _number(columns, row, name, cells[row])
        if complete:
            raise BadData(f"{columns.at(row, name)}: the value is missing; fill it in, or leave out the row")
    return values


def _number(columns: Columns, row: int, name: str, cell: Any) -> float:
    if cell is None or str(cell).strip().lower() in _MISSING:
        return float("nan")
    try:
        value = float(cell)
        fits = abs(value) <= LARGEST
    except (TypeError, ValueError):
        if fullmatch(r"\s*[+-]?[\d.]*,\d+\s*", str(cell)):
            raise BadData(
                f"{columns.at(row, name)}: expected a number, came {str(cell)!r}; write decimal points, not commas"
            ) from None
        raise BadData(
            f"{columns.at(row, name)}: expected a number, came {str(cell)!r}; drop the column (drop={name}), or write "
            f"out its categories (one_hot={name}:first|second)"
        ) from None
    if not fits:
        raise BadData(f"{columns.at(row, name)}: expected a finite number, {LARGEST:.2g} at most, came {cell}")
    return value


def _targets(columns: Columns, target: str, task: str, classes: int | str) -> NDArray[np.int64] | NDArray[np.float32]:
    """int64 (n,) classes or float32 (n, 1) targets."""
    if isinstance(classes, str) and classes:
        return _numbered(columns, target, classes.split("|"))
    if task != "regression" and _is_text(columns.cells[target]):
        found = sorted({_text(cell) for cell in columns.cells[target]} - {""})[:10]
        raise BadData(
            f"{columns.path}, column {target!r}: the classes are words, and every node must number them alike: "
            f"give classes={'|'.join(found)}"
        )
    values = _numbers(columns, target, complete=True)
    whole = bool((values == np.floor(values)).all() and values.min() >= 0)
    if task == "auto" and not classes:
        _check_stray(columns, target, values)
    if task == "auto":
        task = "classification" if classes or (whole and values.max() < _AT_MOST_CLASSES) else "regression"
    if task == "regression":
        return values.astype(np.float32)[:, None]
    _check_classes(columns, target, values, int(classes or 0))
    return values.astype(np.int64)


def _check_classes(columns: Columns, target: str, values: NDArray[np.float64], classes: int) -> None:
    wrong = (values != np.floor(values)) | (values < 0) | (values >= (classes or np.inf))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise BadData(
            f"{columns.at(row, target)}: expected a class 0{f' to {classes - 1}' if classes else ', 1, 2 …'}, came "
            f"{values[row]:g}; name the classes (classes=first|second), or give task=regression"
        )
    if not classes and (values.min() > 0 or values.max() == 0):
        found = [f"{value:.0f}" for value in np.unique(values)[:10]]
        named = "|".join(found) if len(found) > 1 else f"{found[0]}|another"
        raise BadData(
            f"{columns.path}, column {target!r}: expected classes 0, 1, 2 …, came {', '.join(found)}; name all, the "
            f"same on every node (classes={named}), say how many there are if this node has none of the others "
            "(classes=3), or give task=regression"
        )


def _check_stray(columns: Columns, target: str, values: NDArray[np.float64]) -> None:
    """Refuse classes that one mistyped cell would turn into a regression."""
    stray = (values != np.floor(values)) | (values < 0) | (values >= _AT_MOST_CLASSES)
    if stray.sum() == 1 and len(values) > _SURELY_CLASSES:
        row = int(np.argmax(stray))
        raise BadData(
            f"{columns.at(row, target)}: {values[row]:g} is no class, and all others are whole numbers from 0 to "
            f"{_AT_MOST_CLASSES - 1}; correct it, or give task=regression"
        )


def _is_text(cells: Sequence[Any] | NDArray[Any]) -> bool:
    """True if some cell is a word: neither a number nor missing."""
    for cell in cells:
        text = "" if cell is None else str(cell).strip()
        try:
            float(text or "0")
        except ValueError:
            if text.lower() not in _MISSING:
                return True
    return False


def _count(y: NDArray[Any], classes: int | str) -> int:
    if isinstance(classes, str):
        return len(classes.split("|")) if classes else int(y.max()) + 1
    return classes or int(y.max()) + 1
