"""Models: list them with what made them, take them home, and predict with them."""

import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import click

from tutti.apps.cli import text
from tutti.apps.cli.options import ExistingFile, File, allow_module, as_json, find_job, print_json, with_client
from tutti.core.errors import Conflict, NotFound, StorageError, UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tutti.adapters.datasets._columns import Columns
    from tutti.apps.client import Client
    from tutti.core.params import Params
    from tutti.core.registry import Choice
    from tutti.domain.spec import DataSchema
    from tutti.services.views import ModelView


@click.group()
def models() -> None:
    """List models, see what made one, download it. `tutti model` is the same.

    \b
    Examples:
      tutti models ls digits
      tutti models show digits --round 3
      tutti model pull digits model.safetensors
    """


@models.command("ls")
@click.argument("job", required=False)
@as_json
@with_client
def models_ls(client: "Client", job: str | None, as_json: bool) -> None:
    """List a job's models, or the current one of every job.

    \b
    Examples:
      tutti models ls
      tutti models ls digits --json
    """
    found = list(client.models(find_job(client, job).id if job else None))
    if as_json:
        print_json(found)
        return
    header = ("job", "round", "accuracy", "loss", "made", "from", "digest", "")
    click.echo(text.table(header, map(_model_row, found)) if found else "no models yet")


def _model_row(model: "ModelView") -> tuple[object, ...]:
    measured = model.evaluations.get("coordinator") or model.evaluations.get("nodes") or {}
    marks = [mark for mark, holds in (("current", model.current), ("best", model.best)) if holds]
    return (
        model.job,
        model.round,
        text.share(measured.get("accuracy")),
        text.number(measured.get("loss")),
        text.moment(model.made_at),
        f"{len(model.made_from)} updates" if model.made_from else "the seed",
        model.digest[:12],
        ", ".join(marks),
    )


@models.command("show")
@click.argument("job")
@click.option("--round", "number", type=click.IntRange(0), help="The model of this round.  [default: the current one]")
@as_json
@with_client
def models_show(client: "Client", job: str, number: int | None, as_json: bool) -> None:
    """See which updates made a model.

    \b
    Examples:
      tutti models show digits
      tutti models show digits --round 3 --json
    """
    found = find_job(client, job)
    for model in client.models(found.id):
        if model.round == number if number is not None else model.current:
            print_json(model) if as_json else _print_lineage(model)
            return
    raise NotFound(f"job {found.id} has no model{'' if number is None else f' of round {number}'}")


def _print_lineage(model: "ModelView") -> None:
    click.echo(f"{model.digest}\nround {model.round} of job {model.job}: {model.model}, {model.parameters} parameters")
    if not model.made_from:
        click.echo("made from the seed")
        return
    click.echo(f"made from {model.base} and\n")
    rows = [(part.node, part.weight, text.share(part.share), part.digest) for part in model.made_from]
    click.echo(text.table(("node", "weight", "share", "update"), rows))


@models.command("pull")
@click.argument("job")
@click.argument("file", type=File)
@click.option("--round", "number", type=click.IntRange(0), help="The model of this round.  [default: the current one]")
@click.option("--best", is_flag=True, help="The model of the round that measured best.")
@with_client
def models_pull(client: "Client", job: str, file: Path, number: int | None, best: bool) -> None:
    """Download a model as a safetensors file that any framework reads.

    \b
    Examples:
      tutti model pull digits model.safetensors
      tutti model pull digits round-3.safetensors --round 3
      tutti model pull digits best.safetensors --best
    """
    from tutti.apps.client import OVER

    found = find_job(client, job)
    if best:
        if found.best_round is None:
            raise Conflict(f"no model of job {found.id} has been measured, so none is the best")
        number = found.best_round
    if number is None and found.rounds_done == 0:
        over = f"{found.status} before its first round was done" if found.status in OVER else "has done no round yet"
        raise Conflict(f"job {found.id} {over}: there is no trained model; --round 0 gives the initial one")
    client.download(found.id, file, number)
    click.echo(f"{file}: {found.model}, {text.size(file.stat().st_size)}")


model_alias = click.Group("model", commands=models.commands, help=models.help, hidden=True)


# -- predict -------------------------------------------------------------------------------------------


