"""`preflight`: what the nodes hold, in statistics of many rows, before a job starts."""

from typing import TYPE_CHECKING

import click

from tutti.apps.cli import text
from tutti.apps.cli.options import as_json, print_json, with_client

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tutti.apps.client import Client
    from tutti.services.views import ColumnView, PreflightView

BLOCKS = "▁▂▃▄▅▆▇█"


@click.command()
@click.argument("dataset", required=False)
@click.option("--column", help="Also show this column node by node.")
@click.option("--data", "source", help="Simulated nodes that divide this data source, instead of a coordinator's.")
@click.option("--nodes", type=click.IntRange(1), default=4, show_default=True, help="How many simulated nodes.")
@click.option("--partition", default="iid", show_default=True, help="How they divide it, such as dirichlet:0.3.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of that partition.")
@as_json
@with_client
def preflight(
    client: "Client",
    dataset: str | None,
    column: str | None,
    source: str | None,
    nodes: int,
    partition: str,
    seed: int,
    as_json: bool,
) -> None:
    """Look at the nodes' data before a job starts, without seeing a row.

    Count, missing values, mean, deviation, quantiles and a histogram of every column over all nodes, rows by class, and
    remarks: classes that a node does not have, other units, columns that vary too little or too much. Every node tells
    of groups of rows only, of as many or more as its owner wants (min_rows in the policy, 10 if it says nothing), and
    always the same; its owner may forbid it (allow_statistics). The coordinator lets operators ask, and its audit log
    has who did. With --data the nodes are simulated.

    \b
    Examples:
      tutti preflight patients
      tutti preflight patients --column age
      tutti preflight --data heart-disease --nodes 4 --partition natural-id
    """
    if (dataset is None) == (source is None):
        raise click.UsageError(
            "name the DATASET that nodes of a coordinator hold, or a source for simulated ones by --data"
        )
    if source is not None:
        from tutti.services.views import preflight_view
        from tutti.sim import Federation

        found = preflight_view(Federation.divide(source, nodes, partition, seed=seed, held_out=0.0).describe())
    else:
        found = client.preflight(str(dataset))
    print_json(found) if as_json else _show(found, column)


def _show(found: "PreflightView", column: str | None) -> None:
    click.echo(f"{found.dataset}: {found.rows} rows to train on\n")
    header = ("column", *_HEADER)
    click.echo(text.table(header, [(each.name, *_cells(each)) for each in found.columns]))
    if found.classes:
        rows = [(node.node, *(_hidden(n) for n in node.classes)) for node in found.nodes if node.classes]
        click.echo(
            "\n" + text.table(("rows by class", *found.class_names), [*rows, ("all", *map(_hidden, found.classes))])
        )
    if column is not None:
        click.echo("\n" + text.table((column, *_HEADER), list(_by_node(found, column))))
    silent = [f"{node.node} told nothing: {node.reason}" for node in found.nodes if node.reason]
    if remarks := [*silent, *found.remarks]:
        click.echo("\n" + "\n".join(f"- {remark}" for remark in remarks))


_HEADER = ("values", "missing", "mean", "deviation", "5 %", "median", "95 %", "histogram")


def _cells(column: "ColumnView") -> "Sequence[object]":
    quantiles: list[float | None] = [*column.quantiles] or [None] * 5
    low, _, median, _, high = quantiles
    missing = "some" if column.missing is None else column.missing
    figures = (text.number(each) for each in (column.mean, column.deviation, low, median, high))
    return ("-" if column.count is None else column.count, missing, *figures, _sketch(column))


def _sketch(column: "ColumnView") -> str:
    most = max((bar.rows for bar in column.histogram), default=0)
    return "".join(BLOCKS[round(bar.rows / most * (len(BLOCKS) - 1))] if bar.rows else " " for bar in column.histogram)


def _by_node(found: "PreflightView", column: str) -> "Iterator[Sequence[object]]":
    names = [each.name for each in found.columns]
    if column not in names:
        raise click.BadParameter(f"there is no column {column!r}; there are: {', '.join(names)}", param_hint="--column")
    for node in found.nodes:
        if node.columns:
            yield (node.node, *_cells(node.columns[names.index(column)]))


def _hidden(rows: int | None) -> object:
    return "few" if rows is None else rows
