"""A worker process of the processes engine: one thread, the shared rows mapped into memory, one node at a time.

It reads orders from the file descriptor that its only argument names, and ends when the other side closes it.
"""

import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter

import msgspec
import numpy as np

from tutti.core.local import Correction
from tutti.core.params import Params
from tutti.core.registry import Choice
from tutti.domain.spec import DataSchema, Metrics, Training
from tutti.ports.training import Examples, Task, Trainer, models
from tutti.services.work import reason_of
from tutti.wire import tensors


class Setup(msgspec.Struct, frozen=True, tag=True):
    """What to train, and the folder with x.npy, y.npy, params.safetensors and the slots for updates."""

    model: Choice
    schema: DataSchema
    folder: str


class Order(msgspec.Struct, frozen=True, tag=True):
    """Train on `rows` (int64 row numbers) and leave the update in a slot."""

    slot: int
    rows: bytes
    training: Training
    seed: int
    batch_size: int
    lr: float
    pull: float


class Done(msgspec.Struct, frozen=True, tag=True):
    slot: int
    examples: int
    metrics: Metrics
    seconds: float
    steps: int


class Trouble(msgspec.Struct, frozen=True, tag=True):
    slot: int
    reason: str


def slot_file(folder: Path, slot: int) -> Path:
    return folder / f"slot-{slot}.f32"


def main(descriptor: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and ends us
    connection = Connection(descriptor)
    orders: msgspec.msgpack.Decoder[Setup | Order] = msgspec.msgpack.Decoder(Setup | Order)
    try:
        setup = orders.decode(connection.recv_bytes())
        assert isinstance(setup, Setup)
        bench = _Bench(setup)
        while True:
            order = orders.decode(connection.recv_bytes())
            assert isinstance(order, Order)
            connection.send_bytes(msgspec.msgpack.encode(bench.carry_out(order)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)


class _Bench:
    """The rows and the trainer; the model is read anew for each order, since it changes from round to round."""

    def __init__(self, setup: Setup) -> None:
        self._folder = Path(setup.folder)
        self._setup = setup
        self._trainer: Trainer | None = None
        self._x = np.load(self._folder / "x.npy", mmap_mode="r")
        self._y = np.load(self._folder / "y.npy", mmap_mode="r")

    def carry_out(self, order: Order) -> Done | Trouble:
        began = perf_counter()
        try:
            self._trainer = self._trainer or models.build(self._setup.model, data=self._setup.schema)
            params = tensors.decode((self._folder / "params.safetensors").read_bytes())
            rows = np.frombuffer(order.rows, np.int64)
            task = Task(order.training, order.seed, order.batch_size, order.lr, Correction(pull=order.pull))
            work = self._trainer.train(params, Examples(self._x[rows], self._y[rows]), task, lambda *_: None)
            if difference := params.layout.difference(work.params.layout):
                return Trouble(order.slot, f"the trainer returned another model than it was given: {difference}")
            self._leave(params, work.params, order.slot)
        except Exception as error:
            return Trouble(order.slot, reason_of(error))
        return Done(order.slot, work.examples, work.metrics, perf_counter() - began, work.steps)

    def _leave(self, params: Params, trained: Params, slot: int) -> None:
        to = np.memmap(slot_file(self._folder, slot), np.float32, mode="r+", shape=params.buffer.shape)
        np.subtract(trained.buffer, params.buffer, out=to)


if __name__ == "__main__":
    main(int(sys.argv[1]))
