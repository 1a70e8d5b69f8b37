"""The compute market: look at it, ask for work, and see all of it at work (`tutti market demo`)."""

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tutti.apps.cli import market_demo, text
from tutti.apps.cli.exits import JobNotDone
from tutti.apps.cli.options import ExistingFile, FiniteRange, as_json, print_json, with_client

if TYPE_CHECKING:
    from tutti.apps.client import Client
    from tutti.services.views.market import ComputeJobView


MONTH = 30 * 86_400
"""Seconds: the longest that a compute job may take, or be disputed."""


@click.group()
def market() -> None:
    """Lend machines for tokens, or have work done for them, and checked: regression, k-means, PCA, training, scripts.

    \b
    Examples:
      tutti market demo
      tutti market client alice --balance 1000
      tutti market submit alice linear_regression --reward 50 --data rows.csv --target price --wait
      tutti join 'http://host:8000/join#token' --worker --stake 150
    """


market.add_command(market_demo.demo)


@market.command("show")
@as_json
@with_client
def show(client: "Client", as_json: bool) -> None:
    """Show the market in one look.

    \b
    Examples:
      tutti market show
      tutti market show --json
    """
    found = client.market.show()
    if as_json:
        print_json(found)
        return
    rate = "-" if found.success_rate is None else text.share(found.success_rate)
    rows = [
        ("workers", f"{found.workers_active} of {found.workers} connected"),
        ("clients", found.clients),
        ("jobs", ", ".join(f"{count} {status}" for status, count in found.jobs_by_status.items() if count) or "none"),
        ("success", rate),
        ("in escrow", found.contract_balance),
        ("staked", found.staked),
        ("burned", found.burned),
        ("assigning", "yes" if found.coordinating else "no: `tutti market start`"),
    ]
    click.echo("\n".join(f"{name:<10} {value}" for name, value in rows))


def _list(name: str, help: str, rows_of: Callable[["Client"], list[Any]], header: Sequence[str], fields: str) -> None:
    """Add `tutti market NAME`, a list."""

    @market.command(name, help=f"{help}\n\n\b\nExamples:\n  tutti market {name}\n  tutti market {name} --json")
    @as_json
    @with_client
    def listing(client: "Client", as_json: bool) -> None:
        found, names = rows_of(client), fields.split()
        if as_json:
            print_json(found)
        elif not found:
            click.echo(f"no {name} yet")
        else:
            click.echo(text.table(header, [[getattr(each, name) or "-" for name in names] for each in found]))


_list(
    "workers",
    "List workers: their reputation, measured speed, stake, and what they have done.",
    lambda client: list(client.market.workers()),
    ("worker", "reputation", "GFLOP/s", "staked", "done", "wrong", "lost", "at", "note"),
    "worker_id reputation gflops staked jobs_completed jobs_failed jobs_lost job note",
)
_list(
    "clients",
    "List clients and their balances.",
    lambda client: list(client.market.clients()),
    ("client", "balance", "in escrow", "jobs"),
    "client_address balance escrowed jobs",
)
_list(
    "jobs",
    "List compute jobs, the newest first.",
    lambda client: list(client.market.jobs()),
    ("job", "status", "client", "kind", "reward", "worker", "reason", "waits"),
    "job_id status client_address kind reward worker_id reason trouble",
)
_list(
    "kinds",
    "List the kinds of compute jobs.",
    lambda client: client.market.show().kinds,
    ("kind", "what comes out"),
    "name description",
)


@market.command("client")
@click.argument("name")
@click.option("--balance", type=click.IntRange(0), default=0, show_default=True, help="Tokens to begin with (admins).")
@as_json
@with_client
def register(client: "Client", name: str, balance: int, as_json: bool) -> None:
    """Register a client, who can then ask for work.

    \b
    Examples:
      tutti market client alice --balance 1000
    """
    found = client.market.register_client(name, balance)
    print_json(found) if as_json else click.echo(f"{found.client_address} has {found.balance} tokens")


