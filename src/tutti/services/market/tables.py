"""Tables that clients upload, CSV or NPZ, as the one form that workers get; and a sample for who brings none."""

import io
import zipfile
from functools import lru_cache

import numpy as np

from tutti.core.errors import UserError
from tutti.core.workload import BadTable, Table, check_finite
from tutti.ports.blobs import TooLarge
from tutti.wire.tables import encode_table

LARGEST = 64 << 20
"""Bytes of an upload, and of what is in it."""

MOST_COLUMNS = 10_000


def read_csv(text: bytes, target: str = "") -> Table:
    """Rows of numbers under a line of names; `target` names the column to predict. Raises BadTable naming the row."""
    try:
        lines = text.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise BadTable(f"the table is neither an NPZ file nor UTF-8 text: {error}") from None
    names = [name.strip().strip('"') for name in lines[0].split(",")] if lines else []
    if not names or len(lines) < 2:
        raise BadTable(f"expected a line of column names and rows of numbers below it, came {len(lines)} lines")
    if len(names) > MOST_COLUMNS:
        raise BadTable(f"at most {MOST_COLUMNS} columns are taken, came {len(names)}")
    if len(set(names)) < len(names):
        raise BadTable(f"two columns have the name {next(name for name in names if names.count(name) > 1)!r}")
    if target and target not in names:
        raise BadTable(f"there is no column {target!r}; there are: {', '.join(names[:20])}")
    try:
        values = np.loadtxt(lines[1:], np.float64, delimiter=",", ndmin=2, quotechar='"', comments=None)
    except ValueError as error:
        raise BadTable(_fault(lines, names) or f"below the line of names: {error}") from None
    if values.shape[1] != len(names):
        raise BadTable(_fault(lines, names) or f"{len(names)} names stand above {values.shape[1]} columns")
    y = values[:, names.index(target)] if target else None
    x = np.delete(values, names.index(target), axis=1) if target else values
    return _checked(Table(np.ascontiguousarray(x), None if y is None else np.ascontiguousarray(y)))


def _fault(lines: list[str], names: list[str]) -> str:
    """What is wrong with the first line that is: found again, slowly, to say so well."""
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split(",")
        if line and len(cells) != len(names):
            return f"line {number} has {len(cells)} cells, expected {len(names)}"
        for name, cell in zip(names, cells, strict=False):
            try:
                float(cell.strip().strip('"'))
            except ValueError:
                return f"line {number}, column {name!r}: expected a number, came {cell.strip()[:40]!r}"
    return ""


def read_npz(data: bytes) -> Table:
    """Arrays `x` (rows, columns) and perhaps `y` (rows) to predict and `start` to go on from; raises BadTable."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > LARGEST:
            raise TooLarge(f"the arrays may have {LARGEST} bytes, these have {size}")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            found = {name: np.asarray(arrays[name], np.float64) for name in arrays.files if name in ("x", "y", "start")}
    except UserError:
        raise
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError) as error:
        raise BadTable(f"not an NPZ file of arrays of numbers: {error}") from None
    if "x" not in found:
        raise BadTable("expected an array 'x' of rows and columns, and perhaps 'y' of targets, in the NPZ file")
    return _checked(Table(np.ascontiguousarray(found["x"]), found.get("y"), found.get("start")))


def read_table(data: bytes, target: str = "") -> Table:
    """Whichever of the two it is."""
    return read_npz(data) if data[:2] == b"PK" else read_csv(data, target)


def _checked(table: Table) -> Table:
    check_finite(table, 1)
    if 8 * table.x.size > LARGEST:
        raise TooLarge(f"a table may have {LARGEST} bytes of numbers, this one has {8 * table.x.size}")
    return table


@lru_cache(maxsize=1)
def sample() -> bytes:
    """Three lumps of 600 rows in 8 columns, and a target that is a linear function of them but for noise."""
    rng = np.random.Generator(np.random.PCG64(2026))
    lumps = 5 * rng.standard_normal((3, 8))
    x = rng.standard_normal((600, 8)) * np.linspace(2, 0.5, 8) + lumps[rng.integers(0, 3, 600)]
    y = x @ rng.standard_normal(8) + 0.5 * rng.standard_normal(600) + 3
    return encode_table(Table(x, y))
