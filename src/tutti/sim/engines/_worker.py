"""A worker process of the processes engine: one thread, the shared rows mapped into memory, one node at a time.

It reads orders from the file descriptor that its only argument names, and ends when the other side closes it.
"""

import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
import numpy as np

from tutti.core.registry import Choice
from tutti.domain.spec import DataSchema
from tutti.ports.training import Examples
from tutti.services.work import reason_of
from tutti.sim.engines._resident import Done, Order, Resident, Trouble
from tutti.wire import tensors


class Setup(msgspec.Struct, frozen=True, tag=True):
    """What to train, and the folder with x.npy, y.npy, params.safetensors and the slots for updates.

    The model may name modules that `listed` lists.
    """

    model: Choice
    schema: DataSchema
    folder: str
    listed: tuple[str, ...]


def slot_file(folder: Path, slot: int) -> Path:
    return folder / f"slot-{slot}.f32"


def main(descriptor: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and ends us
    connection = Connection(descriptor)
    orders: msgspec.msgpack.Decoder[Setup | Order] = msgspec.msgpack.Decoder(Setup | Order)
    try:
        setup = orders.decode(connection.recv_bytes())
        assert isinstance(setup, Setup)
        folder = Path(setup.folder)
        x, y = (np.load(folder / name, mmap_mode="r") for name in ("x.npy", "y.npy"))
        resident = Resident(setup.model, setup.schema, Examples(x, y), setup.listed)
        while True:
            order = orders.decode(connection.recv_bytes())
            assert isinstance(order, Order)
            connection.send_bytes(msgspec.msgpack.encode(_carried_out(resident, folder, order)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)


def _carried_out(resident: Resident, folder: Path, order: Order) -> Done | Trouble:
    """The model is read anew for each order, since it changes from round to round."""
    try:
        params = tensors.decode((folder / "params.safetensors").read_bytes())
        delta = np.memmap(slot_file(folder, order.slot), np.float32, mode="r+", shape=params.buffer.shape)
    except Exception as error:
        return Trouble(order.slot, reason_of(error))
    return resident.carry_out(order, params, delta)


if __name__ == "__main__":
    main(int(sys.argv[1]))
