"""`run`: a job from options or a file, on a coordinator that is there or on a federation made for it."""

import os
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, get_args

import click

from tutti.apps.cli import text
from tutti.apps.cli.exits import JobNotDone
from tutti.apps.cli.forecast import beside
from tutti.apps.cli.options import DEFAULT_URL, ExistingFile, File, as_json, open_client, print_json, reaching
from tutti.apps.cli.replay import keep
from tutti.core.errors import NotFound, StorageError, UserError

if TYPE_CHECKING:
    import msgspec

    from tutti.apps.cli.federation import Federation
    from tutti.apps.client import Client
    from tutti.domain.forecast import Forecast
    from tutti.domain.spec import JobSpec
    from tutti.services.views import JobView
    from tutti.sim.baselines import Baselines

LOCAL_NODES = 4
LOCAL_WAIT = 120.0
"""Seconds that a job on a federation of its own waits for nodes before it fails: nobody else can start them."""

WARNINGS = 10

FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "dataset": "dataset",
        "model": "model",
        "strategy": "strategy",
        "reducer": "reducer",
        "codec": "codec",
        "model_codec": "model_codec",
        "trusted": "trusted",
        "rounds": "rounds",
        "name": "name",
        "seed": "seed",
        "normalize": "normalize",
        "epochs": "training.epochs",
        "batch_size": "training.batch_size",
        "lr": "training.lr",
        "lr_schedule": "training.lr_schedule",
        "optimizer": "training.optimizer",
        "nodes": "cohort.min_nodes",
        "fraction": "cohort.fraction",
        "deadline": "cohort.deadline",
        "evaluate": "evaluation.data",
        "target": "early_stopping.target",
        "patience": "early_stopping.patience",
    }
)
"""Options of `tutti run` and the fields of the job that they set."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What is wanted of the end of a job: nothing (detach), JSON or words, a model file."""

    detach: bool
    as_json: bool
    out: Path | None


def job_options(command: Any) -> Any:
    """One option for each of FIELDS."""
    for option in reversed(
        (
            click.option("--dataset", help="Which of the nodes' data sets to train on."),
            click.option("--model", help="What to train, such as mlp or mlp:hidden=200x200 (`tutti catalog models`)."),
            click.option("--strategy", help="How updates make a model: fedavg, fedadam:server_lr=0.03, …"),
            click.option("--reducer", help="How updates become one: mean, or robust, such as trimmed-mean:0.2."),
            click.option(
                "--codec", help="How updates travel: fp16, int8, int4, topk:0.05, … or auto.  [default: none]"
            ),
            click.option(
                "--model-codec", help="How models travel to nodes that hold the one before.  [default: whole]"
            ),
            click.option("--trusted", help="Bundled data that the coordinator trains on, for --reducer fltrust."),
            click.option("--rounds", type=click.IntRange(1), help="How many.  [default: 10]"),
            click.option("--nodes", type=click.IntRange(1), help="How many must be there before a round starts."),
            click.option("--name", help="What the job is called.  [default: the data set]"),
            click.option("--seed", type=click.IntRange(0), help="The same seed and nodes give the same model."),
            click.option("--normalize", is_flag=True, default=None, help="Scale columns by mean and deviation of all."),
            click.option("--epochs", type=click.IntRange(1), help="Local epochs in a round.  [default: 1]"),
            click.option("--batch-size", type=click.IntRange(1), help="[default: each node chooses by its memory]"),
            click.option("--lr", type=float, help="Learning rate of the nodes.  [default: 0.1]"),
            click.option("--lr-schedule", help="constant, cosine, step:every=10, …"),
            click.option("--optimizer", help="sgd or adam.  [default: sgd]"),
            click.option("--fraction", type=float, help="Share of the ready nodes that a round asks.  [default: 1]"),
            click.option("--deadline", type=float, help="Longest time for a round, in seconds.  [default: 600]"),
            click.option(
                "--evaluate", help="Bundled data that the coordinator measures on, such as digits:split=test."
            ),
            click.option("--target", type=float, help="Stop early at this accuracy."),
            click.option("--patience", type=click.IntRange(1), help="Stop after so many evaluations without progress."),
        )
    ):
        command = option(command)
    return command


