"""A look at all nodes' data before they train: what each tells, and what follows from it. No row leaves a node."""

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np

from tutti.core.statistics import MOST_RANGES, Column, Statistics, class_counts, describe, pooled
from tutti.domain.events import NodeId
from tutti.domain.spec import BadSpec, DataSchema
from tutti.ports import Fabric
from tutti.ports.training import Examples, columns_of
from tutti.wire.messages import Describe, Described

ANSWER_SECONDS = 60.0
AT_ONCE = 16
"""Columns in one message."""

MOST_ROWS = 2**53
"""More cannot be counted exactly in a float."""

LARGEST = 2 * float(np.finfo(np.float32).max)
"""Rows are float32; twice as much leaves room for the border of the last range, and for rounding."""

MOST_NORMALIZED = 512
"""Columns whose mean and deviation travel with every task."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the nodes told of one data set.

    Attributes:
        least: The fewest rows that a figure may be of, by node.
        parts: What each node told, all columns together.
        silent: Why the others told nothing.
    """

    dataset: str
    schema: DataSchema
    least: Mapping[NodeId, int]
    parts: Mapping[NodeId, Statistics]
    silent: Mapping[NodeId, str]


def statistics_of(
    rows: Examples, missing: Mapping[str, int], schema: DataSchema, least: int, *, filled: bool = False
) -> Statistics:
    """What a node with these rows may tell of them; pixels of images are one column."""
    table = len(schema.shape) == 1
    x = rows.x if table else rows.x.reshape(len(rows), -1)
    told = [
        describe(name, x[:, k] if table else x, least=least, missing=missing.get(name, 0), filled=filled)
        for k, name in enumerate(columns_of(schema))
    ]
    labels = class_counts(rows.y.astype("int64"), schema.outputs, least=least) if rows.y.ndim == 1 else ()
    return Statistics(rows=len(rows), columns=tuple(told), classes=labels)


def with_normalization(schema: DataSchema, told: Told) -> DataSchema:
    """The schema with mean and deviation over all nodes' training rows; raises BadSpec naming who did not tell."""
    if len(schema.shape) != 1 or schema.shape[0] > MOST_NORMALIZED:
        raise BadSpec(
            f"normalize is for tables of up to {MOST_NORMALIZED} columns, these rows have shape {schema.shape}"
        )
    if told.silent:
        listed = "; ".join(f"{node}: {reason}" for node, reason in told.silent.items())
        raise BadSpec(f"normalize needs the mean and deviation of every node's data: {listed}")
    columns = pooled(told.parts).columns
    mean, deviation = (tuple(getattr(column, name) for column in columns) for name in ("mean", "deviation"))
    return msgspec.structs.replace(schema, mean=mean, deviation=deviation)


class Preflight:
    """Asks nodes over a fabric, a few columns at a time, and gathers what they answer."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._waiting: dict[tuple[NodeId, str], asyncio.Future[Described]] = {}

    async def ask(self, dataset: str, schema: DataSchema, rows: Mapping[NodeId, int]) -> Told:
        """All these nodes at once, each with the rows it registered.

        One that does not answer in time is silent, and so is one that is away, or that answers what cannot be.
        """
        answers = await asyncio.gather(*(self._ask(node, schema, held, len(rows)) for node, held in rows.items()))
        told = dict(zip(rows, answers, strict=True))
        return Told(
            dataset,
            schema,
            {node: each[-1].least for node, each in told.items() if not isinstance(each, str)},
            {node: _joined(each) for node, each in told.items() if not isinstance(each, str)},
            {node: each for node, each in told.items() if isinstance(each, str)},
        )

    async def _ask(self, node: NodeId, schema: DataSchema, rows: int, nodes: int) -> list[Described] | str:
        """Every portion of the answer, or why there is none."""
        found: list[Described] = []
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                for first in range(0, len(columns_of(schema)), AT_ONCE):
                    asked = Describe(id=secrets.token_hex(8), nodes=nodes, first=first, columns=AT_ONCE)
                    answer = await self._answer(node, asked)
                    if answer.statistics is None:
                        return answer.reason or "told nothing"
                    found.append(answer)
        except TimeoutError:
            return f"did not answer within {ANSWER_SECONDS:g} s"
        return _fault(found, schema, rows) or found

    async def _answer(self, node: NodeId, asked: Describe) -> Described:
        key = node, asked.id
        self._waiting[key] = asyncio.get_running_loop().create_future()
        try:
            if not self._fabric.send(node, asked):
                return Described(id=asked.id, reason="not connected")
            return await self._waiting[key]
        finally:
            del self._waiting[key]

    def heard(self, node: NodeId, answer: Described) -> None:
        """An answer that nobody waits for, or waits for no more, is dropped."""
        waiting = self._waiting.get((node, answer.id))
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    def left(self, node: NodeId) -> None:
        for (name, id), waiting in self._waiting.items():
            if name == node and not waiting.done():
                waiting.set_result(Described(id=id, reason="left before it had answered"))


def _told(answer: Described) -> Statistics:
    assert answer.statistics is not None
    return answer.statistics


def _fault(portions: list[Described], schema: DataSchema, rows: int) -> str | None:
    """Why an answer cannot be what was asked of a node that registered so many rows; nodes may send anything."""
    told, least = _joined(portions), portions[-1].least
    if told.rows != rows or rows > MOST_ROWS:
        return f"told of {_figure(told.rows)} rows, it registered {_figure(rows)}"
    if not 1 <= least <= rows:
        return f"told of groups of {_figure(least)} rows or more, it registered {rows}"
    if [column.name for column in told.columns] != columns_of(schema):
        return f"told of other columns than the {len(columns_of(schema))} it was asked for"
    if len(told.classes) != (schema.outputs if schema.task == "classification" else 0):
        return f"told of {len(told.classes)} classes, its data have {schema.outputs}"
    shown = [count for count in told.classes if count is not None]
    if told.classes and not _add_up(shown, rows, hidden=len(shown) < len(told.classes)):
        return f"told of classes that are not those of {rows} rows"
    for column in told.columns:
        if not _possible(column, rows):
            return f"told impossible statistics of column {column.name!r}"
    return None


def _add_up(shown: list[int], rows: int, *, hidden: bool) -> bool:
    """Whether classes can be of so many rows; some may be hidden."""
    return all(count >= 0 for count in shown) and (sum(shown) <= rows if hidden else sum(shown) == rows)


def _possible(column: Column, rows: int) -> bool:
    """Whether these can be statistics of a column of so many float32 rows; NaN and infinity cannot."""
    if not 0 <= (column.missing or 0) <= MOST_ROWS:
        return False
    if column.count != rows:
        return column == Column(name=column.name, missing=column.missing)
    ranges = column.ranges
    return (
        abs(column.mean) <= LARGEST
        and 0 <= column.squares <= rows * LARGEST**2
        and len(ranges) <= 2 * MOST_RANGES
        and all(-LARGEST <= each.low <= each.high <= LARGEST and 1 <= each.rows <= rows for each in ranges)
        and sum(each.rows for each in ranges) <= rows + len(ranges)  # those of pixels are rounded to rows
    )


def _figure(number: int) -> str:
    """A number that a node may have chosen to be very long."""
    return str(number) if abs(number) <= MOST_ROWS else "impossibly many"


def _joined(portions: list[Described]) -> Statistics:
    first = _told(portions[0])
    columns = tuple(column for each in portions for column in _told(each).columns)
    return msgspec.structs.replace(first, columns=columns)
