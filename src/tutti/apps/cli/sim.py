"""`sim`: a whole federation in this process, with the strategies, rounds and trainers of a deployment."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tutti.apps.cli import text
from tutti.apps.cli.exits import JobNotDone
from tutti.apps.cli.options import File, as_json
from tutti.apps.cli.replay import keep

if TYPE_CHECKING:
    from tutti.sim import History, RoundRecord


@click.command()
@click.option("--dataset", default="mnist", show_default=True, help="What the nodes divide: mnist, csv:path=…, …")
@click.option("--model", default="2nn", show_default=True, help="What to train (`tutti catalog models`).")
@click.option("--strategy", default="fedavg", show_default=True, help="How updates make a model, such as fedadam.")
@click.option("--reducer", default="mean", show_default=True, help="How updates become one, such as trimmed-mean:0.2.")
@click.option("--nodes", type=click.IntRange(1), default=100, show_default=True, help="How many there are.")
@click.option("--cohort", type=click.IntRange(1), default=10, show_default=True, help="How many a round asks.")
@click.option("--rounds", type=click.IntRange(1), default=50, show_default=True, help="How many.")
@click.option("--partition", default="iid", show_default=True, help="Who gets which rows, such as dirichlet:0.5.")
@click.option("--epochs", type=click.IntRange(1), default=1, show_default=True, help="Local epochs in a round.")
@click.option("--batch-size", type=click.IntRange(1), default=10, show_default=True, help="Examples in a local step.")
@click.option("--lr", type=float, default=0.1, show_default=True, help="Learning rate of the nodes.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Same seed, same model.")
@click.option("--normalize", is_flag=True, help="Scale columns by mean and deviation of all nodes' rows.")
@click.option("--held-out", type=click.FloatRange(0, 1), help="Share of its rows that a node measures models on.")
@click.option("--evaluate-every", type=click.IntRange(1), default=1, show_default=True, help="Rounds between.")
@click.option("--engine", default="auto", show_default=True, help="sequential, vectorised, fused or processes.")
@click.option("--set", "more", multiple=True, metavar="FIELD=VALUE", help="Any other field, such as training.momentum.")
@click.option("--out", type=File, help="Write every round to this .parquet or .json file.")
@click.option("--model-out", type=File, help="Write the model to this safetensors file, as `tutti model pull` does.")
@click.option("--checkpoint", type=File, help="Go on from this file if it is there, and keep it up to date.")
@as_json
def sim(
    more: tuple[str, ...],
    out: Path | None,
    model_out: Path | None,
    checkpoint: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Simulate a federation in this process, without network: the same job on the same parts gives the same model.

    Where the data set has common test rows (mnist, digits, …) the model is measured on them and nodes train on
    all of their rows; else each node holds out a fifth of its rows. The engine decides only how fast it goes.

    \b
    Examples:
      tutti sim
      tutti sim --dataset mnist --nodes 100 --cohort 10 --rounds 50 --partition dirichlet:0.5
      tutti sim --dataset digits --model mlp --strategy fedadam:server_lr=0.03 --out history.parquet
      tutti sim --model cnn --engine processes --checkpoint run.ckpt
    """
    if out is not None and out.suffix not in (".parquet", ".json"):
        raise click.BadParameter(
            f"expected a name that ends in .parquet or .json, came {str(out)!r}", param_hint="--out"
        )
    from tutti.apps.cli.run_job import check_writable
    from tutti.domain.spec import load_spec
    from tutti.sim import Federation, simulate
    from tutti.sim.replay import manifest_of

    for file in filter(None, (out, model_out)):
        check_writable(file)
    held_out, evaluation = _measuring(options["dataset"], options["held_out"])
    federation = Federation.divide(
        options["dataset"], options["nodes"], options["partition"], seed=options["seed"], held_out=held_out
    )
    spec = load_spec(_job(options, more, federation.name, evaluation))
    with _Show(spec.rounds, quiet=as_json) as show:
        history = simulate(spec, federation, engine=options["engine"], checkpoint=checkpoint, watch=show.see)
    if out is not None:
        history.write(out)
    if model_out is not None:
        history.write_model(model_out)
    kept = keep(manifest_of(history, federation))
    click.echo(history.to_json() if as_json else f"{_summary(history, out)}\n{kept}")
    if history.header.status != "completed":
        raise JobNotDone(f"the simulated job {history.header.status}: {history.header.outcome}")


