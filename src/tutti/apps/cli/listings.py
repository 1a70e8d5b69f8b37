"""Look at what a coordinator knows: jobs, nodes, rounds, and why a round went as it did."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from tutti.apps.cli import text
from tutti.apps.cli.evaluate import show
from tutti.apps.cli.options import as_json, find_job, print_json, with_client

if TYPE_CHECKING:
    from tutti.apps.client import Client
    from tutti.services.views import AttemptView, JobView, NodeView, PartView, RoundView, WhyView


@click.group()
def jobs() -> None:
    """List jobs, look at one, steer it.

    JOB is an id, or a name; a name means the newest job that is called so.

    \b
    Examples:
      tutti jobs ls
      tutti jobs show digits
      tutti jobs pause digits-1a2b3c4d
    """


@jobs.command("ls")
@click.option("--status", help="Only those: waiting, training, paused, completed, stopped, failed.")
@as_json
@with_client
def jobs_ls(client: "Client", status: str | None, as_json: bool) -> None:
    """List jobs, the newest first.

    \b
    Examples:
      tutti jobs ls
      tutti jobs ls --status training --json
    """
    found = list(client.jobs(**({"status": status} if status else {})))
    if as_json:
        print_json(found)
        return
    rows = [
        (
            job.id,
            job.status,
            f"{job.rounds_done}/{job.rounds}",
            text.share(job.accuracy),
            text.number(job.loss),
            job.dataset,
            job.model,
        )
        for job in found
    ]
    _print_table(("id", "status", "rounds", "accuracy", "loss", "dataset", "model"), rows, "no jobs yet: `tutti run`")


@jobs.command("show")
@click.argument("job")
@as_json
@with_client
def jobs_show(client: "Client", job: str, as_json: bool) -> None:
    """Look at one job.

    \b
    Examples:
      tutti jobs show digits
      tutti jobs show digits --json
    """
    found = find_job(client, job)
    if as_json:
        print_json(found)
    else:
        _print_facts(_job_facts(found))


@jobs.command("evaluation")
@click.argument("job")
@click.option("--round", "number", type=click.IntRange(0), help="Its model.  [default: the newest that was measured]")
@as_json
@with_client
def jobs_evaluation(client: "Client", job: str, number: int | None, as_json: bool) -> None:
    """See what each node measured of a model, on rows that it holds out.

    And how evenly the model serves them: the worst node, and the variance over nodes.

    \b
    Examples:
      tutti jobs evaluation digits
      tutti jobs evaluation digits --round 3 --json
    """
    found = client.evaluation(find_job(client, job).id, number)
    print_json(found) if as_json else show(found)


@jobs.command("manifest")
@click.argument("job")
@with_client
def jobs_manifest(client: "Client", job: str) -> None:
    """Print what it takes to make a job's model again, as JSON (`tutti replay`).

    \b
    Examples:
      tutti jobs manifest digits > digits.json
    """
    print_json(client.manifest(find_job(client, job).id))


def _job_facts(job: "JobView") -> dict[str, object]:
    return {
        "id": job.id,
        "name": job.name,
        "status": f"{job.status} ({job.reason})" if job.reason else job.status,
        "rounds": f"{job.rounds_done} of {job.rounds}",
        "accuracy": text.share(job.accuracy),
        "loss": text.number(job.loss),
        "best round": "-" if job.best_round is None else job.best_round,
        "dataset": job.dataset,
        "model": f"{job.model} ({job.parameters} parameters)",
        "digest": job.model_digest or "-",
        "strategy": job.strategy,
        "nodes": f"{job.nodes_ready} ready, {job.nodes_needed} needed",
        "submitted": f"{text.moment(job.submitted_at)} by {job.by or 'nobody'}",
    }


def _steering(verb: str, past: str, help: str) -> None:
    """Add `tutti jobs VERB JOB`."""

    @jobs.command(
        verb, help=f"{help}\n\n\b\nExamples:\n  tutti jobs {verb} digits\n  tutti jobs {verb} digits-1a2b3c4d"
    )
    @click.argument("job")
    @as_json
    @with_client
    def steer(client: "Client", job: str, as_json: bool) -> None:
        found = getattr(client, verb)(find_job(client, job).id)
        if as_json:
            print_json(found)
        else:
            click.echo(f"{found.id} {past}")


_steering("pause", "pauses: the open round still runs to its end", "Let the open round end, and start no further one.")
_steering("resume", "goes on", "Go on with a paused job.")
_steering("stop", "is stopped; its latest model stays", "End a job for good; its latest model stays.")


@click.group()
def nodes() -> None:
    """List nodes, look at one, let one rest, send one away.

    \b
    Examples:
      tutti nodes ls
      tutti nodes rm clinic-b
    """


@nodes.command("ls")
@as_json
@with_client
def nodes_ls(client: "Client", as_json: bool) -> None:
    """List the nodes that have joined.

    \b
    Examples:
      tutti nodes ls
      tutti nodes ls --json
    """
    found = list(client.nodes())
    if as_json:
        print_json(found)
        return
    rows = [
        (n.name, _presence(n), n.dataset or "-", n.examples, n.task or "-", text.moment(n.last_seen)) for n in found
    ]
    _print_table(("name", "state", "dataset", "examples", "task", "last seen"), rows, "no nodes yet: `tutti join`")


@nodes.command("show")
@click.argument("node")
@as_json
@with_client
def nodes_show(client: "Client", node: str, as_json: bool) -> None:
    """Look at one node.

    \b
    Examples:
      tutti nodes show clinic-a
    """
    found = client.node(node)
    if as_json:
        print_json(found)
    else:
        _print_facts(_node_facts(found))


def _presence(node: "NodeView") -> str:
    if node.drained:
        return "drained"
    if not node.connected:
        return "away"
    return "closed" if node.terms and not node.terms.open else "connected"


def _node_facts(node: "NodeView") -> dict[str, object]:
    machine = node.machine
    return {
        "name": node.name,
        "state": _presence(node),
        "task": node.task or "-",
        "dataset": f"{node.dataset or '-'}, {node.examples} examples, {node.held_out} held out",
        "machine": f"{machine.cpus} CPUs, {text.size(machine.memory)}, {len(machine.gpus)} GPUs" if machine else "-",
        "in use": f"CPU {text.share(node.cpu)}, memory {text.share(node.memory_used)}",
        "versions": ", ".join(f"{name} {version}" for name, version in machine.versions.items()) if machine else "-",
        "joined": text.moment(node.joined_at),
        "last seen": text.moment(node.last_seen),
    }


@nodes.command("drain")
@click.argument("node")
@with_client
def nodes_drain(client: "Client", node: str) -> None:
    """Let a node finish what it does, and give it no more work.

    \b
    Examples:
      tutti nodes drain clinic-b
    """
    client.drain_node(node)
    click.echo(f"{node} is given no more work; `tutti nodes undrain {node}` takes that back")


@nodes.command("undrain")
@click.argument("node")
@with_client
def nodes_undrain(client: "Client", node: str) -> None:
    """Give a drained node work again.

    \b
    Examples:
      tutti nodes undrain clinic-b
    """
    client.undrain_node(node)
    click.echo(f"{node} is given work again")


@nodes.command("rm")
@click.argument("node")
@with_client
def nodes_rm(client: "Client", node: str) -> None:
    """Send a node away for good: its secret is void, and rounds go on without it.

    \b
    Examples:
      tutti nodes rm clinic-b
    """
    client.remove_node(node)
    click.echo(f"{node} is removed; it can only come back with a new join link")


@click.group()
def rounds() -> None:
    """List a job's rounds, look at one.

    \b
    Examples:
      tutti rounds ls digits
      tutti rounds show digits --round 3
    """


@rounds.command("ls")
@click.argument("job")
@as_json
@with_client
def rounds_ls(client: "Client", job: str, as_json: bool) -> None:
    """List every attempt at every round.

    \b
    Examples:
      tutti rounds ls digits
      tutti rounds ls digits --json
    """
    found = list(client.rounds(find_job(client, job).id))
    if as_json:
        print_json(found)
        return
    header = ("round", "task", "status", "nodes", "accuracy", "loss", "bytes", "time", "reason")
    _print_table(header, [_round_row(round) for round in found], "no rounds yet")


def _round_row(round: "RoundView") -> tuple[object, ...]:
    measured = round.evaluations.get("coordinator") or round.evaluations.get("nodes") or {}
    return (
        f"{round.round}" + (f" (attempt {round.attempt + 1})" if round.attempt else ""),
        round.task,
        round.status,
        f"{round.counted if round.status == 'closed' else round.accepted}/{round.cohort}",
        text.share(measured.get("accuracy")),
        text.number(measured.get("loss")),
        text.size(round.bytes),
        "-" if round.seconds is None else text.duration(round.seconds),
        round.reason,
    )


@rounds.command("show")
@click.argument("job")
@click.option("--round", "number", type=click.IntRange(0), required=True, help="Which round.")
@as_json
@with_client
def rounds_show(client: "Client", job: str, number: int, as_json: bool) -> None:
    """Look at one round: the last attempt at it.

    \b
    Examples:
      tutti rounds show digits --round 3
    """
    found = client.why(find_job(client, job).id, number).attempts[-1].round
    if as_json:
        print_json(found)
    else:
        _print_facts(_round_facts(found))


def _round_facts(round: "RoundView") -> dict[str, object]:
    metrics = {"training": round.metrics, **round.evaluations}
    return {
        "round": f"{round.round}, attempt {round.attempt + 1}, {round.task}",
        "status": f"{round.status} ({round.reason})" if round.reason else round.status,
        "opened": text.moment(round.opened_at),
        "time": "-" if round.seconds is None else text.duration(round.seconds),
        "cohort": f"{round.cohort} asked, {round.wanted} wanted, quorum {round.quorum}",
        "updates": f"{round.accepted} accepted, {round.counted} counted, {text.size(round.bytes)}",
        **{f"by {who}" if who != "training" else who: _metrics(found) for who, found in metrics.items() if found},
        "model": round.model or "-",
    }


def _metrics(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


@click.command()
@click.argument("job")
@click.option("--round", "number", type=click.IntRange(0), required=True, help="Which round.")
@as_json
@with_client
def why(client: "Client", job: str, number: int, as_json: bool) -> None:
    """Say who took part in a round, and why others did not.

    And what each contributed, for every attempt at the round; whose update a robust reducer left out is `excluded`.

    \b
    Examples:
      tutti why digits --round 3
      tutti why digits-1a2b3c4d --round 3 --json
    """
    found = client.why(find_job(client, job).id, number)
    if as_json:
        print_json(found)
    else:
        _print_why(found)


def _print_why(why: "WhyView") -> None:
    for attempt in why.attempts:
        if attempt is not why.attempts[0]:
            click.echo()
        _print_attempt(attempt)
    if why.model:
        click.echo(f"\n{why.base[:12]} became {why.model[:12]}")


def _print_attempt(attempt: "AttemptView") -> None:
    round = attempt.round
    tried = f", attempt {round.attempt + 1}" if round.attempt else ""
    which = "final evaluation, round" if round.task == "evaluate" else "round"
    click.echo(f"{which} {round.round}{tried}: {round.status}, {round.reason}\n")
    header = ("node", "outcome", "weight", "share", "arrived", "worked", "bytes", "reason")
    click.echo(text.table(header, map(_part_row, attempt.nodes)))
    for refusal in attempt.refusals:
        click.echo(f"refused at {text.moment(refusal.at)}: {refusal.node}: {refusal.reason}")


def _part_row(part: "PartView") -> tuple[object, ...]:
    if part.arrived is None:
        return (part.node, part.outcome, "-", "-", "-", "-", "-", part.reason)
    return (
        part.node,
        part.outcome,
        part.weight,
        text.share(part.share),
        text.duration(part.arrived),
        text.duration(part.seconds),
        text.size(part.bytes),
        part.reason,
    )


# -- printing ------------------------------------------------------------------------------------------


def _print_table(header: tuple[str, ...], rows: Sequence[Sequence[object]], empty: str) -> None:
    click.echo(text.table(header, rows) if rows else empty)


def _print_facts(facts: dict[str, object]) -> None:
    width = max(map(len, facts))
    for name, value in facts.items():
        click.echo(f"{name.ljust(width)}  {value}")