@click.command()
@click.argument("job_file", required=False, type=ExistingFile)
@job_options
@click.option("--set", "more", multiple=True, metavar="FIELD=VALUE", help="Any other field, such as training.momentum.")
@click.option("--out", type=File, help="Write the final model to this safetensors file.")
@click.option("--detach", is_flag=True, help="Submit the job, print its id, and do not wait.")
@click.option("--local", is_flag=True, help="Train on a federation of this command's own, whatever runs here.")
@click.option("--data", "source", help="Own federation: what its nodes divide among them.  [default: the data set]")
@click.option("--partition", default="iid", show_default=True, help="Own federation: how, such as dirichlet:0.3.")
@click.option(
    "--baselines/--no-baselines", default=True, show_default=True, help="Own federation: compare with nodes alone."
)
@reaching
@as_json
def run(
    job_file: Path | None, more: tuple[str, ...], detach: bool, as_json: bool, out: Path | None, **options: Any
) -> None:
    """Train: submit a job and follow it to its end.

    The job comes from options, or from a TOML file (see examples/) which options may override. Without --url,
    and if no coordinator runs on this machine, the command starts one and --nodes nodes for this job alone, each
    with a part of the data, and ends them when it is done. Beside the result it then prints what the same work gives
    without a federation: each node alone, and all data in one place.

    \b
    Examples:
      tutti run --dataset digits --model mlp --strategy fedavg --rounds 20 --nodes 4
      tutti run --dataset digits --model mlp --partition dirichlet:0.3 --out model.safetensors
      tutti run --data csv:path=heart.csv,target=died --model linear --nodes 3
      tutti run examples/job.toml --url http://host:8000 --detach
      tutti run examples/job.toml --rounds 50 --set training.momentum=0.9
    """
    source, ending = options["source"], Ending(detach, as_json, out)
    if out is not None:
        check_writable(out)
    raw = spec_from(job_file, options, more)
    if source is not None and "dataset" not in raw:
        raw["dataset"] = _name_of(source)
    raw.setdefault("name", raw.get("dataset", "job"))
    with _client_for(options) as client:
        if client is not None:
            _refuse_local_options(source)
            _run_on(client, checked(raw), ending)
        else:
            _run_locally(raw, source, options, ending)


def check_writable(file: Path) -> None:
    """Raise StorageError at once if a file cannot be written there, rather than after hours of training."""
    try:
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise StorageError(f"cannot write {file}: {error.strerror}") from None


def spec_from(job_file: Path | None, options: Mapping[str, Any], more: tuple[str, ...]) -> dict[str, Any]:
    """The job as plain data: the file's, then the options', then what --set says."""
    raw: dict[str, Any] = _read_toml(job_file) if job_file else {}
    for option, path in FIELDS.items():
        if (value := options.get(option)) is not None:
            put(raw, path, value)
    for assignment in more:
        path, equals, value = assignment.partition("=")
        if not equals or not path:
            raise click.BadParameter(f"expected FIELD=VALUE, came {assignment!r}", param_hint="--set")
        put(raw, path.strip(), toml_value(value))
    return raw


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"cannot read the job file {file}: {error}") from None


def put(raw: dict[str, Any], path: str, value: Any) -> None:
    *tables, last = path.split(".")
    for table in tables:
        raw = raw.setdefault(table, {})
        if not isinstance(raw, dict):
            raise UserError(f"job: {path} cannot be set, {table} is no table")
    raw[last] = value


def toml_value(written: str) -> Any:
    """A value as in TOML; what is none is a string, so that quotes are not needed."""
    try:
        return tomllib.loads(f"value = {written}")["value"]
    except tomllib.TOMLDecodeError:
        return written


def checked(raw: Mapping[str, Any]) -> "JobSpec":
    """The job, as far as it can be checked without a coordinator; raises UsageError or UserError for what is wrong."""
    from tutti.domain.spec import JobSpec, check_composition, load_spec

    for needed in ("dataset", "model"):
        if needed not in raw:
            raise click.UsageError(f"the job has no {needed}: give --{needed}, or a job file with `{needed} = …`")
    _check_fields(raw, JobSpec, "")
    spec = load_spec(raw)
    check_composition(spec)
    return spec


