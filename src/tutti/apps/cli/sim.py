"""`sim`: a whole federation in this process, with the strategies, rounds and trainers of a deployment."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tutti.apps.cli import text
from tutti.apps.cli.exits import JobNotDone
from tutti.apps.cli.options import File, FiniteRange, allow_module, as_json
from tutti.apps.cli.replay import keep
from tutti.apps.cli.sim_progress import SimProgress, metrics_of, score, told

if TYPE_CHECKING:
    from tutti.domain.spec import JobSpec
    from tutti.sim import Federation, History
    from tutti.sim.baselines import Baselines
    from tutti.sim.sweep import Point, Run, Trial


@click.command()
@click.option("--dataset", default="mnist", show_default=True, help="What the nodes divide: mnist, csv:path=…, …")
@click.option("--model", default="2nn", show_default=True, help="What to train (`tutti catalog models`).")
@click.option("--strategy", default="fedavg", show_default=True, help="How updates make a model, such as fedadam.")
@click.option("--reducer", default="mean", show_default=True, help="How updates become one, such as trimmed-mean:0.2.")
@click.option("--codec", default="none", show_default=True, help="How updates travel, such as int8 or topk:0.05.")
@click.option("--nodes", type=click.IntRange(1), default=100, show_default=True, help="How many there are.")
@click.option("--cohort", type=click.IntRange(1), default=10, show_default=True, help="How many a round asks.")
@click.option("--rounds", type=click.IntRange(1), default=50, show_default=True, help="How many.")
@click.option("--partition", default="iid", show_default=True, help="Who gets which rows, such as dirichlet:0.5.")
@click.option("--epochs", type=click.IntRange(1), default=1, show_default=True, help="Local epochs in a round.")
@click.option("--batch-size", type=click.IntRange(1), default=10, show_default=True, help="Examples in a local step.")
@click.option("--lr", type=float, default=0.1, show_default=True, help="Learning rate of the nodes.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Same seed, same model.")
@click.option("--normalize", is_flag=True, help="Scale columns by mean and deviation of all nodes' rows.")
@click.option("--held-out", type=FiniteRange(0, 1), help="Share of its rows that a node measures models on.")
@click.option("--evaluate-every", type=click.IntRange(1), default=1, show_default=True, help="Rounds between.")
@click.option("--engine", default="auto", show_default=True, help="How it is computed (`tutti catalog engines`).")
@click.option("--set", "more", multiple=True, metavar="FIELD=VALUE", help="Any other field, such as training.momentum.")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Runs, from --seed upwards.")
@click.option(
    "--vary",
    multiple=True,
    metavar="FIELD=VALUE",
    help="A value to try, of a field as in --set or of partition; once for each. All combinations are run.",
)
@click.option("--plot", type=File, help="Keep this HTML page up to date: means over seeds, 95 % intervals.")
@click.option("--out", type=File, help="Write every round to this .parquet or .json file.")
@click.option(
    "--baselines/--no-baselines",
    default=True,
    show_default=True,
    help="Train nodes alone, and all rows in one place, too.",
)
@click.option("--model-out", type=File, help="Write the model to this safetensors file, as `tutti model pull` does.")
@click.option("--checkpoint", type=File, help="Go on from this file if it is there, and keep it up to date.")
@allow_module
@as_json
def sim(
    more: tuple[str, ...],
    vary: tuple[str, ...],
    out: Path | None,
    plot: Path | None,
    model_out: Path | None,
    checkpoint: Path | None,
    allow_modules: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Simulate a federation in this process, without network: the same job on the same parts gives the same model.

    Where the data set has common test rows (mnist, digits, …) the model is measured on them and nodes train on
    all of their rows; else each node holds out a fifth of its rows. The engine decides only how fast it goes.
    With --seeds or --vary there are several runs, and a checkpoint file for each beside the one that is named.
    Runs are put beside their baselines: up to ten nodes that train alone, and all rows in one place, for as
    many epochs as the federation took.

    \b
    Examples:
      tutti sim
      tutti sim --dataset mnist --nodes 100 --cohort 10 --rounds 50 --partition dirichlet:0.5
      tutti sim --dataset digits --model mlp --strategy fedadam:server_lr=0.03 --out history.parquet
      tutti sim --seeds 5 --vary training.lr=0.05 --vary training.lr=0.1 --plot lr.html
      tutti sim --model cnn --engine processes --checkpoint run.ckpt
      tutti sim --model module:entry=my_nets:Net --allow-module my_nets
    """
    if out is not None and out.suffix not in (".parquet", ".json"):
        raise click.BadParameter(
            f"expected a name that ends in .parquet or .json, came {str(out)!r}", param_hint="--out"
        )
    from tutti.adapters._imports import importable
    from tutti.apps.cli.baselines import beside
    from tutti.apps.cli.run_job import check_writable
    from tutti.sim import simulate, sweep
    from tutti.sim.baselines import final
    from tutti.sim.replay import manifest_of

    click.get_current_context().with_resource(importable(allow_modules))
    for named in filter(None, (out, plot, model_out)):
        check_writable(named)
    seeds = range(options["seed"], options["seed"] + options["seeds"])
    trials = sweep.grid((_assignment(written, "--vary") for written in vary), seeds)
    if model_out is not None and len(trials) > 1:
        raise click.BadParameter(f"{len(trials)} runs make as many models", param_hint="--model-out")
    federations = _Federations(options)
    fields = [_assignment(written, "--set") for written in more]
    specs = [_spec(options, fields, trial, federations) for trial in trials]  # a mistake in any of them shows at once
    runs: list[Run] = []
    with SimProgress(trials, specs, page=plot, quiet=as_json) as progress:
        for trial, spec in zip(trials, specs, strict=True):
            federation, file = federations.of(trial), checkpoint and _beside(checkpoint, trial, len(trials))
            watch = progress.begin(trial, spec)
            history = simulate(spec, federation, engine=options["engine"], checkpoint=file, watch=watch)
            kept = keep(manifest_of(history, federation))
            progress.end(trial, history)
            runs.append(sweep.Run(trial, history))
    if options["baselines"]:
        apart = _Apart(quiet=as_json)
        runs = [replace(run, baselines=apart.of(run, federations.of(run.trial))) for run in runs]
    if len(runs) == 1:
        if out is not None:
            history.write(out)
        if model_out is not None:
            history.write_model(model_out)
        if not as_json:
            click.echo(f"{_summary(history, out)}\n{kept}")
        found = runs[0].baselines
        if as_json:
            click.echo(history.to_json(found))
        elif found is not None:
            click.echo(f"\n{beside(found, final(history.result))}")
    else:
        if out is not None:
            sweep.write(runs, out)
        click.echo(sweep.to_json(runs) if as_json else _overview(runs, out))
    if failed := [run.history.header for run in runs if run.history.header.status != "completed"]:
        which = "the simulated job" if len(runs) == 1 else f"{len(failed)} of {len(runs)} simulated jobs"
        raise JobNotDone(f"{which} {failed[0].status}: {failed[0].outcome}")


