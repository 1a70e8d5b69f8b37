"""What every data source shares: which part of the rows is this node's, and which of those it holds out.

A data set file only reads rows. `source` registers it with these options besides its own:

    part=0/4                  the first of four parts
    partition=dirichlet:0.3   how parts are made (a partitioner; several options are joined by ';')
    held_out=0.2              share of the part's rows that models are measured on and never trained on
    split=test                the data set's common test rows, which belong to no part
    seed=0                    of partition and held-out rows; give all nodes the same
    standardize=true          scale features to mean 0 and deviation 1 over this part's training rows
"""

import inspect
from collections.abc import Callable
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
from tutti.ports.training import Data, Examples, NodeData, datasets

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
    """

    x: NDArray[Any]
    y: NDArray[np.int64] | NDArray[np.float32]
    schema: DataSchema
    test: Rowset = field(default_factory=lambda: np.zeros(0, np.int64))
    name: str = ""
    ids: NDArray[np.str_] | None = None


@dataclass(frozen=True, slots=True)
class Carving:
    """The options that all sources share (see the top of this file)."""

    part: str = "0/1"
    partition: str = "iid"
    held_out: Annotated[float, Meta(ge=0, le=1)] = 0.2
    split: Literal["train", "test"] = "train"
    seed: Annotated[int, Meta(ge=0)] = 0
    standardize: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """ports.NodeData: what `read` gives, carved."""

    name: str
    read: Callable[[], Rows]
    carving: Carving

    def load(self) -> Data:
        rows = self.read()
        rows = replace(rows, name=rows.name or self.name)
        rows, train, held_out = carve(rows, self.carving)
        return Data(_checked_name(rows.name), rows.schema, train, held_out)


def carve(rows: Rows, carving: Carving) -> tuple[Rows, Examples, Examples]:
    """(rows, train, held out) of this node; with split=test there is nothing to train on.

    The rows are those given, but with a vertical partition: then they have this node's features only.
    """
    if carving.split == "test":
        train, held_out = np.zeros(0, np.int64), _test_rows(rows, carving)
    else:
        rows, part = _part(rows, carving)
        train, held_out = _hold_out(part, carving)
    examples = _take(rows, train), _take(rows, held_out)
    first, second = _standardized(*examples) if carving.standardize else examples
    return rows, first, second


def carve_all(rows: Rows, carving: Carving, parts: int) -> tuple[Examples, list[tuple[Rowset, Rowset]]]:
    """All parts at once: their rows together, and of each part which of these are to train on and which held out.

    Part k has the very rows that `part=k/n` would give, in the same order.
    """
    if carving.split == "test" or carving.part != Carving().part:
        raise BadOption("a data set is divided as a whole: leave out split and part")
    pool = pool_of(rows)
    partition = partitioners.build(Choice.parse(carving.partition.replace(";", ",")))
    if isinstance(partition, Vertical):
        raise BadOption(f"partition={carving.partition} divides features, whose models cannot be averaged")
    found = [_hold_out(part, carving) for part in partition(population_of(rows, pool), parts, carving.seed)]
    examples = _take(rows, pool)
    for train, held_out in found if carving.standardize else ():
        mine = (Examples(examples.x[index], examples.y[index]) for index in (train, held_out))
        for index, scaled in zip((train, held_out), _standardized(*mine), strict=True):
            examples.x[index] = scaled.x
    return examples, found


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
    return Population(rows.y[pool], rows.x[pool], None if rows.ids is None else rows.ids[pool])


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
