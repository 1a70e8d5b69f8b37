"""What every data source shares: which part of the rows is this node's, and which of those it holds out.

A data set file only reads rows. `source` registers it with these options besides its own:

    part=0/4                  the first of four parts
    partition=dirichlet:0.3   how parts are made (a partitioner; several options are joined by ';')
    held_out=0.2              share of the part's rows that models are measured on and never trained on
    split=test                the data set's common test rows, which belong to no part
    seed=0                    of partition and held-out rows; give all nodes the same
    standardize=true          scale features to mean 0 and deviation 1 over this part's training rows
    missing=drop              leave out rows in which a feature is missing (mean: fill in the mean of this part's
                              training rows), instead of refusing them
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from dataclasses import fields as dataclass_fields
from functools import partial
from re import fullmatch
from typing import Annotated, Any, Literal, TypeAlias, get_type_hints

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from tutti.adapters.partitioners import Population, Vertical, partitioners
from tutti.core.errors import UserError
from tutti.core.registry import BadOption, Choice
from tutti.domain.spec import DataSchema
from tutti.ports.training import Data, Examples, NodeData, columns_of, datasets

Rowset: TypeAlias = NDArray[np.int64]


class BadData(UserError):
    """A file does not hold what it should; the message names file, row and column."""


LARGEST = float(np.finfo(np.float32).max)
"""Rows become float32: what is larger would be infinite."""


def unreadable(path: str, as_what: str, error: Exception) -> BadData:
    """What to raise for a file that cannot be opened, or is not what it should be."""
    if isinstance(error, FileNotFoundError):
        return BadData(f"{path}: no such file")
    if isinstance(error, OSError) and error.strerror:
        return BadData(f"{path}: cannot be read: {error.strerror}")
    return BadData(f"{path}: cannot be read as {as_what}: {error}")


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """All rows of a source, as read.

    Attributes:
        x: (n, *shape) of any real dtype; uint8 stands for pixels and is scaled to [0, 1].
        y: int64 (n,) classes, or float32 (n, outputs) targets.
        test: Row numbers of the common test set; empty where the source has none.
        name: The data set's name, where it is not that of the source.
        ids: Text (n,): whom each row belongs to, for the partition by natural id; None if nobody knows.
        place: (row, column) -> where that cell is to be found, for messages; features may be NaN where this is given.
    """

    x: NDArray[Any]
    y: NDArray[np.int64] | NDArray[np.float32]
    schema: DataSchema
    test: Rowset = field(default_factory=lambda: np.zeros(0, np.int64))
    name: str = ""
    ids: NDArray[np.str_] | None = None
    place: Callable[[int, int], str] | None = None


@dataclass(frozen=True, slots=True)
class Carving:
    """The options that all sources share (see the top of this file)."""

    part: str = "0/1"
    partition: str = "iid"
    held_out: Annotated[float, Meta(ge=0, le=1)] = 0.2
    split: Literal["train", "test"] = "train"
    seed: Annotated[int, Meta(ge=0)] = 0
    standardize: bool = False
    missing: Literal["refuse", "drop", "mean"] = "refuse"


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One node's rows, by number, and how many of its cells were missing, by column."""

    train: Rowset
    held_out: Rowset
    missing: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Source:
    """ports.NodeData: what `read` gives, carved."""

    name: str
    read: Callable[[], Rows]
    carving: Carving

    def load(self) -> Data:
        rows = self.read()
        rows = replace(rows, name=rows.name or self.name)
        rows, train, held_out, missing = carve(rows, self.carving)
        filled = self.carving.missing == "mean"
        return Data(_checked_name(rows.name), rows.schema, train, held_out, missing, filled=filled)


def carve(rows: Rows, carving: Carving) -> tuple[Rows, Examples, Examples, Mapping[str, int]]:
    """(rows, train, held out, missing cells by column) of this node; with split=test there is nothing to train on.

    The rows are those given, but with a vertical partition: then they have this node's features only.
    """
    if carving.split == "test":
        whole, missing = _complete(rows, _test_rows(rows, carving), carving, "split=test")
        part = Part(np.zeros(0, np.int64), whole, missing)
    else:
        rows, mine = _part(rows, carving)
        part = _divided(rows, mine, carving, f"part={carving.part}")
    examples = _filled(_take(rows, part.train), _take(rows, part.held_out))
    first, second = _standardized(*examples) if carving.standardize else examples
    return rows, first, second, part.missing


