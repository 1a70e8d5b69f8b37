"""`evaluate`: a model file on rows that are at hand, as one and node by node."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tutti.apps.cli import text
from tutti.apps.cli.options import ExistingFile, allow_module, as_json, print_json

if TYPE_CHECKING:
    from tutti.apps.cli.models import PulledModel
    from tutti.ports.training import Data
    from tutti.services.views import EvaluationView

MOST_CLASSES = 12
"""Columns of the printed confusion matrix; --json has all."""


@click.command()
@click.argument("model", type=ExistingFile)
@click.argument("data")
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True, help="Divide the rows among so many.")
@click.option("--partition", default="iid", show_default=True, help="How, such as natural-id or dirichlet:0.3.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of that partition.")
@allow_module
@as_json
def evaluate(
    model: Path, data: str, nodes: int, partition: str, seed: int, allow_modules: tuple[str, ...], as_json: bool
) -> None:
    """Measure a pulled model on all rows of a data source.

    Loss, accuracy, AUC (of two classes), calibration error and the confusion matrix over all rows; with --nodes the
    rows are divided as in a simulation, and the model is measured on every part: the worst node, and the variance. What
    the nodes of a job measured on rows of their own is in `tutti jobs evaluation`.

    \b
    Examples:
      tutti evaluate model.safetensors digits
      tutti evaluate model.safetensors heart-disease --nodes 4 --partition natural-id
      tutti evaluate model.safetensors csv:path=new.csv,target=died --json
    """
    from tutti.adapters._imports import importable
    from tutti.apps.cli.models import read_model

    pulled = read_model(model)
    parts = _divided(data, nodes, partition, seed) if nodes > 1 else {"all": _whole(data)}
    with importable(allow_modules):
        found = _evaluated(pulled, parts)
    print_json(found) if as_json else show(found)


def _divided(data: str, nodes: int, partition: str, seed: int) -> "dict[str, Data]":
    from tutti.sim import Federation

    federation = Federation.divide(data, nodes, partition, seed=seed, held_out=0.0)
    return {node: federation.data(node) for node in federation.nodes}


def _whole(data: str) -> "Data":
    from tutti.apps.nodes import load_data
    from tutti.core.registry import Choice

    return load_data(Choice.parse(data))


def _evaluated(pulled: "PulledModel", parts: "dict[str, Data]") -> "EvaluationView":
    import numpy as np

    from tutti.adapters.trainers.measure import measure
    from tutti.core.errors import UserError
    from tutti.domain.spec import mismatch
    from tutti.ports.training import models, normalized
    from tutti.services.views import EvaluationView, confusion_of, fairness_of

    for data in parts.values():
        if (difference := mismatch(pulled.data, data.schema)) is not None:
            raise UserError(f"{data.name} does not fit the model: {difference}")
    trainer = models.build(pulled.choice, data=pulled.data)
    rows = {node: normalized(data.everything(), pulled.data) for node, data in parts.items()}
    outputs = {node: trainer.predict(pulled.params, examples.x) for node, examples in rows.items()}
    by_node = {
        node: {**measure(outputs[node], examples.y, pulled.data), "examples": float(len(examples))}
        for node, examples in rows.items()
    }
    y, all_outputs = np.concatenate([each.y for each in rows.values()]), np.concatenate(list(outputs.values()))
    classes = pulled.data.task == "classification"
    numbers = [str(number) for number in range(pulled.data.outputs)]
    return EvaluationView(
        round=pulled.round,
        nodes=by_node if len(by_node) > 1 else {},
        pooled={**measure(all_outputs, y, pulled.data), "examples": float(len(y))},
        coordinator={},
        fairness=fairness_of(by_node) if len(by_node) > 1 else {},
        confusion=confusion_of(y.astype(np.int64), all_outputs) if classes else [],
        class_names=([*pulled.data.classes] or numbers) if classes else [],
    )


def show(found: "EvaluationView") -> None:
    """Tables: who measures what, how evenly, and what is taken for what."""
    measured = {**found.nodes, "all": found.pooled, "coordinator": found.coordinator}
    metrics = [name for name in found.pooled or found.coordinator if name != "examples"]
    rows = [
        (who, f"{each['examples']:.0f}" if "examples" in each else "-", *(text.number(each.get(m)) for m in metrics))
        for who, each in measured.items()
        if each
    ]
    click.echo(text.table(("", "examples", *metrics), rows) if rows else "nobody has measured this model")
    if found.fairness:
        even = [
            (
                name,
                text.number(f.mean),
                text.number(f.variance),
                text.number(f.worst),
                f.worst_node,
                text.number(f.best),
            )
            for name, f in found.fairness.items()
        ]
        click.echo("\n" + text.table(("over nodes", "mean", "variance", "worst", "of", "best"), even))
    if found.confusion and len(found.class_names) <= MOST_CLASSES:
        counts = [(name, *row) for name, row in zip(found.class_names, found.confusion, strict=True)]
        click.echo("\n" + text.table(("true \\ predicted", *found.class_names), counts))