def _measuring(source: str, held_out: float | None) -> tuple[float, dict[str, Any]]:
    """The share of rows that nodes hold out, and the job's evaluation."""
    from tutti.adapters.datasets import known_schema
    from tutti.core.registry import Choice

    choice = Choice.parse(source)
    if known_schema(choice) is None:
        return (0.2 if held_out is None else held_out), {}
    test = Choice(choice.name, {**choice.options, "split": "test"})
    return held_out or 0.0, {"nodes": bool(held_out), "data": str(test)}


def _job(options: dict[str, Any], more: tuple[str, ...], dataset: str, evaluation: dict[str, Any]) -> dict[str, Any]:
    from tutti.apps.cli.run_job import put, toml_value

    nodes, cohort = options["nodes"], min(options["cohort"], options["nodes"])
    training = {"epochs": options["epochs"], "batch_size": options["batch_size"], "lr": options["lr"]}
    raw: dict[str, Any] = {
        **{name: options[name] for name in ("model", "strategy", "reducer", "rounds", "seed", "normalize")},
        "dataset": dataset,
        "name": dataset,
        "training": training,
        "cohort": {"min_nodes": nodes, "size": cohort},
        "evaluation": {"every": options["evaluate_every"], **evaluation},
    }
    for assignment in more:
        path, equals, value = assignment.partition("=")
        if not equals or not path:
            raise click.BadParameter(f"expected FIELD=VALUE, came {assignment!r}", param_hint="--set")
        put(raw, path.strip(), toml_value(value))
    return raw


class _Show:
    """A progress bar on stderr with what the last round measured, where stderr is a terminal; lines where it is not."""

    def __init__(self, rounds: int, *, quiet: bool) -> None:
        self._rounds, self._quiet = rounds, quiet
        self._bar: Any = None
        self._task: Any = None
        self._first: tuple[float, int] | None = None

    def __enter__(self) -> "_Show":
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

    def see(self, record: "RoundRecord") -> None:
        if self._quiet:
            return
        if self._first is None:
            self._first = (time.perf_counter(), record.round)
        line = f"{self._speed(record.round)}{_score(record)}"
        if self._bar is not None:
            self._bar.update(self._task, completed=record.round, description=line)
        elif record.evaluated:
            click.echo(f"round {record.round:>3}/{self._rounds}  {line}", err=True)

    def _speed(self, round: int) -> str:
        assert self._first is not None
        began, first = self._first
        return f"{(round - first) / (time.perf_counter() - began):.1f} rounds/s  " if round > first else ""


def _score(record: "RoundRecord") -> str:
    found = record.evaluated.get("coordinator") or record.evaluated.get("nodes") or {}
    if "accuracy" in found:
        return f"accuracy {text.share(found['accuracy'])}"
    return f"loss {text.number(found.get('loss'))}"


def _summary(history: "History", out: Path | None) -> str:
    header, done = history.header, [record for record in history.rounds if record.round]
    measured = [record for record in history.rounds if record.evaluated]
    score = f"{_score(measured[-1])}, " if measured else ""
    training = sum(record.seconds for record in done)
    pace = f" ({text.duration(training / len(done))} a round without measuring)" if done else ""
    where = f"\nrounds: {out}" if out else ""
    return (
        f"{header.status}: {header.outcome}; {score}{header.nodes} nodes, {header.engine} engine, "
        f"{text.duration(header.seconds)}{pace}; model {header.model[:12]}{where}"
    )
