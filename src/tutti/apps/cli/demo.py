"""`demo`: the whole of it on one machine in a minute: what a node can learn alone, and what all learn together."""

import os
import shutil
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tutti.apps.cli import text
from tutti.apps.cli.exits import JobNotDone

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tutti.apps.cli.federation import Federation
    from tutti.apps.client import Client
    from tutti.domain.spec import JobSpec
    from tutti.services.views import JobView
    from tutti.sim.baselines import Baselines

NODES = 4
TEST = "digits:split=test"
JOB: dict[str, Any] = {
    "name": "demo",
    "dataset": "digits",
    "model": "mlp:hidden=64",
    "strategy": "fedavg",
    "rounds": 20,
    "seed": 7,
    "training": {"epochs": 2, "batch_size": 16, "lr": 0.1, "momentum": 0.9, "lr_schedule": "cosine"},
    "cohort": {"min_nodes": NODES, "wait": 120.0},
    "evaluation": {"nodes": False, "data": TEST},
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The federated run: how good, how many bytes of models and updates travelled, and how long it took.

    `coordinator` says how to reach and end the coordinator, if it goes on.
    """

    job: "JobView"
    bytes: int
    seconds: float
    coordinator: str


@click.command()
@click.option("--keep", is_flag=True, help="Leave the coordinator running, to look around.")
@click.option("--rounds", type=click.IntRange(1), default=JOB["rounds"], show_default=True, help="How many.")
@click.option("--alpha", type=float, default=0.2, show_default=True, help="The smaller, the more the parts differ.")
def demo(keep: bool, rounds: int, alpha: float) -> None:
    """Train on handwritten digits with four nodes, and compare.

    A coordinator and four nodes run as processes of their own. Every node has another part of the data, in
    which some digits hardly occur. At the end three kinds of models are measured on the same test rows: what each
    node learns alone, what one machine learns from all data in one place, and what the nodes learned together.

    \b
    Examples:
      tutti demo
      tutti demo --keep
      tutti demo --alpha 100 --rounds 5
    """
    from tutti.apps.cli.run_job import parts_of
    from tutti.domain.spec import load_spec

    spec = load_spec({**JOB, "rounds": rounds})
    sources = parts_of("digits:held_out=0", NODES, f"dirichlet:{alpha:g}", spec.seed)
    nodes = {f"node-{number}": source for number, source in enumerate(sources, start=1)}
    outcome = _train_together(spec, nodes, keep)
    click.echo("\nthe same work without federation: every node alone, and all data in one place …")
    _print_comparison(outcome, _train_apart(spec, nodes, outcome.job.rounds_done))
    if keep:
        click.echo(f"\n{outcome.coordinator}")


def _train_together(spec: "JobSpec", nodes: dict[str, str], keep: bool) -> Outcome:
    from tutti.apps.cli.federation import Federation
    from tutti.apps.cli.live import follow
    from tutti.apps.client import Client

    with _folder(keep) as folder, Federation(folder, keep=keep) as federation, Client(federation.url) as client:
        click.echo(f"coordinator at {federation.url}, starting {len(nodes)} nodes")
        federation.join(nodes)
        started = time.monotonic()
        job = follow(client, client.submit(spec))
        outcome = Outcome(job, _bytes_moved(client), time.monotonic() - started, _whereabouts(federation))
        if job.status != "completed":
            raise JobNotDone(f"the demo's job {job.status}: {job.reason}")
    return outcome


def _whereabouts(federation: "Federation") -> str:
    return (
        f"the coordinator goes on at {federation.url} (API: {federation.url}/docs); look around with\n"
        f"  tutti why demo --round 3 --url {federation.url}\n"
        f"its data are in {federation.folder}; `kill {federation.pid}` ends it"
    )


@contextmanager
def _folder(keep: bool) -> "Iterator[Path]":
    """A temporary folder; kept only for a coordinator that goes on."""
    folder, done = Path(tempfile.mkdtemp(prefix="tutti-demo-")), False
    try:
        yield folder
        done = True
    finally:
        if not (keep and done):
            shutil.rmtree(folder, ignore_errors=True)


def _bytes_moved(client: "Client") -> int:
    counted = client.overview()
    return counted.bytes_in + counted.bytes_out


def _train_apart(spec: "JobSpec", nodes: dict[str, str], rounds: int) -> "Baselines":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a network this small only loses by more threads
    from tutti.apps.nodes import load_data
    from tutti.core.registry import Choice
    from tutti.sim import Federation
    from tutti.sim.baselines import baselines

    parts = {name: load_data(Choice.parse(source)) for name, source in nodes.items()}
    return baselines(spec, Federation.of(parts), rounds)


def _print_comparison(outcome: Outcome, apart: "Baselines") -> None:
    from tutti.apps.cli.baselines import beside, measured

    job = outcome.job
    click.echo(f"\n{beside(apart, measured(job))}")
    click.echo(
        f"\n{job.rounds_done} rounds with {apart.nodes} nodes, "
        f"{text.size(outcome.bytes)} of models and updates, {text.duration(outcome.seconds)}"
    )
    best = max(baseline.metrics.get("accuracy", 0.0) for baseline in apart.alone.values())
    if (job.accuracy or 0.0) <= best:
        click.echo("the federated model is no better than the best local one: these parts hardly differ")
