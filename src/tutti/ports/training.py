"""Local work: data that stays at home, and what trains on it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from tutti.core.errors import TuttiError
from tutti.core.local import UNCORRECTED, Correction
from tutti.core.params import Params
from tutti.core.registry import Registry
from tutti.domain.spec import DataSchema, Metrics, Training


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Rows in memory: `x` is float32 (n, *shape); `y` is int64 (n,) classes, or float32 (n, outputs) targets."""

    x: NDArray[np.float32]
    y: NDArray[np.int64] | NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """A node's data: what it trains on, and the rows it holds out to measure models.

    `missing` counts cells without a value by column, before rows were left out or, if `filled`, the mean of the others
    was put there. `source` is where anybody can have the same rows, such as `digits:part=0/4`; empty for data of a
    node's own.
    """

    name: str
    schema: DataSchema
    train: Examples
    held_out: Examples
    missing: Mapping[str, int] = field(default_factory=dict)
    source: str = ""
    filled: bool = False

    def everything(self) -> Examples:
        """The rows to train on and those held out, in this order."""
        if len(self.held_out) == 0:
            return self.train
        x, y = (np.concatenate([getattr(rows, name) for rows in (self.train, self.held_out)]) for name in "xy")
        return Examples(x, y)

    def digest(self) -> str:
        """BLAKE3 of kind and rows: equal for equal data, and nothing else can be learnt from it."""
        digest = blake3(repr((self.name, self.schema)).encode())
        for rows in (self.train, self.held_out):
            for array in (rows.x, rows.y):
                digest.update(f"{array.dtype}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def columns_of(schema: DataSchema) -> list[str]:
    """What to call the columns of a table, `feature 0` and so on where they have no names; one name for all pixels."""
    if len(schema.shape) != 1:
        return ["pixels"]
    if len(schema.features) == schema.shape[0]:
        return list(schema.features)
    return [f"feature {number}" for number in range(schema.shape[0])]


def normalized(examples: Examples, schema: DataSchema) -> Examples:
    """(x - mean) / deviation, column by column, where the schema says so; columns that never vary are only shifted."""
    if not schema.mean:
        return examples
    deviation = np.array(schema.deviation)
    x = (examples.x - np.array(schema.mean)) / np.where(deviation > 0, deviation, 1.0)
    return Examples(x.astype(np.float32), examples.y)


class NodeData(Protocol):
    """A data source by name and options, such as `digits:part=0/4` or `csv:path=patients.csv,target=died`."""

    def load(self) -> Data:
        """Read everything; raises UserError naming file, row and column of what is wrong."""
        ...


@dataclass(frozen=True, slots=True)
class Task:
    """What to do with the model: the job's training settings, this node's seed for this round, and what the
    strategy has added to the gradients."""

    training: Training
    seed: int
    batch_size: int
    lr: float
    correction: Correction = UNCORRECTED


@dataclass(frozen=True, slots=True)
class Work:
    """Result of training: the local model, how many examples stand behind it, the metrics of the last epoch, and
    how many steps of the learning rate the optimiser took."""

    params: Params
    examples: int
    metrics: Metrics
    steps: int


class Cancelled(TuttiError):
    """Raised out of a Report callback to end the work early: nobody needs it any more."""


Report = Callable[[float, int, float | None], None]
"""Called often during training with (share done, epoch, loss so far); may raise Cancelled."""


class Trainer(Protocol):
    """One model, by name and options, on one kind of data. Same inputs, same bits, on one machine and thread count."""

    def init(self, seed: int) -> Params: ...

    def train(self, params: Params, examples: Examples, task: Task, report: Report) -> Work:
        """Start from `params` (not changed) and train on `examples`; raises UserError if they do not fit."""
        ...

    def evaluate(self, params: Params, examples: Examples) -> Metrics:
        """`loss` and, for classes, `accuracy`, `calibration` (and `auc` for two); for targets, `mse` and `r2`."""
        ...

    def predict(self, params: Params, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of classes, or targets: float32 (n, outputs), for `x` float32 (n, *shape)."""
        ...


Backend = Literal["torch", "sklearn"]

models: Registry[Trainer] = Registry("model", "tutti.adapters.models")
"""Factories `(options…, *, data: DataSchema) -> Trainer`."""

datasets: Registry[NodeData] = Registry("dataset", "tutti.adapters.datasets")
"""Factories `(options…) -> NodeData`."""
