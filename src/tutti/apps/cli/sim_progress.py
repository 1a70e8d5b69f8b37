"""How simulations go: a bar or lines on stderr, and a page."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tutti.apps.cli import text

if TYPE_CHECKING:
    from tutti.domain.spec import JobSpec
    from tutti.sim import History, RoundRecord
    from tutti.sim.sweep import Trial

PAGE_SECONDS = 1.0
"""A page is written at most this often while simulations run."""


class SimProgress:
    """A bar with rounds a second and the time that is left, where stderr is a terminal; lines where it is not."""

    def __init__(
        self, trials: "Sequence[Trial]", specs: "Sequence[JobSpec]", *, page: Path | None, quiet: bool
    ) -> None:
        self._specs, self._quiet, self._page = specs, quiet, page
        self._rounds = sum(spec.rounds for spec in specs)
        self._seen: list[tuple[Trial, list[RoundRecord]]] = []
        self._labels = len({trial.label for trial in trials}) > 1
        self._began, self._done, self._before, self._due = time.perf_counter(), 0, 0, 0.0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "SimProgress":
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("starting", total=self._rounds)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._page is not None:
            self._write(running=False)

    def begin(self, trial: "Trial", spec: "JobSpec") -> "Callable[[RoundRecord], None]":
        """What takes the rounds of this run."""
        records: list[RoundRecord] = []
        self._seen.append((trial, records))

        def see(record: "RoundRecord") -> None:
            if not records:  # those that a checkpoint held cost no time
                self._began, self._before = time.perf_counter(), self._done + record.round
            records.append(record)
            self._see(spec, trial, record)

        return see

    def end(self, trial: "Trial", history: "History") -> None:
        """All of its rounds, those too that an earlier try had computed."""
        self._seen[-1] = (trial, list(history.rounds))
        self._done += self._specs[len(self._seen) - 1].rounds

    def _see(self, spec: "JobSpec", trial: "Trial", record: "RoundRecord") -> None:
        done = self._done + record.round
        if not self._quiet:
            line = f"{self._speed(done)}{score(record)}"
            if self._bar is not None:
                self._bar.update(self._task, completed=done, description=f"{self._which()}{line}")
            elif record.evaluated:
                click.echo(f"{self._which()}round {record.round:>3}/{spec.rounds}  {line}", err=True)
        if self._page is not None and time.perf_counter() >= self._due:
            self._write(running=True, done=done)
            self._due = time.perf_counter() + PAGE_SECONDS

    def _which(self) -> str:
        return f"run {len(self._seen)}/{len(self._specs)}  " if len(self._specs) > 1 else ""

    def _speed(self, done: int) -> str:
        passed = time.perf_counter() - self._began
        return f"{(done - self._before) / passed:.1f} rounds/s  " if done > self._before else ""

    def _write(self, *, running: bool, done: int = 0) -> None:
        from tutti.sim.page import Chart, write
        from tutti.sim.sweep import curves

        assert self._page is not None
        metrics = metrics_of(record for _, records in self._seen for record in records)
        charts = [Chart(metric, curves(self._seen, metric)) for metric in metrics]
        runs = f"{len(self._seen)} of {len(self._specs)} runs"
        state = f"{runs}, no longer running"
        if running:
            passed, new = time.perf_counter() - self._began, done - self._before
            left = f", about {text.duration(passed / new * (self._rounds - done))} left" if new else ""
            speed = f", {self._speed(done).strip()}" if new else ""
            state = f"{runs}, {done} of {self._rounds} rounds{speed}{left}"
        spec = self._specs[0]
        write(self._page, f"{spec.dataset}, {spec.model}, {spec.strategy}", state, charts, running=running)


def metrics_of(records: "Iterable[RoundRecord]") -> list[str]:
    """What was measured, accuracies before losses."""
    from tutti.sim.baselines import final

    return sorted({name for record in records for name in final(record)})


def score(record: "RoundRecord") -> str:
    from tutti.sim.baselines import final

    found = final(record)
    if "accuracy" in found:
        return f"accuracy {text.share(found['accuracy'])}"
    return f"loss {text.number(found.get('loss'))}"


@contextmanager
def told(what: str, *, quiet: bool) -> "Iterator[Callable[[int, int], None]]":
    """A bar for work that says how much of how much is done, where stderr is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet or not sys.stderr.isatty()) as bar:
        task = bar.add_task(what)
        yield lambda done, of: bar.update(task, completed=done, total=of)
