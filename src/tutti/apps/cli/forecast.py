"""`forecast`: what a job will take; and the table in which it stands beside what the job took."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tutti.apps.cli import text
from tutti.apps.cli.options import ExistingFile, as_json, print_json, with_client

if TYPE_CHECKING:
    from tutti.apps.client import Client
    from tutti.domain.forecast import Forecast, Usage


@click.command()
@click.argument("job_file", type=ExistingFile)
@click.option("--set", "more", multiple=True, metavar="FIELD=VALUE", help="Any other field, such as rounds=50.")
@as_json
@with_client
def forecast(client: "Client", job_file: Path, more: tuple[str, ...], as_json: bool) -> None:
    """Say what a job would take if it were submitted now: time, bytes, memory, energy. Nothing is started.

    Nodes that have trained the model before are taken to be as fast as they were then.

    \b
    Examples:
      tutti forecast examples/job.toml
      tutti forecast examples/job.toml --set rounds=50 --json
    """
    from tutti.apps.cli.run_job import checked, spec_from

    raw = spec_from(job_file, {}, more)
    raw.setdefault("name", raw.get("dataset", "job"))
    found = client.forecast(checked(raw))
    print_json(found) if as_json else click.echo(beside(found))


def beside(forecast: "Forecast", usage: "Usage | None" = None) -> str:
    """A forecast, and in the next column what happened, where that is known."""
    rows: list[list[Any]] = [
        ["time", text.duration(forecast.seconds)],
        ["updates", forecast.updates],
        ["to nodes", text.size(forecast.bytes_down)],
        ["from nodes", text.size(forecast.bytes_up)],
        ["energy", text.energy(forecast.joules)],
        ["coordinator memory", text.size(forecast.coordinator_memory)],
        ["node memory", text.size(forecast.node_memory)],
    ]
    header = ["", "forecast"]
    if usage is not None:
        header.append("happened")
        happened = [
            text.duration(usage.seconds),
            usage.updates,
            text.size(usage.bytes_down),
            text.size(usage.bytes_up),
            text.energy(usage.joules),
            "",
            "",
        ]
        rows = [[*row, what] for row, what in zip(rows, happened, strict=True)]
    return "\n".join([text.table(header, rows), *(f"note: {note}" for note in forecast.notes)])
