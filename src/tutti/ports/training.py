"""Local work: data that stays at home, and what trains on it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
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
    """A node's data: what it trains on, and the rows it holds out to measure models."""

    name: str
    schema: DataSchema
    train: Examples
    held_out: Examples


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
        """`loss` and, for classes, `accuracy` (and `auc` for two); for targets, `mse` and `r2`."""
        ...

    def predict(self, params: Params, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of classes, or targets: float32 (n, outputs), for `x` float32 (n, *shape)."""
        ...


Backend = Literal["torch", "sklearn"]

models: Registry[Trainer] = Registry("model", "tutti.adapters.models")
"""Factories `(options…, *, data: DataSchema) -> Trainer`."""

datasets: Registry[NodeData] = Registry("dataset", "tutti.adapters.datasets")
"""Factories `(options…) -> NodeData`."""