def _check_fields(raw: Mapping[str, Any], struct: "type[msgspec.Struct]", path: str) -> None:
    """Raise UserError for a field that there is none of, with those that there are."""
    import msgspec

    fields = {field.name: field.type for field in msgspec.structs.fields(struct)}
    for name, value in raw.items():
        if name not in fields:
            raise UserError(f"job: there is no field `{path}{name}`; choose from: {', '.join(fields)}")
        table = next((t for t in (fields[name], *get_args(fields[name])) if _is_table(t)), None)
        if table is not None and isinstance(value, Mapping):
            _check_fields(value, table, f"{path}{name}.")


def _is_table(kind: Any) -> bool:
    import msgspec

    from tutti.core.registry import Choice

    return isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind is not Choice


# -- on a coordinator that is there --------------------------------------------------------------------


@contextmanager
def _client_for(options: Mapping[str, Any]) -> "Iterator[Client | None]":
    """A client of the coordinator that was named, or of the one that runs here; None if there is none."""
    from tutti.apps.client import Unreachable

    if options["local"]:
        yield None
        return
    with open_client(options["url"] or DEFAULT_URL, options["token_file"], options["ca"]) as client:
        try:
            client.status()
        except (Unreachable, NotFound):  # nobody there, or somebody else
            if options["url"]:
                raise
            found = None
        else:
            found = client
        yield found


def _refuse_local_options(source: str | None) -> None:
    if source is not None:
        raise click.UsageError(
            "--data is for a federation of this command's own; here the nodes that have joined hold the data "
            "(use --dataset with the name that `tutti nodes ls` shows, or --local)"
        )


def _run_on(client: "Client", spec: "JobSpec", ending: Ending) -> "JobView":
    expected = client.forecast(spec)
    job = client.submit(spec)
    if ending.detach:
        print_json(job) if ending.as_json else click.echo(job.id)
        return job
    job = _follow(client, job, ending.as_json)
    _print_result(client, job, ending, expected)
    return job


def _follow(client: "Client", job: "JobView", as_json: bool) -> "JobView":
    if as_json:
        return client.wait(job.id)
    from tutti.apps.cli.live import follow

    click.echo(f"job {job.id}: {job.model} on {job.dataset} with {job.strategy}, at {client.url}")
    if job.reason:
        click.echo(job.reason)
    try:
        return follow(client, job)
    except KeyboardInterrupt:
        click.echo(f"\nthe job goes on without you; `tutti jobs stop {job.id} --url {client.url}` ends it", err=True)
        raise


def _print_result(client: "Client", job: "JobView", ending: Ending, expected: "Forecast") -> None:
    if ending.out is not None and job.status == "completed":
        _save(client, job, ending.out)
    kept = keep(client.manifest(job.id)) if job.rounds_done else ""
    if ending.as_json:
        print_json(job)
    elif job.status == "completed":
        click.echo(beside(expected, client.usage(job.id)))
        click.echo(f"{_summary(client, job, ending.out)}\n{kept}")
    if job.status != "completed":
        raise JobNotDone(f"job {job.id} {job.status}: {job.reason}")
    for warning in _absences(client, job):
        click.echo(f"warning: {warning}", err=True)


def _save(client: "Client", job: "JobView", out: Path) -> None:
    """Write the model to `out`; if that fails, to a temporary folder: a federation for one job keeps nothing."""
    try:
        client.download(job.id, out)
    except (StorageError, OSError) as error:
        spare = client.download(job.id, Path(tempfile.mkdtemp(prefix="tutti-model-")) / "model.safetensors")
        raise StorageError(f"{error}; the model is in {spare} instead") from None


def _absences(client: "Client", job: "JobView") -> Iterator[str]:
    """Which nodes with the job's data counted in fewer rounds than were done; of a sample nothing else is expected."""
    cohort = job.spec.cohort
    if cohort.size is not None or cohort.fraction < 1 or job.rounds_done == 0:
        return
    counted = {given.node: given.updates for given in client.contributions(job=job.id)}
    present = {node.name for node in client.nodes(dataset=job.dataset, connected="true")}
    absent = [node for node in sorted(present | counted.keys()) if counted.get(node, 0) < job.rounds_done]
    if absent:
        last = client.why(job.id, job.rounds_done).attempts[-1]
        reasons = {part.node: part.reason for part in last.nodes}
        for node in absent[:WARNINGS]:
            why = reasons.get(node) or f"see `tutti why {job.id} --round N`"
            yield f"node {node} counted in {counted.get(node, 0)} of {job.rounds_done} rounds: {why}"
    if len(absent) > WARNINGS:
        yield f"so did {len(absent) - WARNINGS} more nodes"


