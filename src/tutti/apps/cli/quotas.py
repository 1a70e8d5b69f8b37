"""`tutti quotas`: what the people of each organisation may have at once, and what they have."""

from typing import TYPE_CHECKING, Any

import click

from tutti.apps.cli import text
from tutti.apps.cli.options import FiniteRange, as_json, print_json, with_client

if TYPE_CHECKING:
    from tutti.apps.client import Client

ANY = "any"
SPENT = {"jobs": "jobs", "nodes": "nodes", "node_hours": "node hours", "stored": "stored"}
"""What is counted, by the fields of a quota, for the heads of a table."""


class Most(click.ParamType):  # type: ignore[type-arg]  # click 8.1 has no arguments for it
    """A number, or the word for any amount."""

    name = "number|any"

    def __init__(self, numbers: click.IntRange | FiniteRange) -> None:
        self._numbers = numbers

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == ANY else self._numbers.convert(value, param, ctx)


WHOLE, HOURS = Most(click.IntRange(0, 2**53)), Most(FiniteRange(0, 1e9))


@click.group()
def quotas() -> None:
    """Say how much the people of an organisation may have at once.

    \b
    Examples:
      tutti quotas show
      tutti quotas set Ward --jobs 2 --node-hours 500
    """


@quotas.command("show")
@as_json
@with_client
def show(client: "Client", as_json: bool) -> None:
    """List organisations with what each has, and of how much.

    \b
    Examples:
      tutti quotas show
      tutti quotas show --json
    """
    found = list(client.organisations())
    if as_json:
        print_json(found)
    elif not found:
        click.echo("no organisations yet: the first account makes one")
    else:
        rows = [[each.name, *(_spent(each, kind) for kind in SPENT)] for each in found]
        click.echo(text.table(["organisation", *SPENT.values()], rows))


def _spent(organisation: Any, kind: str) -> str:
    has, most = getattr(organisation.used, kind), getattr(organisation.quota, kind)
    return _written(kind, has) if most is None else f"{_written(kind, has)} of {_written(kind, most)}"


def _written(kind: str, count: float) -> str:
    return text.size(count) if kind == "stored" else f"{round(count, 1):,}"


@quotas.command("set")
@click.argument("organisation")
@click.option("--jobs", type=WHOLE, help="Jobs of its people that go on at once.")
@click.option("--nodes", type=WHOLE, help="Nodes that joined by invitations of its people.")
@click.option("--node-hours", type=HOURS, help="Of computing for its jobs of the last 30 days.")
@click.option("--stored", type=WHOLE, help="Bytes that are kept of its jobs.")
@with_client
def limit(client: "Client", organisation: str, **most: float | str | None) -> None:
    """Limit what the people of an organisation may have; `any` takes a limit back, what is left out stays.

    Takes an admin of the organisation that runs the coordinator. Nothing that runs is ended.

    \b
    Examples:
      tutti quotas set Ward --jobs 2 --node-hours 500
      tutti quotas set Ward --node-hours any
    """
    quota = {kind: None if value == ANY else value for kind, value in most.items() if value is not None}
    if not quota:
        raise click.UsageError("nothing to set: give --jobs, --nodes, --node-hours or --stored, each a number or `any`")
    client.limit_organisation(organisation, **quota)  # type: ignore[arg-type]  # numbers by now
    click.echo(f"{organisation}: {', '.join(f'{SPENT[kind]} {most[kind]}' for kind in quota)}")