@market.command("submit")
@click.argument("client_name", metavar="CLIENT")
@click.argument("kind")
@click.option("--reward", type=click.IntRange(1), required=True, help="Tokens, for all replicas together.")
@click.option("--data", type=ExistingFile, help="CSV with a line of names, or NPZ with x and y.  [default: a sample]")
@click.option("--target", default="", help="The CSV column to predict.")
@click.option("--code", type=ExistingFile, help="Of kind `script`: the program, WebAssembly as text or compiled.")
@click.option("--replicas", type=click.IntRange(1, 9), default=1, show_default=True, help="Workers that do it alike.")
@click.option("--gpu", is_flag=True, help="Only by workers whose GPU was measured.")
@click.option(
    "--within", "seconds", type=FiniteRange(1, MONTH), default=3600.0, show_default=True, help="Seconds until it fails."
)
@click.option(
    "--window",
    type=FiniteRange(0, MONTH),
    default=0.0,
    show_default=True,
    help="Seconds in which the result can be disputed.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--key", default="", help="A name for this very wish: repeated with it, it is the same job.")
@click.option("--wait", is_flag=True, help="Wait for the result, and print it.")
@as_json
@with_client
def submit(
    client: "Client",
    client_name: str,
    kind: str,
    data: Path | None,
    target: str,
    code: Path | None,
    wait: bool,
    as_json: bool,
    **wish: Any,
) -> None:
    """Ask for work. KIND may have options: kmeans:clusters=5.

    \b
    Examples:
      tutti market submit alice kmeans:clusters=5 --reward 20 --data rows.csv --wait
      tutti market submit alice pca:components=3 --reward 30 --data rows.npz --replicas 3 --json
      tutti market submit alice script --code sums.wat --reward 20 --data rows.csv --replicas 2 --wait
    """
    from tutti.core.registry import Choice

    choice = Choice.parse(kind)
    if code is not None:
        choice.options["code"] = _program(code)
    table = client.market.upload(data.read_bytes(), target).data if data is not None else ""
    wish["key"] = wish["key"] or secrets.token_hex(8)  # so that an answer that is lost does not cost twice
    job = client.market.submit(client_name, choice.name, options=choice.options, data=table, **wish)
    if not wait:
        print_json(job) if as_json else click.echo(f"{job.job_id}: {job.status}")
        return
    _print_result(client, client.market.wait(job.job_id, _tell), as_json)


def _program(file: Path) -> str:
    """A compiled program as base64, one in text as it is; raises UserError."""
    from base64 import b64encode

    from tutti.core.errors import UserError

    data = file.read_bytes()
    try:
        return b64encode(data).decode() if data.startswith(b"\0asm") else data.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{file} is neither compiled WebAssembly nor its text") from None


@market.command("train")
@click.argument("client_name", metavar="CLIENT")
@click.option("--data", type=ExistingFile, required=True, help="CSV with a line of names, or NPZ with x and y.")
@click.option("--target", default="", help="The CSV column to predict.")
@click.option("--classes", type=click.IntRange(0, 1000), default=0, help="Classes of the target.  [default: a number]")
@click.option("--parts", type=click.IntRange(1, 1000), default=4, show_default=True, help="Updates of a round.")
@click.option("--rounds", type=click.IntRange(1, 10_000), default=5, show_default=True)
@click.option("--reward", type=click.IntRange(1), required=True, help="Tokens for each update.")
@click.option("--epochs", type=click.IntRange(1, 1000), default=1, show_default=True, help="Of each update.")
@click.option(
    "--lr", type=FiniteRange(0, 1, min_open=True), default=0.5, show_default=True, help="Learning rate, up to 1."
)
@click.option("--seed", type=click.IntRange(0, 2**32), default=0, show_default=True)
@click.option("--key", default="", help="A name for this very wish: repeated with it, nothing is paid twice.")
@as_json
@with_client
def train(
    client: "Client",
    client_name: str,
    data: Path,
    target: str,
    as_json: bool,
    classes: int,
    epochs: int,
    lr: float,
    key: str,
    **plan: Any,
) -> None:
    """Train a linear or softmax model by federated averaging: workers are paid for each update that is checked.

    The rows go to the workers, for nothing on the market is private; for rows that stay where they are, see `tutti
    run`. Prints the mean loss before each round's average, and the weights at the end.

    \b
    Examples:
      tutti market train alice --data rows.csv --target price --parts 4 --rounds 5 --reward 3
      tutti market train alice --data flowers.npz --classes 3 --reward 2 --key november --json
    """
    from tutti.apps.market_train import Plan
    from tutti.apps.market_train import train as federate
    from tutti.services.market.tables import read_table

    table = read_table(data.read_bytes(), target)
    if table.y is None:
        raise click.UsageError("--target says which column is to be predicted (an NPZ file has it as y)")
    options = {"classes": classes, "epochs": epochs, "lr": lr}
    its = Plan(client=client_name, key=key or secrets.token_hex(8), options=options, **plan)
    weights = federate(
        client.market, table.x, table.y, its, lambda n, loss: click.echo(f"round {n}: loss {loss:.6g}", err=True)
    )
    if as_json:
        print_json({"key": its.key, "weights": weights.tolist()})
    else:
        click.echo(" ".join(f"{weight:.6g}" for weight in weights))


