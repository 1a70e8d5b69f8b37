"""`market demo`: three workers, three clients and three kinds of job, each a process of its own, on this machine."""

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tutti.apps.cli import text
from tutti.apps.cli.exits import JobNotDone

if TYPE_CHECKING:
    from tutti.apps.client import Client
    from tutti.services.views.market import ResultView

WORKERS = ("worker-1", "worker-2", "worker-3")
STAKE, BALANCE = 150, 1000
JOBS = {
    "alice": ("linear_regression", 50),
    "bob": ("kmeans:clusters=3", 10),
    "carol": ("pca:components=2", 40),
}
"""What each client asks for, and what it pays."""

SHOWN = 6


@click.command()
def demo() -> None:
    """Run the whole market on this machine: 3 workers, 3 clients, 3 kinds of job.

    Every worker and every client is a process of its own. Workers are measured and stake tokens; clients put rewards
    in escrow; results are checked, and paid if they hold. At the end all balances are printed, and add up.

    \b
    Examples:
      tutti market demo
    """
    from tutti.apps.cli.federation import Federation
    from tutti.apps.client import Client

    with tempfile.TemporaryDirectory(prefix="tutti-market-") as folder, Federation(Path(folder)) as federation:
        click.echo(f"coordinator at {federation.url}, starting {len(WORKERS)} workers")
        with Client(federation.url) as client:
            for worker in WORKERS:
                client.mint(f"node:{worker}", STAKE, key=f"demo-{worker}")
            for name in JOBS:
                client.market.register_client(name, BALANCE)
            federation.start_nodes({name: ["--worker", "--stake", str(STAKE)] for name in WORKERS})
            _run_clients(federation.url)
            _print(client)


def _run_clients(url: str) -> None:
    """Each in a process of its own, all at once; raises JobNotDone if one of them does not get its result."""
    import subprocess

    command = [sys.executable, "-m", "tutti.apps.cli", "market", "submit"]
    running = {
        name: subprocess.Popen(  # noqa: S603 - our own command line
            [*command, name, kind, "--reward", str(reward), "--wait", "--url", url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, (kind, reward) in JOBS.items()
    }
    try:
        for name, process in running.items():
            said, complaint = process.communicate(timeout=120)
            if process.returncode:
                raise JobNotDone(f"{name}: {complaint.strip().splitlines()[-1]}")
            click.echo(f"\n{name} gets the result of {said.strip()}")
    finally:
        for process in running.values():
            process.kill()


def _print(client: "Client") -> None:
    clients = [(each.client_address, BALANCE, each.balance) for each in client.market.clients()]
    click.echo("\n" + text.table(("client", "before", "after"), clients))
    workers = []
    for worker in client.market.workers():
        free = client.account(f"node:{worker.worker_id}").free
        workers.append((worker.worker_id, worker.gflops, worker.staked, free, worker.jobs_completed, worker.reputation))
    click.echo("\n" + text.table(("worker", "GFLOP/s", "staked", "earned", "jobs", "reputation"), workers))
    totals = client.ledger()
    held = totals.free + totals.staked + totals.escrowed + totals.unbonding + totals.owed + totals.burned
    click.echo(f"\n{totals.minted} tokens were made, {held} are accounted for, {totals.escrowed} of them in escrow")


def in_words(found: "ResultView") -> str:
    """The numbers of a result that people look at; of long ones the first few."""
    hidden = ("history", "labels", "covariance")
    return "\n".join(f"  {name:<20} {_short(value)}" for name, value in found.values.items() if name not in hidden)


def _short(value: Any) -> str:
    if not isinstance(value, list):
        return f"{value:.6g}"
    shown = ", ".join(_short(each) for each in value[:SHOWN])
    return f"[{shown}{', …' if len(value) > SHOWN else ''}]"