class PulledModel(NamedTuple):
    """What a model file says of itself."""

    params: "Params"
    choice: "Choice"
    data: "DataSchema"
    dataset: str
    round: int


@click.command()
@click.argument("model", type=ExistingFile)
@click.argument("data", type=ExistingFile)
@click.option("--out", type=File, help="Write the predictions to this CSV file.  [default: standard output]")
@click.option("--target", help="The column with the truth: left out of the features, and the model is measured on it.")
@click.option("--drop", default="", help="Columns that are no features: id|name.")
@click.option("--one-hot", default="", help="As in training: colour:red|green;size:S|M.")
@click.option("--separator", type=click.Choice([",", ";", "tab"]), default=",", show_default=True, help="Of columns.")
@click.option("--no-header", is_flag=True, help="The first row is data.")
@click.option(
    "--order",
    type=click.Choice(["name", "file"]),
    help="Order of the features: by column name, as CSV and Parquet sources train, or as in the file.  "
    "[default: file for bundled data sets, else name]",
)
@allow_module
def predict(
    model: Path, data: Path, out: Path | None, target: str | None, allow_modules: tuple[str, ...], **reading: Any
) -> None:
    """Predict with a pulled model on the rows of a CSV file.

    Classes come by name, where the training data had names, and with their probability. A model that knows its
    columns finds them by name; further columns are left out. Features that nodes
    scaled before they joined must be scaled alike here. The measure on --target goes to standard error.

    \b
    Examples:
      tutti predict model.safetensors examples/digits.csv --target digit
      tutti predict model.safetensors patients.csv --drop id --out predictions.csv
    """
    import numpy as np

    from tutti.adapters._imports import importable
    from tutti.adapters.datasets.tables import read_csv
    from tutti.ports.training import Examples, normalized
    from tutti.ports.training import models as registry

    pulled = read_model(model)
    columns = read_csv(str(data), header=not reading.pop("no_header"), separator=reading.pop("separator"))
    x = _features(columns, pulled, target, **reading)
    with importable(allow_modules):
        trainer = registry.build(pulled.choice, data=pulled.data)
    outputs = trainer.predict(pulled.params, normalized(Examples(x, np.zeros(len(x), np.int64)), pulled.data).x)
    _write(pulled.data, outputs, out)
    if target is not None:
        _measure(pulled.data, outputs, columns, target)


def read_model(file: Path) -> PulledModel:
    """Read a pulled model; raises UserError for any other file."""
    import msgspec

    from tutti.core.registry import Choice
    from tutti.domain.spec import DataSchema
    from tutti.wire import tensors

    data = file.read_bytes()
    try:
        params, says = tensors.decode(data), tensors.metadata(data)
        return PulledModel(
            params,
            msgspec.json.decode(says["tutti.model"], type=Choice),
            msgspec.json.decode(says["tutti.data"], type=DataSchema),
            says["tutti.dataset"],
            int(says["tutti.round"]),
        )
    except (tensors.BadTensors, KeyError, msgspec.MsgspecError) as error:
        what = f"it does not say {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{file} is not a model from `tutti model pull`: {what}") from None


def _features(
    columns: "Columns", pulled: PulledModel, target: str | None, *, drop: str, one_hot: str, order: str | None
) -> "NDArray[np.float32]":
    """float32 (n, *shape) as the model takes it; raises UserError if the columns do not make it up."""
    from tutti.adapters.datasets._columns import complete_features
    from tutti.adapters.datasets._common import SCHEMAS

    dropped = "|".join(filter(None, (drop, target)))
    if order is None and (named := _named(columns, pulled.data.features, dropped, one_hot)) is not None:
        return named
    in_file_order = order == "file" or (order is None and pulled.dataset in SCHEMAS)
    x = complete_features(_numbered(columns, dropped) if in_file_order else columns, drop=dropped, one_hot=one_hot)
    width = 1
    for side in pulled.data.shape:
        width *= side
    if x.shape[1] != width:
        hint = ": name the column with the truth by --target, others by --drop" if x.shape[1] > width else ""
        raise UserError(f"the model takes {width} features, {columns.path} has {x.shape[1]}{hint}")
    return x.reshape(-1, *pulled.data.shape)