def _tell(job: "ComputeJobView") -> None:
    """How it goes, to standard error."""
    attempt = f", attempt {len(job.attempts)}" if len(job.attempts) > 1 else ""
    at = f" ({job.worker_id}{attempt})" if job.worker_id else ""
    click.echo(f"{job.job_id}: {job.status}{at}{': ' + job.trouble if job.trouble else ''}", err=True)


@market.command("result")
@click.argument("job")
@as_json
@with_client
def result(client: "Client", job: str, as_json: bool) -> None:
    """Print the verified result of a compute job.

    \b
    Examples:
      tutti market result kmeans-1a2b3c4d --json
    """
    _print_result(client, client.market.job(job), as_json)


def _print_result(client: "Client", job: "ComputeJobView", as_json: bool) -> None:
    if job.status == "failed":
        raise JobNotDone(f"compute job {job.job_id} failed: {job.reason}; its reward is back")
    found = client.market.result(job.job_id)
    if as_json:
        print_json(found)
    else:
        click.echo(f"{job.job_id} by {found.worker_id}, {job.reward} tokens\n{market_demo.in_words(found)}")


@market.command("dispute")
@click.argument("job")
@click.option("--reason", default="", help="Why.")
@as_json
@with_client
def dispute(client: "Client", job: str, reason: str, as_json: bool) -> None:
    """Doubt a result, within the job's window: a further worker makes it again, and all of it is replayed.

    \b
    Examples:
      tutti market dispute kmeans-1a2b3c4d --reason "the clusters look odd"
    """
    found = client.market.dispute(job, reason)
    print_json(found) if as_json else click.echo(f"{found.job_id}: {found.status}, disputed by {found.disputed}")


@market.command("unstake")
@click.argument("worker")
@click.argument("amount", type=click.IntRange(1))
@click.option("--key", required=True, help="A name for this very wish: repeated with it, nothing more is taken.")
@with_client
def unstake(client: "Client", worker: str, amount: int, key: str) -> None:
    """Take a worker's stake back, as far as it is not at risk with work that goes on.

    A worker that goes on with the same --stake stakes up to that again: end it first, or start it with less.

    \b
    Examples:
      tutti market unstake gpu-box 50 --key november
    """
    found = client.market.unstake(worker, amount, key=key)
    click.echo(f"{worker} has {found.staked} tokens at stake, {found.locked} of them with work that goes on")
    if unbonding := client.account(f"node:{worker}").unbonding:
        click.echo(f"{unbonding} tokens unbond, and can still be slashed: `tutti market withdraw {worker}` takes them")


@market.command("withdraw")
@click.argument("worker")
@click.option("--key", required=True, help="A name for this very wish: repeated with it, nothing more is taken.")
@as_json
@with_client
def withdraw(client: "Client", worker: str, key: str, as_json: bool) -> None:
    """Take a worker's stake that has unbonded.

    On a chain that is a week after the last `tutti market unstake`, if it was not deployed otherwise.

    \b
    Examples:
      tutti market withdraw gpu-box --key december
    """
    found = client.market.withdraw(worker, key=key)
    print_json(found) if as_json else click.echo(f"{found.account} has {found.free} free tokens")


def _coordination(verb: str, help: str) -> None:
    @market.command(verb, help=f"{help}\n\n\b\nExamples:\n  tutti market {verb}")
    @with_client
    def coordinate(client: "Client") -> None:
        client.market.coordinate(verb == "start")
        click.echo(f"assigning {'goes on' if verb == 'start' else 'has stopped'}")


_coordination("start", "Assign jobs again, after `tutti market stop`.")
_coordination("stop", "Assign no further job; what is assigned goes on.")