class _Apart:
    """Baselines, trained once for all runs that differ only in what is there for several nodes."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._found: dict[tuple[str | None, bytes], Baselines] = {}

    def of(self, run: "Run", federation: "Federation") -> "Baselines | None":
        """Those of a run that has come to its end, and has measured its model."""
        from msgspec import json

        from tutti.sim.baselines import alone, baselines, final

        history = run.history
        if history.header.status != "completed" or not final(history.result):
            return None
        spec, rounds = history.header.spec, history.rounds[-1].round
        key = run.trial.settings.get("partition"), json.encode(alone(spec, len(federation.nodes), rounds))
        if key not in self._found:
            with told("baselines", quiet=self._quiet) as tell:
                self._found[key] = baselines(spec, federation, rounds, told=tell)
        return self._found[key]


class _Federations:
    """Federations by partition and seed; the last one is kept, for runs that differ in other things."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self.held_out, self.evaluation = _measuring(options["dataset"], options["held_out"])
        self._last: tuple[tuple[str, int], Federation] | None = None

    def of(self, trial: "Trial") -> "Federation":
        from tutti.sim import Federation

        options, key = self._options, (trial.settings.get("partition", self._options["partition"]), trial.seed)
        if self._last is None or self._last[0] != key:
            made = Federation.divide(options["dataset"], options["nodes"], key[0], seed=key[1], held_out=self.held_out)
            self._last = (key, made)
        return self._last[1]


def _spec(
    options: Mapping[str, Any], fields: Sequence[tuple[str, str]], trial: "Trial", federations: _Federations
) -> "JobSpec":
    from tutti.domain.spec import load_spec

    varied = [(field, value) for field, value in trial.settings.items() if field != "partition"]
    name = federations.of(trial).name
    return load_spec(_job({**options, "seed": trial.seed}, [*fields, *varied], name, federations.evaluation))