def _summary(client: "Client", job: "JobView", out: Path | None) -> str:
    rounds = list(client.rounds(job.id))
    seconds = (rounds[-1].closed_at or 0.0) - job.submitted_at if rounds else 0.0
    score = f"accuracy {text.share(job.accuracy)}" if job.accuracy is not None else f"loss {text.number(job.loss)}"
    sent = text.size(sum(round.bytes for round in rounds))
    where = f"\nmodel: {out}" if out else ""
    return f"done: {job.reason}; {score}, {sent} of updates, {text.duration(seconds)}; job {job.id}{where}"


# -- on a federation of its own ------------------------------------------------------------------------


def _run_locally(raw: dict[str, Any], source: str | None, options: Mapping[str, Any], ending: Ending) -> None:
    from tutti.apps.cli.baselines import WITHOUT, beside, measured
    from tutti.apps.cli.federation import Federation

    if ending.detach:
        raise click.UsageError("--detach needs a coordinator that stays: start one (`tutti up`), or give --url")
    cohort = raw.setdefault("cohort", {})
    count = max(cohort.setdefault("min_nodes", LOCAL_NODES), cohort.get("size") or 1)
    cohort.setdefault("wait", LOCAL_WAIT)
    spec = checked(raw)
    _check_source(spec.dataset, source)
    check_names(spec)
    with tempfile.TemporaryDirectory(prefix="tutti-") as folder, Federation(Path(folder)) as federation:
        if not ending.as_json:
            why = "as asked" if options["local"] else "no coordinator runs here"
            click.echo(f"{why}: starting one at {federation.url} with {count} nodes, for this job only")
        parts = parts_of(source or spec.dataset, count, options["partition"], spec.seed)
        nodes = {f"node-{number}": part for number, part in enumerate(parts, start=1)}
        job = _run_in(federation, spec, nodes, ending)
    if options["baselines"] and not ending.as_json and (found := measured(job)):
        click.echo(f"\n{WITHOUT}")
        click.echo(f"\n{beside(_without(spec, nodes, job.rounds_done), found)}")


def _run_in(federation: "Federation", spec: "JobSpec", nodes: Mapping[str, str], ending: Ending) -> "JobView":
    from tutti.apps.client import Client

    federation.join(nodes)
    with Client(federation.url) as client:
        return _run_on(client, spec, ending)


def _without(spec: "JobSpec", nodes: Mapping[str, str], rounds: int) -> "Baselines":
    """What each of these data sources gives alone, and all together: they are at hand, as they are on no real node."""
    from tutti.adapters._imports import importable
    from tutti.apps.nodes import load_data
    from tutti.core.registry import Choice
    from tutti.sim import Federation
    from tutti.sim.baselines import baselines

    data = Federation.of({node: load_data(Choice.parse(part)) for node, part in nodes.items()})
    with importable(tuple(os.environ.get("TUTTI_ALLOW_MODULES", "").split())):  # as the nodes were allowed
        return baselines(spec, data, rounds)


def parts_of(source: str, count: int, partition: str, seed: int) -> list[str]:
    """The data sources of `count` nodes that divide one source among them."""
    joint = "," if ":" in source else ":"
    carved = f"partition={partition.replace(',', ';')},seed={seed}"
    return [f"{source}{joint}part={index}/{count},{carved}" for index in range(count)]


def _check_source(dataset: str, source: str | None) -> None:
    """Say at once what the nodes would say one by one."""
    from tutti.ports.training import datasets

    if source is None and dataset not in datasets:
        raise UserError(
            f"no coordinator runs here, and there is no data source {dataset!r} that nodes could divide "
            f"(there are: {', '.join(datasets)}): give --data, or --url"
        )


def check_names(spec: "JobSpec") -> None:
    """Say what the coordinator would say, without starting one."""
    from tutti.core.strategy import compose
    from tutti.ports.training import models

    compose(spec.strategy, spec.reducer)
    models.options(spec.model)


def _name_of(source: str) -> str:
    """What nodes with this source will call their data."""
    from tutti.apps.nodes import load_data
    from tutti.core.registry import Choice

    return load_data(Choice.parse(source)).name
