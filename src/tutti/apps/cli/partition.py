"""`partition`: who would hold what, before anybody holds it."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tutti.apps.cli import text
from tutti.apps.cli.options import File, as_json, print_json

if TYPE_CHECKING:
    from tutti.adapters.plots import Holdings

MOST_CLASSES = 12
"""Columns of the printed table; the picture and --json show all classes."""


@click.command()
@click.argument("dataset")
@click.option("--nodes", type=click.IntRange(1), default=10, show_default=True, help="How many there are.")
@click.option("--partition", default="iid", show_default=True, help="Who gets which rows, such as dirichlet:0.5.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Same seed, same parts.")
@click.option("--out", type=File, help="Draw it into this SVG file.")
@as_json
def partition(dataset: str, nodes: int, partition: str, seed: int, out: Path | None, as_json: bool) -> None:
    """Show who holds what when a data set is divided: rows by node and class.

    The parts are those of `tutti sim` and `tutti run` with the same partition, seed and number of nodes. Targets that
    are no classes are counted in ten ranges.

    \b
    Examples:
      tutti partition digits --nodes 6 --partition dirichlet:0.3 --out who.svg
      tutti partition heart-disease --nodes 4 --partition natural-id
    """
    from tutti.adapters.plots import drawn, who_holds_what
    from tutti.apps.cli.run_job import check_writable
    from tutti.core.registry import Choice

    if out is not None:
        check_writable(out)
    divided = partition.replace(",", ";")
    choice = Choice.parse(dataset)
    found = who_holds_what(Choice(choice.name, {**choice.options, "partition": divided, "seed": seed}), nodes)
    if out is not None:
        out.write_text(drawn(found), encoding="utf-8")
    if as_json:
        print_json({"title": found.title, "classes": found.classes, "nodes": _by_node(found)})
        return
    click.echo(_table(found))
    if out is not None:
        click.echo(f"picture: {out}")


def _by_node(found: "Holdings") -> list[dict[str, object]]:
    rows = zip(found.nodes, found.table.tolist(), strict=True)
    return [{"node": node, "rows": sum(counts), "classes": counts} for node, counts in rows]


def _table(found: "Holdings") -> str:
    few = len(found.classes) <= MOST_CLASSES
    header = ("node", "rows", *(found.classes if few else ("classes",)))
    rows = [
        (node, sum(counts), *(counts if few else (sum(count > 0 for count in counts),)))
        for node, counts in zip(found.nodes, found.table.tolist(), strict=True)
    ]
    return text.table(header, rows)
