"""Who holds what: a picture of a partition, as an SVG file that needs nothing to be installed."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from tutti.adapters.datasets._common import Source, pool_of, population_of
from tutti.adapters.partitioners import Labels, Vertical, partitioners
from tutti.core.errors import UserError
from tutti.core.registry import Choice
from tutti.ports.training import datasets

_PALETTE = (
    "#4269d0",
    "#efb118",
    "#ff725c",
    "#6cc5b0",
    "#3ca951",
    "#ff8ab7",
    "#a463f2",
    "#97bbf5",
    "#9c6b4e",
    "#9498a0",
)
_WIDTH, _LEFT, _RIGHT, _TOP, _TALL = 860, 120, 70, 64, 720
_BINS = 10


class CannotPlot(UserError):
    """There is no such picture of these data."""


@dataclass(frozen=True, slots=True, eq=False)
class Holdings:
    """Rows by node and class: `table` is int64 (nodes, classes)."""

    title: str
    nodes: list[str]
    classes: list[str]
    table: NDArray[np.int64]


def who_holds_what(dataset: Choice, nodes: int) -> Holdings:
    """How `dataset` with its options `partition` and `seed` is divided.

    Continuous targets are counted in ten equally frequent ranges. Raises UserError as loading the data would.
    """
    built = datasets.build(dataset)
    if not isinstance(built, Source):
        raise CannotPlot(f"data set {dataset.name!r} is of a plug-in that cannot be divided; plot a built-in one")
    rows, carving = built.read(), built.carving
    pool = pool_of(rows)
    partition = partitioners.build(Choice.parse(carving.partition.replace(";", ",")))
    if isinstance(partition, Vertical):
        raise CannotPlot(f"partition {carving.partition!r} divides features: every node holds all rows")
    parts = partition(population_of(rows, pool), nodes, carving.seed)
    table, numbers = counts(rows.y[pool], parts)
    names = list(rows.schema.classes) or numbers
    nodes_named = _node_names(parts, None if rows.ids is None else rows.ids[pool])
    return Holdings(f"{dataset.name}, {carving.partition}, seed {carving.seed}", nodes_named, names, table)


def drawn(holdings: Holdings) -> str:
    """The same as SVG: a bar a node, stacked by class."""
    return bars(holdings.table, holdings.classes, holdings.title, holdings.nodes)


def _node_names(parts: Sequence[NDArray[np.int64]], ids: NDArray[np.str_] | None) -> list[str]:
    """The id of a node all of whose rows are of one, otherwise its number."""
    owners: list[list[str]] = [[] if ids is None else np.unique(ids[part]).tolist() for part in parts]
    return [mine[0] if len(mine) == 1 else f"node-{number}" for number, mine in enumerate(owners, start=1)]


def counts(labels: Labels, parts: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], list[str]]:
    """How many rows of each class each part has, (parts, classes), and the classes' names."""
    if labels.ndim == 1:
        codes, names = labels.astype(np.int64), [str(label) for label in range(int(labels.max()) + 1)]
    else:
        values = np.asarray(labels, np.float64).reshape(len(labels), -1)[:, 0]
        edges = np.quantile(values, np.linspace(0, 1, _BINS + 1))
        codes = np.searchsorted(edges[1:-1], values, side="right").astype(np.int64)
        names = [f"{low:.3g} … {high:.3g}" for low, high in pairwise(edges.tolist())]
    return np.array([np.bincount(codes[part], minlength=len(names)) for part in parts]), names


def bars(table: NDArray[np.int64], names: Sequence[str], title: str, nodes: Sequence[str]) -> str:
    """SVG of counts (nodes, classes): horizontal bars from the top, as wide as the node has rows."""
    pitch = min(26.0, _TALL / len(table))
    legend = _legend(names)
    top = _TOP + 18 * len(legend)
    height = top + pitch * len(table) + 16
    scale = (_WIDTH - _LEFT - _RIGHT) / max(1, int(table.sum(axis=1).max()))
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}" '
        f'height="{height:.0f}" role="img" font-family="system-ui, sans-serif" font-size="12">',
        f"<title>Who holds what: {escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{height:.0f}" fill="#fff"/>',
        f'<text x="16" y="26" font-size="16" font-weight="600">{escape(title)}</text>',
        f'<text x="16" y="46" fill="#555">{table.sum()} rows on {len(table)} nodes</text>',
        *(line for row, entries in enumerate(legend) for line in _legend_row(entries, names, _TOP + 18 * row)),
        *(line for i, node in enumerate(nodes) for line in _bar(node, table[i], names, top + pitch * i, pitch, scale)),
        "</svg>",
    ]
    return "\n".join(body) + "\n"


def _bar(node: str, row: NDArray[np.int64], names: Sequence[str], y: float, pitch: float, scale: float) -> list[str]:
    total, thick = int(row.sum()), max(1.0, pitch - (4 if pitch > 8 else 0))
    ends = _LEFT + np.cumsum(row) * scale
    parts = [
        f'<rect x="{end - count * scale:.1f}" y="{y:.1f}" width="{count * scale:.1f}" height="{thick:.1f}" '
        f'fill="{_colour(label, len(names))}">'
        f"<title>{escape(node)}: {count} of class {escape(names[label])}</title></rect>"
        for label, (count, end) in enumerate(zip(row.tolist(), ends.tolist(), strict=True))
        if count
    ]
    if pitch < 11:
        return parts
    middle = y + thick / 2 + 4
    return [
        f'<text x="{_LEFT - 8}" y="{middle:.1f}" text-anchor="end">{escape(node)}</text>',
        *parts,
        f'<text x="{_LEFT + total * scale + 6:.1f}" y="{middle:.1f}" fill="#555">{total}</text>',
    ]


def _legend(names: Sequence[str]) -> list[list[tuple[int, float]]]:
    """Rows of (class, x), broken where a row is full."""
    rows: list[list[tuple[int, float]]] = [[]]
    x = 16.0
    for label, name in enumerate(names):
        wide = 26 + 7 * len(name)
        if x + wide > _WIDTH - 16 and rows[-1]:
            rows.append([])
            x = 16.0
        rows[-1].append((label, x))
        x += wide
    return rows


def _legend_row(entries: list[tuple[int, float]], names: Sequence[str], y: float) -> list[str]:
    return [
        f'<rect x="{x:.0f}" y="{y - 4:.0f}" width="11" height="11" fill="{_colour(label, len(names))}"/>'
        f'<text x="{x + 15:.0f}" y="{y + 6:.0f}">{escape(names[label])}</text>'
        for label, x in entries
    ]


def _colour(label: int, classes: int) -> str:
    """Ten colours that differ to most eyes; beyond ten classes, neighbours on the wheel in two shades."""
    if classes <= len(_PALETTE):
        return _PALETTE[label]
    return f"hsl({360 * label / classes:.0f} 65% {45 if label % 2 else 62}%)"
