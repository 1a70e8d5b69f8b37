"""`replay`: a run once more from its manifest, and whether the same model comes out."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tutti.apps.cli import text
from tutti.apps.cli.exits import JobNotDone
from tutti.apps.cli.options import ExistingFile, allow_module, as_json, print_json

if TYPE_CHECKING:
    from tutti.ports.training import Data
    from tutti.services.manifest import Manifest

RUNS = Path(".tutti") / "runs"
"""Where `tutti run` and `tutti sim` leave the manifest of every run, below the working directory."""


@click.command()
@click.argument("manifest", type=ExistingFile)
@click.option("--data", "sources", multiple=True, metavar="NODE=SOURCE", help="A node's data, where they are its own.")
@allow_module
@as_json
def replay(manifest: Path, sources: tuple[str, ...], allow_modules: tuple[str, ...], as_json: bool) -> None:
    """Make a run again from its manifest, and compare the models bit by bit.

    `tutti sim` and `tutti run` write a manifest of every run into .tutti/runs; `tutti jobs manifest` prints that of any
    job. Simulations, and jobs whose nodes hold parts of known data sets, can be made again anywhere. Data of a node's
    own never leave it: whoever has them names them with --data. Rounds that went on without a node cannot be made
    again. Other versions of Python packages or other processors may compute other bits; a warning says so.

    \b
    Examples:
      tutti replay .tutti/runs/digits-36467c407116.json
      tutti replay job.json --data clinic-a=csv:path=a.csv,target=died --data clinic-b=csv:path=b.csv,target=died
    """
    from tutti.services.manifest import read_manifest

    found = read_manifest(manifest)
    os.environ["OMP_NUM_THREADS"] = str(found.threads)  # before anything that computes is imported
    from tutti.adapters._imports import importable
    from tutti.sim.replay import replay as again

    for warning in _differences(found):
        click.echo(f"warning: {warning}", err=True)
    with importable(allow_modules):
        history = again(found, _data(found, sources))
    same = history.model == found.model
    if as_json:
        print_json({"run": found.run, "expected": found.model, "came": history.model, "identical": same})
    if not same:
        raise JobNotDone(
            f"{found.run} came out differently: expected model {found.model[:12]}, came {history.model[:12]}"
        )
    if not as_json:
        seconds = text.duration(history.header.seconds)
        click.echo(f"bit-identical: model {history.model[:12]} after {found.rounds} rounds, {seconds}")


def _data(manifest: "Manifest", sources: tuple[str, ...]) -> "dict[str, Data]":
    from tutti.apps.nodes import load_data
    from tutti.core.registry import Choice

    named = {node: holding.source for node, holding in manifest.nodes.items() if holding.source}
    for given in sources:
        node, equals, source = given.partition("=")
        if not equals or node not in manifest.nodes:
            there = ", ".join(manifest.nodes)
            raise click.BadParameter(f"expected NODE=SOURCE with one of {there}, came {given!r}", param_hint="--data")
        named[node] = source
    return {node: load_data(Choice.parse(source)) for node, source in named.items()}


def _differences(manifest: "Manifest") -> list[str]:
    from tutti.services.manifest import versions

    here = versions()
    made_with = [manifest.versions, *(holding.versions for holding in manifest.nodes.values())]
    found = {(name, each[name]) for each in made_with for name in each if name in here and each[name] != here[name]}
    return [f"made with {name} {was}, here is {here[name]}: the bits may differ" for name, was in sorted(found)]


def keep(manifest: "Manifest") -> str:
    """Write a run's manifest where runs are kept; a line that says so, or why it could not be."""
    from tutti.services.manifest import write_manifest

    file = RUNS / f"{manifest.run if manifest.kind == 'job' else f'{manifest.run}-{manifest.model[:12]}'}.json"
    try:
        write_manifest(manifest, file)
    except OSError as error:
        return f"no manifest: cannot write {file}: {error.strerror or error}"
    return f"manifest: {file}"