def carve_all(rows: Rows, carving: Carving, parts: int) -> tuple[Examples, list[Part]]:
    """All parts at once: their rows together, and of each part which of these are to train on and which held out.

    Part k has the very rows that `part=k/n` would give, in the same order.
    """
    if carving.split == "test" or carving.part != Carving().part:
        raise BadOption("a data set is divided as a whole: leave out split and part")
    pool = pool_of(rows)
    partition = partitioners.build(Choice.parse(carving.partition.replace(";", ",")))
    if isinstance(partition, Vertical):
        raise BadOption(f"partition={carving.partition} divides features, whose models cannot be averaged")
    divided = partition(population_of(rows, pool), parts, carving.seed)
    pooled = _rows_of(rows, pool)
    found = [_divided(pooled, part, carving, f"node-{number}") for number, part in enumerate(divided, start=1)]
    examples = _take(rows, pool)
    for part in found if carving.standardize or carving.missing == "mean" else ():
        index = part.train, part.held_out
        mine = _filled(*(Examples(examples.x[rowset], examples.y[rowset]) for rowset in index))
        for rowset, scaled in zip(index, _standardized(*mine) if carving.standardize else mine, strict=True):
            examples.x[rowset] = scaled.x
    return examples, found


def _rows_of(rows: Rows, index: Rowset) -> Rows:
    """Some rows, which keep their places."""
    place = rows.place
    moved = None if place is None else lambda row, column: place(int(index[row]), column)
    return replace(rows, x=rows.x[index], y=rows.y[index], place=moved)


def _divided(rows: Rows, mine: Rowset, carving: Carving, who: str) -> Part:
    whole, missing = _complete(rows, mine, carving, who)
    train, held_out = _hold_out(whole, carving)
    return Part(train, held_out, missing)


def _complete(rows: Rows, mine: Rowset, carving: Carving, who: str) -> tuple[Rowset, Mapping[str, int]]:
    """The rows that stay, and missing cells by column; raises BadData for the first one if none may be missing."""
    if rows.x.dtype.kind != "f" or not (gaps := np.isnan(rows.x[mine])).any():
        return mine, {}
    if rows.place is None:
        row, *where = np.argwhere(gaps)[0].tolist()
        raise BadData(
            f"{who}: {rows.name}, row {mine[row]}: the value at {where} is missing; mend or leave out that row"
        )
    names = columns_of(rows.schema)
    counts = {names[column]: int(count) for column, count in enumerate(gaps.sum(axis=0)) if count}
    if carving.missing == "refuse":
        row, column = np.argwhere(gaps)[0].tolist()
        raise BadData(
            f"{who}: {rows.place(int(mine[row]), column)}: the value is missing, as {gaps.sum() - 1} more are; "
            "fill them in, leave out their rows (missing=drop), put the mean there (missing=mean), or leave out the "
            f"column (drop={names[column]})"
        )
    whole = mine if carving.missing == "mean" else mine[~gaps.any(axis=1)]
    if len(whole) == 0:
        raise BadData(f"{who}: each of its {len(mine)} rows misses a value, so that missing=drop leaves none")
    return whole, counts


def _filled(train: Examples, held_out: Examples) -> tuple[Examples, Examples]:
    """Missing cells become the mean of their column over the training rows (0 where none has a value)."""
    known = train.x if len(train) else held_out.x
    if not any(np.isnan(each.x).any() for each in (train, held_out)):
        return train, held_out
    there = ~np.isnan(known)
    mean = np.where(there, known, 0).sum(axis=0, dtype=np.float64) / np.maximum(there.sum(axis=0), 1)
    first, second = (Examples(np.where(np.isnan(e.x), mean.astype(np.float32), e.x), e.y) for e in (train, held_out))
    return first, second


def _test_rows(rows: Rows, carving: Carving) -> Rowset:
    if len(rows.test) == 0:
        raise BadOption("split=test: this source has no common test rows; use held_out=1 on a file of test rows")
    if carving.part != Carving().part or carving.standardize:
        raise BadOption("split=test is the same for everybody: leave out part and standardize")
    return rows.test


def _part(rows: Rows, carving: Carving) -> tuple[Rows, Rowset]:
    index, parts = _parse_part(carving.part)
    pool = pool_of(rows)
    partition = partitioners.build(Choice.parse(carving.partition.replace(";", ",")))
    divided = partition(population_of(rows, pool), parts, carving.seed)[index]
    if isinstance(partition, Vertical):
        return _columns(rows, divided, f"{rows.name}.features-{index}-of-{parts}"), pool
    return rows, pool[divided]


