"""What a trainer checks before it works, and how it measures: numpy only, one definition for every back end."""

import numpy as np
from numpy.typing import NDArray

from tutti.core.errors import UserError
from tutti.core.evaluation import auc, calibration_error, softmax
from tutti.core.params import Layout, Params
from tutti.domain.spec import DataSchema, Metrics
from tutti.ports.training import Examples


class Misfit(UserError):
    """Model, parameters and examples do not belong together."""


def check(layout: Layout, params: Params, schema: DataSchema, examples: Examples) -> None:
    """Raise Misfit unless `params` have this layout and `examples` look as the schema says."""
    if difference := layout.difference(params.layout):
        raise Misfit(f"these parameters are not of this model: {difference}")
    check_examples(schema, examples)


def check_examples(schema: DataSchema, examples: Examples) -> None:
    """Raise Misfit unless there are examples, and they look as the schema says."""
    x, y = examples.x, examples.y
    if len(x) == 0:
        raise Misfit("expected at least one example, came none")
    if x.shape[1:] != schema.shape:
        raise Misfit(f"the model takes examples of shape {schema.shape}, these have {x.shape[1:]}")
    wanted = (len(x),) if schema.task == "classification" else (len(x), schema.outputs)
    if y.shape != wanted:
        raise Misfit(f"expected targets of shape {wanted} for {schema.task}, came {y.shape}")
    if schema.task == "classification" and not (y.min() >= 0 and y.max() < schema.outputs):
        raise Misfit(f"expected classes 0 to {schema.outputs - 1}, came {y.min()} to {y.max()}")


def measure(outputs: NDArray[np.float32], y: NDArray[np.int64] | NDArray[np.float32], schema: DataSchema) -> Metrics:
    """`loss`, `accuracy` and `calibration` of logits, or `loss`, `mse` and `r2` of predicted targets.

    Sums are in float64. For two classes that both occur, `auc` too. `calibration` is the expected calibration error.
    """
    scores = outputs.astype(np.float64)
    return _of_classes(scores, y.astype(np.int64)) if schema.task == "classification" else _of_targets(scores, y)


def _of_classes(logits: NDArray[np.float64], y: NDArray[np.int64]) -> Metrics:
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_likelihood = shifted[np.arange(len(y)), y] - np.log(np.exp(shifted).sum(axis=1))
    measured = {
        "loss": float(-log_likelihood.mean()),
        "accuracy": float((logits.argmax(axis=1) == y).mean()),
        "calibration": calibration_error(y, softmax(logits)),
    }
    area = auc(y, logits[:, 1] - logits[:, 0]) if logits.shape[1] == 2 else None
    return measured if area is None else {**measured, "auc": area}


def _of_targets(predicted: NDArray[np.float64], y: NDArray[np.int64] | NDArray[np.float32]) -> Metrics:
    """R2 is averaged over target columns; a constant column counts 1 when hit exactly, otherwise 0."""
    targets = y.astype(np.float64)
    squared = ((predicted - targets) ** 2).sum(axis=0)
    spread = ((targets - targets.mean(axis=0)) ** 2).sum(axis=0)
    constant = spread == 0
    r2 = np.where(constant, squared == 0, 1 - squared / np.where(constant, 1, spread))
    mse = float(squared.sum() / targets.size)
    return {"loss": mse, "mse": mse, "r2": float(r2.mean())}