def _named(columns: "Columns", names: tuple[str, ...], dropped: str, one_hot: str) -> "NDArray[np.float32] | None":
    """The very columns that the model names, in its order; None where it or the file has no such names."""
    from tutti.adapters.datasets._columns import complete_features, feature_names

    found = feature_names(columns, drop=dropped, one_hot=one_hot)
    if not names or not set(names) & set(found):
        return None
    if missing := [name for name in names if name not in found]:
        raise UserError(
            f"{columns.path} lacks the column {missing[0]!r} that the model takes; it has: {', '.join(found)}"
        )
    encoded = {part.partition(":")[0] for part in one_hot.split(";")}
    surplus = [name for name in found if name not in names and name.partition("=")[0] not in encoded]
    used = "|".join(filter(None, (dropped, *surplus)))
    x = complete_features(columns, drop=used, one_hot=one_hot)
    kept = feature_names(columns, drop=used, one_hot=one_hot)
    return x[:, [kept.index(name) for name in names]]


def _numbered(columns: "Columns", dropped: str) -> "Columns":
    """The same columns under names whose alphabetical order is that of the file; dropped ones keep theirs."""
    from dataclasses import replace

    kept = dropped.split("|")
    cells = {name if name in kept else f"{i:06d} {name}": cell for i, (name, cell) in enumerate(columns.cells.items())}
    return replace(columns, cells=cells)


def _write(data: "DataSchema", outputs: "NDArray[np.float32]", out: Path | None) -> None:
    if out is None:
        _write_rows(data, outputs, sys.stdout)
        return
    try:
        with out.open("w", newline="", encoding="utf-8") as file:
            _write_rows(data, outputs, file)
    except OSError as error:
        raise StorageError(f"cannot write {out}: {error.strerror}") from None
    click.echo(f"{out}: {len(outputs)} predictions")


def _write_rows(data: "DataSchema", outputs: "NDArray[np.float32]", file: TextIO) -> None:
    import numpy as np

    writer = csv.writer(file, lineterminator="\n")
    if data.task == "regression":
        writer.writerow([f"prediction_{i}" for i in range(data.outputs)] if data.outputs > 1 else ["prediction"])
        writer.writerows([f"{value:.6g}" for value in row] for row in outputs)
        return
    likely = np.exp(outputs.astype(np.float64) - outputs.max(axis=1, keepdims=True))
    likely /= likely.sum(axis=1, keepdims=True)
    writer.writerow(["prediction", "probability"])
    named = data.classes or tuple(map(str, range(data.outputs)))
    writer.writerows((named[int(row.argmax())], f"{row.max():.4f}") for row in likely)


def _measure(data: "DataSchema", outputs: "NDArray[np.float32]", columns: "Columns", target: str) -> None:
    import numpy as np

    from tutti.adapters.trainers.measure import measure

    if data.task == "classification":
        metrics = measure(outputs, _true_classes(data, columns, target), data)
    else:
        metrics = measure(outputs, _true_numbers(columns, target).astype(np.float32)[:, None], data)
    click.echo(", ".join(f"{name} {value:.4g}" for name, value in metrics.items()), err=True)


def _true_numbers(columns: "Columns", target: str) -> "NDArray[np.float64]":
    import numpy as np

    try:
        return np.asarray(columns.cells[target], np.float64)
    except ValueError:
        raise UserError(f"{columns.path}, column {target!r}: expected numbers to measure on") from None


def _true_classes(data: "DataSchema", columns: "Columns", target: str) -> "NDArray[np.int64]":
    """int64 (n,) from names or, where the column has none of these, from numbers."""
    import numpy as np

    texts = [str(cell).strip() for cell in columns.cells[target]]
    if set(texts) & set(data.classes):
        if unknown := next((text for text in texts if text not in data.classes), None):
            raise UserError(
                f"{columns.path}, column {target!r}: {unknown!r} is none of the model's classes, "
                f"{', '.join(data.classes)}"
            )
        return np.array([data.classes.index(text) for text in texts], np.int64)
    truth = _true_numbers(columns, target)
    if not np.isin(truth, np.arange(data.outputs)).all():
        named = f", or {', '.join(data.classes)}" if data.classes else ""
        raise UserError(f"{columns.path}, column {target!r}: expected classes 0 to {data.outputs - 1}{named}")
    return truth.astype(np.int64)