def _beside(checkpoint: Path, trial: "Trial", trials: int) -> Path:
    """A name for the checkpoint of one run of several, the same whenever this run is among those that are asked for."""
    if trials == 1:
        return checkpoint
    from blake3 import blake3

    settings = blake3(repr(sorted(trial.settings.items())).encode()).hexdigest(4)
    return checkpoint.with_name(f"{checkpoint.stem}-{settings}-{trial.seed}{checkpoint.suffix}")


def _assignment(written: str, option: str) -> tuple[str, str]:
    field, equals, value = written.partition("=")
    if not equals or not field.strip():
        raise click.BadParameter(f"expected FIELD=VALUE, came {written!r}", param_hint=option)
    return field.strip(), value.strip()


def _measuring(source: str, held_out: float | None) -> tuple[float, dict[str, Any]]:
    """The share of rows that nodes hold out, and the job's evaluation."""
    from tutti.adapters.datasets import known_schema
    from tutti.core.registry import Choice

    choice = Choice.parse(source)
    if known_schema(choice) is None:
        return (0.2 if held_out is None else held_out), {}
    test = Choice(choice.name, {**choice.options, "split": "test"})
    return held_out or 0.0, {"nodes": bool(held_out), "data": str(test)}


def _job(
    options: Mapping[str, Any], fields: Iterable[tuple[str, str]], dataset: str, evaluation: Mapping[str, Any]
) -> dict[str, Any]:
    from tutti.apps.cli.run_job import put, toml_value

    nodes, cohort = options["nodes"], min(options["cohort"], options["nodes"])
    training = {"epochs": options["epochs"], "batch_size": options["batch_size"], "lr": options["lr"]}
    raw: dict[str, Any] = {
        **{name: options[name] for name in ("model", "strategy", "reducer", "codec", "rounds", "seed", "normalize")},
        "dataset": dataset,
        "name": dataset,
        "training": training,
        "cohort": {"min_nodes": nodes, "size": cohort},
        "evaluation": {"every": options["evaluate_every"], **evaluation},
    }
    for field, value in fields:
        put(raw, field, toml_value(value))
    return raw


def _summary(history: "History", out: Path | None) -> str:
    header, done = history.header, [record for record in history.rounds if record.round]
    measured = [record for record in history.rounds if record.evaluated]
    quality = f"{score(measured[-1])}, " if measured else ""
    training = sum(record.seconds for record in done)
    pace = f" ({text.duration(training / len(done))} a round without measuring)" if done else ""
    where = f"\nrounds: {out}" if out else ""
    return (
        f"{header.status}: {header.outcome}; {quality}{header.nodes} nodes, {header.engine} engine, "
        f"{text.duration(header.seconds)}{pace}; model {header.model[:12]}{where}"
    )


def _overview(runs: "Sequence[Run]", out: Path | None) -> str:
    """A line a setting: its last round's mean over seeds, with the half of the 95 % confidence interval.

    Beside it what the same training gives without a federation: the mean of nodes alone, and all data in one place.
    """
    from tutti.apps.cli.baselines import metric_of
    from tutti.sim.sweep import curves

    records = [(run.trial, run.history.rounds) for run in runs]
    metrics = list(dict.fromkeys(name for _, rounds in records for name in metrics_of(rounds)))
    by_metric = {metric: curves(records, metric) for metric in metrics}
    metric = metric_of(metrics)
    compared = any(run.baselines for run in runs)
    rows = []
    for label in dict.fromkeys(run.trial.label for run in runs):
        mine = [run for run in runs if run.trial.label == label]
        lasts = [curve[label][-1] if curve[label] else None for curve in by_metric.values()]
        if compared:
            lasts += [_over_seeds(run.baselines.mean_alone(metric) for run in mine if run.baselines)]
            lasts += [_over_seeds(run.baselines.pooled.metrics.get(metric) for run in mine if run.baselines)]
        rows.append([label or "all runs", len(mine), *map(_mean, lasts)])
    heads = ["setting", "runs", *metrics, *([f"{metric} alone", f"{metric} in one place"] if compared else [])]
    seconds = sum(run.history.header.seconds for run in runs)
    where = f"\nrounds: {out}" if out else ""
    return f"{text.table(heads, rows)}\n{len(runs)} runs in {text.duration(seconds)}{where}"


def _over_seeds(values: "Iterable[float | None]") -> "Point | None":
    from tutti.sim.sweep import point

    found = [value for value in values if value is not None]
    return point(0, found) if found else None


def _mean(last: "Point | None") -> str:
    if last is None:
        return "-"
    return f"{last.mean:.4g} ± {(last.high - last.low) / 2:.2g}" if last.runs > 1 else f"{last.mean:.4g}"
