"""`catalog`: what a job or a node can name, and the options of each."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from tutti.apps.cli.options import as_json, print_json

if TYPE_CHECKING:
    from tutti.core.registry import Registry

KINDS = ("models", "strategies", "reducers", "codecs", "schedules", "datasets", "partitioners", "engines")


@click.command()
@click.argument("kind", required=False, type=click.Choice(KINDS))
@as_json
def catalog(kind: str | None, as_json: bool) -> None:
    """List the models, strategies and data sources there are.

    And reducers, codecs, learning-rate schedules, partitioners and simulation engines, each with its options. A choice
    is written NAME or NAME:OPTION=VALUE,OPTION=VALUE; the first option needs no name.

    \b
    Examples:
      tutti catalog
      tutti catalog models
      tutti catalog datasets --json
    """
    found = {name: described(name) for name in ([kind] if kind else KINDS)}
    if as_json:
        print_json(found)
        return
    for name, entries in found.items():
        click.secho(name, bold=True)
        for entry, schema in entries.items():
            click.echo(f"  {entry:<17} {schema['description']}")
            if options := options_of(schema):
                click.echo(f"  {'':<17} {', '.join(options)}")


def described(kind: str) -> Mapping[str, Mapping[str, Any]]:
    from tutti.core.codec import AUTO
    from tutti.core.registry import describe

    found = describe(registry(kind))
    if kind != "codecs":
        return found
    chosen = "Chosen by each node: the mildest of none, fp16, int8 and int4 that its link needs."
    return {AUTO.name: {"description": chosen}, **found}  # no codec itself, but a job names it like one


def registry(kind: str) -> "Registry[Any]":
    from tutti.adapters.partitioners import partitioners
    from tutti.core.codec import codecs
    from tutti.core.reduce import reducers
    from tutti.core.schedules import schedules
    from tutti.core.strategy import strategies
    from tutti.ports.training import datasets, models
    from tutti.sim.engines import engines

    registries: dict[str, Registry[Any]] = {
        "models": models,
        "strategies": strategies,
        "reducers": reducers,
        "codecs": codecs,
        "schedules": schedules,
        "datasets": datasets,
        "partitioners": partitioners,
        "engines": engines,
    }
    return registries[kind]


def options_of(schema: Mapping[str, Any]) -> list[str]:
    """`name=default`, or `name=…` where one has to be given."""
    return [
        f"{name}={_written(field['default'])}" if "default" in field else f"{name}=…"
        for name, field in schema.get("properties", {}).items()
    ]


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
