"""A model that learns nothing, and whose training waits at a gate: so that a test knows how far a round has come.

A node's gate is the named pipe that its environment variable `TUTTI_TEST_GATE` points to. Where there is none, training
goes on at once; where there is one, when somebody has opened it.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from tutti.core.params import Params
from tutti.domain.spec import DataSchema
from tutti.ports import Data, Examples, Work

GATE = "TUTTI_TEST_GATE"
SCHEMA = DataSchema("classification", (1,), 2)


class Gated:
    """Implements ports.Trainer: the model comes back with a constant added, mostly another for each node and round."""

    def __init__(self, floats: int) -> None:
        self._floats = floats

    def init(self, seed: int) -> Params:
        return Params.from_arrays({"vector": np.full(self._floats, seed, np.float32)})

    def train(self, params: Params, examples: Examples, task: Any, report: object) -> Work:
        if (gate := Path(os.environ.get(GATE, ""))).is_fifo():
            gate.read_bytes()  # there is an end of it when whoever opens the gate closes it
            gate.unlink()
        constant = np.float32(1e-5 * (task.seed % 99_991))
        return Work(Params(params.layout, params.buffer + constant), len(examples), {}, 1)

    def evaluate(self, params: Params, examples: Examples) -> dict[str, float]:
        return {}


def gated(floats: int = 100_000, *, data: DataSchema) -> Gated:
    return Gated(floats)


def rows(count: int) -> Data:
    x, y = np.zeros((count, 1), np.float32), np.zeros(count, np.int64)
    return Data("gated", SCHEMA, Examples(x, y), Examples(x[:0], y[:0]))


def installed(folder: Path) -> dict[str, str]:
    """What to add to the environment of processes that shall find the model `gated`, as of a distribution."""
    info = folder / "plugin" / "gated-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gated\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tutti.models]\ngated = support.gated:gated\n")
    tests = Path(__file__).resolve().parent.parent
    return {"PYTHONPATH": os.pathsep.join([str(info.parent), str(tests), os.environ.get("PYTHONPATH", "")])}


def open_gate(gate: Path) -> None:
    """Let whoever waits there through."""
    gate.write_bytes(b"")
