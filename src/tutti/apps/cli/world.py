"""`world`: nodes that differ, come and go and break, from a file; on virtual time, or for a real coordinator."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tutti.apps.cli import text
from tutti.apps.cli.exits import JobNotDone
from tutti.apps.cli.options import ExistingFile, File, Folder, as_json, print_json

if TYPE_CHECKING:
    from tutti.domain.forecast import Forecast, Usage
    from tutti.domain.jobs import Job
    from tutti.sim.worlds import Outcome


@click.group()
def world() -> None:
    """Try a job on nodes that differ, come and go, break and cheat: WORLD is a TOML file (see docs/worlds.md).

    \b
    Examples:
      tutti world run examples/world.toml examples/job.toml
      tutti world join examples/world.toml 'http://host:8000/join#token' --nodes 1-10
    """


@world.command()
@click.argument("world_file", metavar="WORLD", type=ExistingFile)
@click.argument("job_file", metavar="JOB", type=ExistingFile)
@click.option("--set", "more", multiple=True, metavar="FIELD=VALUE", help="Any other field of the job.")
@click.option("--trace", type=File, help="Write every event to this file, one line of JSON each.")
@as_json
def run(world_file: Path, job_file: Path, more: tuple[str, ...], trace: Path | None, as_json: bool) -> None:
    """Run a job on virtual time, with the coordinator and the node runtime of a deployment.

    Days pass in seconds. The same world and job give the same events at the same times, byte for byte.

    \b
    Examples:
      tutti world run examples/world.toml examples/job.toml
      tutti world run examples/world.toml examples/job.toml --set rounds=100 --trace events.jsonl
    """
    from tutti.apps.cli.run_job import check_writable, checked, spec_from
    from tutti.domain.forecast import usage
    from tutti.sim.worlds import forecast_world, read_world, simulate_world

    if trace is not None:
        check_writable(trace)
    _prepare()
    raw = spec_from(job_file, {}, more)
    raw.setdefault("name", raw.get("dataset", "job"))
    spec, found = checked(raw), read_world(world_file)
    expected = forecast_world(found, spec)
    outcome = simulate_world(found, spec, watch=None if as_json else _show)
    if trace is not None:
        trace.write_bytes(outcome.trace())
    happened = usage(outcome.job, watts=found.machine.watts, joules=found.network.joules)
    if as_json:
        print_json(_facts(outcome, expected, happened))
    else:
        click.echo(_words(outcome, expected, happened))
    if outcome.job.status != "completed":
        raise JobNotDone(f"the job is {outcome.job.status}: {outcome.job.outcome or 'the world ended first'}")


def _prepare() -> None:
    """As on a node: one computing thread, so that results do not depend on the machine. Nodes fail here by design."""
    import logging
    import os

    from tutti.adapters.machine import apply_limits
    from tutti.domain.policy import Policy

    apply_limits(Policy())
    if "TUTTI_LOG" not in os.environ:
        logging.getLogger("tutti").setLevel(logging.CRITICAL)


def _show(job: "Job") -> None:
    last = job.past[-1]
    click.echo(f"round {last.number:>3}  {last.accepted}/{last.cohort}  {last.reason}", err=True)


def _facts(outcome: "Outcome", expected: "Forecast", happened: "Usage") -> dict[str, Any]:
    job = outcome.job
    return {
        "status": str(job.status),
        "outcome": job.outcome,
        "rounds": job.rounds_done,
        "model": job.model,
        "seconds": outcome.seconds,
        "took": outcome.took,
        "events": len(outcome.events),
        "trace": outcome.digest(),
        "coordinator_crashes": outcome.crashes,
        "coordinator_takeovers": outcome.stalls,
        "node_deaths": outcome.deaths,
        "forecast": expected,
        "happened": happened,
    }


def _words(outcome: "Outcome", expected: "Forecast", happened: "Usage") -> str:
    from tutti.apps.cli.forecast import beside

    job, times = outcome.job, (text.duration(outcome.seconds), text.duration(outcome.took))
    return (
        f"{beside(expected, happened)}\n"
        f"{job.status}: {job.outcome}; {times[0]} of world time in {times[1]}, "
        f"{len(outcome.events)} events (trace {outcome.digest()[:12]}), {outcome.deaths} nodes died in a task, "
        f"the coordinator crashed {outcome.crashes} times, and was replaced {outcome.stalls} times; "
        f"model {job.model[:12]}"
    )


@world.command()
@click.argument("world_file", metavar="WORLD", type=ExistingFile)
@click.argument("link")
@click.option("--nodes", "numbers", metavar="FIRST-LAST", help="Only these of the world's nodes.  [default: all]")
@click.option("--state-dir", type=Folder, default="world-nodes", show_default=True, help="What the nodes keep.")
@as_json
def join(world_file: Path, link: str, numbers: str | None, state_dir: Path, as_json: bool) -> None:
    """Take part with a world's nodes, as slow and as faulty as the file says, in real time, until ctrl-C.

    LINK must be good for as many nodes (`tutti invite --uses`). What only a simulation can do, such as crashes of
    the coordinator, is left out.

    \b
    Examples:
      tutti world join examples/world.toml 'http://host:8000/join#token'
      tutti world join examples/world.toml 'http://host:8000/join#token' --nodes 1-10
    """
    from tutti.apps.cli.serving import until_signalled
    from tutti.apps.worldnodes import WorldSettings, run_world
    from tutti.sim.worlds import read_world

    _prepare()
    found = read_world(world_file)
    settings = WorldSettings(world=found, link=link, numbers=_numbers(numbers, found.nodes), state_dir=state_dir)

    def ready() -> None:
        facts = {"nodes": len(settings.numbers), "link": link.partition("#")[0]}
        _print_line(facts) if as_json else click.echo(f"{len(settings.numbers)} nodes live here; ctrl-C ends them")

    import asyncio

    asyncio.run(until_signalled(run_world(settings, ready)))


def _print_line(facts: dict[str, Any]) -> None:
    click.echo(json.dumps(facts))


def _numbers(written: str | None, nodes: int) -> range:
    if written is None:
        return range(1, nodes + 1)
    first, dash, last = written.partition("-")
    if not (first.isdecimal() and (last.isdecimal() if dash else True)):
        raise click.BadParameter(f"expected numbers such as 1-10, came {written!r}", param_hint="--nodes")
    found = range(int(first), int(last or first) + 1)
    if not found or found[0] < 1 or found[-1] > nodes:
        raise click.BadParameter(f"this world has the nodes 1-{nodes}, came {written!r}", param_hint="--nodes")
    return found
