"""What the nodes told of their data, and what deserves a look before anybody trains on it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from tutti.core.statistics import Column, Distribution, Statistics, pooled
from tutti.domain.events import NodeId
from tutti.services.views.base import View

if TYPE_CHECKING:
    from tutti.services.preflight import Told

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

FAR = 3.0
"""Deviations of all rows by which a node's mean may lie from that of all before it is remarked."""

WIDE = 20.0
"""A deviation that plain gradient descent copes with badly, as it does with its inverse."""


class Bar(View, frozen=True, kw_only=True):
    low: float
    high: float
    rows: int


class ColumnView(View, frozen=True, kw_only=True):
    """A column. None where it is of too few rows; `missing` None: some, but too few to say how many.

    `quantiles` are those of 0.05, 0.25, 0.5, 0.75 and 0.95, within 2 % and the share of the least number of rows.
    """

    name: str
    count: int | None
    missing: int | None
    mean: float | None
    deviation: float | None
    quantiles: list[float]
    histogram: list[Bar]


class NodePreflight(View, frozen=True, kw_only=True):
    """A node. `reason` says why it told nothing, if so. `least` is the fewest rows that a figure of it is of."""

    node: NodeId
    rows: int | None
    least: int | None
    reason: str
    columns: list[ColumnView]
    classes: list[int | None]


class PreflightView(View, frozen=True, kw_only=True):
    """All nodes, `rows`, `columns` and `classes` of all together, and remarks.

    `classes` are rows by class, as named in `class_names` (numbers where they have no names); None: hidden.
    """

    dataset: str
    rows: int
    columns: list[ColumnView]
    classes: list[int | None]
    class_names: list[str]
    nodes: list[NodePreflight]
    remarks: list[str]


def preflight_view(told: "Told") -> PreflightView:
    whole = pooled(told.parts)
    schema = told.schema
    labels = [*schema.classes] or [str(number) for number in range(schema.outputs)]
    names = labels if schema.task == "classification" else []
    nodes = [_node(node, told) for node in sorted({*told.parts, *told.silent})]
    return PreflightView(
        dataset=told.dataset,
        rows=whole.rows,
        columns=[_column(column) for column in whole.columns],
        classes=list(whole.classes),
        class_names=names,
        nodes=nodes,
        remarks=list(_remarks(told.parts, whole, names)),
    )


def _node(node: NodeId, told: "Told") -> NodePreflight:
    part = told.parts.get(node)
    return NodePreflight(
        node=node,
        rows=part.rows if part else None,
        least=told.least.get(node),
        reason=told.silent.get(node, ""),
        columns=[_column(column) for column in part.columns] if part else [],
        classes=list(part.classes) if part else [],
    )


def _column(column: Column) -> ColumnView:
    known, found = column.count > 0, Distribution(column.ranges)
    return ColumnView(
        name=column.name,
        count=column.count if known else None,
        missing=column.missing,
        mean=column.mean if known else None,
        deviation=column.deviation if known else None,
        quantiles=found.quantiles(QUANTILES),
        histogram=[Bar(low=bar.low, high=bar.high, rows=bar.rows) for bar in found.histogram()],
    )


def _remarks(parts: Mapping[NodeId, Statistics], whole: Statistics, classes: Sequence[str]) -> Iterator[str]:
    for node, part in sorted(parts.items()):
        if absent := [name for name, rows in zip(classes, part.classes, strict=False) if rows == 0]:
            yield f"{node} has no rows of class {', '.join(absent)}"
        for column in part.columns:
            if column.missing is None or column.missing:
                some = "a few" if column.missing is None else column.missing
                yield f"{node}: column {column.name!r} misses {some} values"
    for index, column in enumerate(whole.columns):
        yield from _remarks_on(column, {node: part.columns[index] for node, part in sorted(parts.items())})


def _remarks_on(column: Column, by_node: Mapping[NodeId, Column]) -> Iterator[str]:
    if column.count and column.deviation == 0:
        yield f"column {column.name!r} has one value only: it teaches nothing"
        return
    if column.count and (max(column.deviation, abs(column.mean)) > WIDE or column.deviation < 1 / WIDE):
        yield (
            f"column {column.name!r} has mean {column.mean:.3g} and deviation {column.deviation:.3g}: "
            "networks learn badly from it unless it is scaled (normalize)"
        )
    for node, part in by_node.items():
        if part.count and part.deviation == 0:
            stand_in = f"{part.mean:.3g}; is it a stand-in for missing ones?"
            yield f"{node}: column {column.name!r} has one value only, {stand_in}"
        elif part.count and abs(part.mean - column.mean) > FAR * column.deviation:
            yield (
                f"{node}: column {column.name!r} has mean {part.mean:.3g}, all together {column.mean:.3g}: "
                "is it in another unit?"
            )
