"""Follow a job: a table that stays in place on a terminal, plain lines everywhere else."""

import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from tutti.apps.cli import text
from tutti.apps.cli.progress import Progress
from tutti.apps.client import OVER
from tutti.services.views import EventView, JobView

if TYPE_CHECKING:
    from tutti.apps.client import Client

ROWS_SHOWN = 12


def follow(client: "Client", job: JobView) -> JobView:
    """Show how the job goes until it is over; returns it as it ended."""
    progress = Progress(job)
    show = _in_place if sys.stdout.isatty() else _line_by_line
    show(progress, client.follow(job.id))
    return client.job(job.id)


def _line_by_line(progress: Progress, events: Iterable[EventView]) -> None:
    for event in events:
        remark = progress.see(event)
        for line in progress.lines():
            click.echo(line)
        if remark:
            click.echo(remark)
    for line in progress.lines(final=True):
        click.echo(line)


def _in_place(progress: Progress, events: Iterable[EventView]) -> None:
    from rich.live import Live

    started = time.monotonic()
    with Live(get_renderable=lambda: _view(progress, time.monotonic() - started), refresh_per_second=8) as live:
        for event in events:
            if remark := progress.see(event):
                live.console.print(remark, style="yellow", markup=False, highlight=False)


def _view(progress: Progress, seconds: float) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("round", progress.measure, "loss", "nodes", "bytes", "time"):
        table.add_column(title, justify="right")
    over = progress.state in OVER
    rows = [row for _, row in sorted(progress.rows.items()) if row.closed or not over]
    for row in rows[-ROWS_SHOWN:]:
        nodes = f"{row.counted if row.closed else row.cohort - len(progress.waiting_for)}/{row.cohort}"
        table.add_row(
            str(row.round),
            progress.score(row),
            text.number(row.loss),
            nodes if row.cohort else "",
            text.size(row.bytes) if row.bytes else "",
            text.duration(row.seconds) if row.seconds else "",
        )
    done = sum(row.closed for row in rows if row.round > 0)
    waiting = f", waits for {', '.join(sorted(progress.waiting_for))}" if progress.waiting_for else ""
    status = f"{progress.job.name}: {done} of {progress.job.rounds} rounds, {text.duration(seconds)}, {progress.state}"
    return Group(
        table, Text(_bar(done, progress.job.rounds), style="green"), Text(status + waiting, overflow="ellipsis")
    )


def _bar(done: int, rounds: int, width: int = 40) -> str:
    filled = round(width * done / rounds)
    return "━" * filled + "╌" * (width - filled)