def pool_of(rows: Rows) -> Rowset:
    """The rows that are divided among nodes: all but the common test rows."""
    return np.setdiff1d(np.arange(len(rows.x)), rows.test)


def population_of(rows: Rows, pool: Rowset) -> Population:
    """What partitioners may see of the rows `pool`."""
    x = rows.x[pool]
    if rows.place is not None:
        x = _filled(Examples(x, rows.y[pool]), Examples(x[:0], rows.y[:0]))[0].x
    return Population(rows.y[pool], x, None if rows.ids is None else rows.ids[pool])


def _columns(rows: Rows, columns: Rowset, name: str) -> Rows:
    """Some features of the rows; under a name of their own, since other features must not be averaged with them."""
    names = rows.schema.features
    kept = tuple(names[column] for column in columns) if len(names) == rows.x.shape[1] else ()
    schema = msgspec.structs.replace(rows.schema, shape=(len(columns),), features=kept)
    return replace(rows, x=rows.x[:, columns], schema=schema, name=name)


def _parse_part(text: str) -> tuple[int, int]:
    if match := fullmatch(r"(\d+)/(\d+)", text):
        index, parts = int(match[1]), int(match[2])
        if index < parts:
            return index, parts
    raise BadOption(f"expected part=k/n with k from 0 to n-1, such as part=0/4, came part={text}")


def _hold_out(part: Rowset, carving: Carving) -> tuple[Rowset, Rowset]:
    """At least one row is left to train on, unless held_out is 1."""
    held = round(carving.held_out * len(part))
    if carving.held_out < 1:
        held = min(held, len(part) - 1)
    order = _rng(carving.seed, 1).permutation(part)
    return np.sort(order[held:]), np.sort(order[:held])


def reserve(n: int, share: float = 0.2) -> Rowset:
    """Rows of a common test set for a source that has none of its own: always the same."""
    return np.sort(_rng(0, 2).permutation(n)[: round(share * n)])


def _rng(*seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def _take(rows: Rows, index: Rowset) -> Examples:
    """Only the rows of this node become float32."""
    taken = rows.x[index]
    x = taken.astype(np.float32)
    if taken.dtype == np.uint8:
        x /= np.float32(255)
    return Examples(x, rows.y[index])


def _standardized(train: Examples, held_out: Examples) -> tuple[Examples, Examples]:
    known = train.x if len(train) else held_out.x
    mean, deviation = known.mean(axis=0, dtype=np.float64), known.std(axis=0, dtype=np.float64)
    scale = np.where(deviation > 0, deviation, 1)
    first, second = (Examples(((e.x - mean) / scale).astype(np.float32), e.y) for e in (train, held_out))
    return first, second


def _checked_name(name: str) -> str:
    if fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        return name
    raise BadOption(f"{name!r} cannot be the name of a data set (letters, digits, '.', '_', '-'): give name=…")


SCHEMAS: dict[str, Callable[..., DataSchema]] = {}
"""Schemas of bundled sets as functions of their own options: known without reading anything."""


def source(
    name: str, schema: Callable[..., DataSchema] | None = None
) -> Callable[[Callable[..., Rows]], Callable[..., NodeData]]:
    """Register a reader of rows as a data set, with the options of Carving besides its own."""

    def decorate(read: Callable[..., Rows]) -> Callable[..., NodeData]:
        signature = _joined_signature(read)

        def factory(**given: Any) -> NodeData:
            bound = signature.bind(**given)
            bound.apply_defaults()
            common = {option: bound.arguments.pop(option) for option in Carving.__slots__}
            return Source(name, partial(read, **bound.arguments), Carving(**common))

        hints = get_type_hints(read, include_extras=True) | get_type_hints(Carving, include_extras=True)
        factory.__signature__ = signature  # type: ignore[attr-defined]
        factory.__annotations__ = hints
        factory.__doc__ = read.__doc__
        if schema is not None:
            SCHEMAS[name] = schema
        return datasets.register(name)(factory)

    return decorate


def _joined_signature(read: Callable[..., Rows]) -> inspect.Signature:
    """The reader's required options, the common ones, then the reader's optional ones."""
    own = list(inspect.signature(read).parameters.values())
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    common = [inspect.Parameter(f.name, kind, default=f.default) for f in dataclass_fields(Carving)]
    required = [parameter for parameter in own if parameter.default is parameter.empty]
    return inspect.Signature([*required, *common, *(parameter for parameter in own if parameter not in required)])
