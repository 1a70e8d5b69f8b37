"""A model whose training costs nothing, so that a round shows what everything else costs."""

from typing import Literal

import numpy as np

from tutti.core.params import Params
from tutti.domain.spec import DataSchema, Metrics
from tutti.ports import Data, Examples, Report, Task, Work

LAYOUTS: dict[str, dict[str, tuple[int, ...]]] = {
    "tiny": {"weight": (10, 784), "bias": (10,)},
    "2nn": {  # that of McMahan et al. 2017, as the next
        "fc1.weight": (200, 784),
        "fc1.bias": (200,),
        "fc2.weight": (200, 200),
        "fc2.bias": (200,),
        "out.weight": (10, 200),
        "out.bias": (10,),
    },
    "cnn": {  # that of McMahan et al. 2017, https://arxiv.org/abs/1602.05629
        "conv1.weight": (32, 1, 5, 5),
        "conv1.bias": (32,),
        "conv2.weight": (64, 32, 5, 5),
        "conv2.bias": (64,),
        "dense.weight": (512, 3136),
        "dense.bias": (512,),
        "out.weight": (10, 512),
        "out.bias": (10,),
    },
}
SCHEMA = DataSchema("classification", (1,), 2)


def parameters(size: str) -> int:
    return sum(int(np.prod(shape)) for shape in LAYOUTS[size].values())


def data() -> Data:
    one_row = Examples(np.zeros((1, 1), np.float32), np.zeros(1, np.int64))
    return Data("nowork", SCHEMA, one_row, Examples(one_row.x[:0], one_row.y[:0]))


class NoWork:
    """Implements ports.Trainer: the model comes back with a constant added, another for every node and round.

    Equal updates would be one blob, stored once.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self._shapes = shapes

    def init(self, seed: int) -> Params:
        rng = np.random.default_rng(seed)
        return Params.from_arrays({n: rng.standard_normal(s, dtype=np.float32) for n, s in self._shapes.items()})

    def train(self, params: Params, examples: Examples, task: Task, report: Report) -> Work:
        constant = np.float32(1e-3 + 1e-9 * (task.seed % 999_983))
        return Work(Params(params.layout, params.buffer + constant), len(examples), {}, 1)

    def evaluate(self, params: Params, examples: Examples) -> Metrics:
        return {}


def nowork(size: Literal["tiny", "2nn", "cnn"] = "tiny", floats: int = 0, *, data: DataSchema) -> NoWork:
    """Model for benchmarks; found by an entry point, see _federation.plugin. `floats`: one vector."""
    return NoWork({"vector": (floats,)} if floats else LAYOUTS[size])
