"""The same averages with nothing but sockets, hashes and sums: the limit of a round that goes over TCP.

As many processes; each gives its vector to three of them over TCP, which hash what comes and sum it in the same
fixed-point arithmetic, and give the mean to those who have not made it, who hash it. No agreement, no disk, and no
training.
"""

import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from statistics import median

import numpy as np
from blake3 import blake3

from tutti.core.params import Params
from tutti.core.reduce import Update, weighted_mean

PIECE = 1 << 20
SUMMING = 3


def bare(peers: int, floats: int, rounds: int) -> tuple[float, float]:
    """Seconds of a round (median), and CPU seconds of all processes for one."""
    context = multiprocessing.get_context("spawn")
    barrier, pipes, processes = context.Barrier(peers), [], []
    for rank in range(peers):
        here, there = context.Pipe()
        processes.append(context.Process(target=_peer, args=(rank, peers, floats, rounds, barrier, there), daemon=True))
        processes[-1].start()
        pipes.append(here)
    ports = [pipe.recv() for pipe in pipes[:SUMMING]]
    for pipe in pipes:
        pipe.send(ports)
    found = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join()
    return median(found[0][0]), sum(cpu for _, cpu in found)


def _peer(rank: int, peers: int, floats: int, rounds: int, barrier: object, pipe: Connection) -> None:
    listener = None
    if rank < SUMMING:
        listener = socket.create_server(("127.0.0.1", 0), backlog=peers)
        pipe.send(listener.getsockname()[1])
    ports = pipe.recv()
    mine = Params.from_arrays({"vector": np.full(floats, rank, np.float32)})
    outgoing = [socket.create_connection(("127.0.0.1", port)) for n, port in enumerate(ports) if n != rank]
    for connection in outgoing:
        connection.sendall(bytes([rank]))
    incoming = [listener.accept()[0] for _ in range(peers - 1)] if listener is not None else []
    waiting = [each for each in incoming if (other := each.recv(1)[0]) >= SUMMING and other % SUMMING == rank]
    received = [Params.from_arrays({"vector": np.zeros(floats, np.float32)}) for _ in incoming]
    mean = np.zeros(floats, np.float32).data.cast("B")
    times, cpu = [], 0.0
    for number in range(rounds + 1):
        barrier.wait()  # type: ignore[attr-defined]
        began, used = time.perf_counter(), _cpu()
        blake3(_bytes(mine)).digest()
        _at_once(
            *((_send, to, _bytes(mine)) for to in outgoing),
            *((_receive, come, _bytes(into)) for come, into in zip(incoming, received, strict=True)),
        )
        if rank < SUMMING:
            reducer = weighted_mean()
            total = reducer.zero(mine.layout, peers, 1)
            reducer.add(total, *(Update(each, 1) for each in (mine, *received)))
            made = _bytes(reducer.finish(total))
            blake3(made).digest()
            _at_once(*((_send, to, made) for to in waiting))
        else:
            _receive(outgoing[rank % SUMMING], mean)
        barrier.wait()  # type: ignore[attr-defined]
        if number:
            times.append(time.perf_counter() - began)
            cpu += _cpu() - used
    pipe.send((times, cpu / rounds))


def _bytes(params: Params) -> memoryview:
    return params.buffer.data.cast("B")


def _at_once(*works: tuple[Callable[[socket.socket, memoryview], None], socket.socket, memoryview]) -> None:
    threads = [threading.Thread(target=work, args=arguments) for work, *arguments in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _cpu() -> float:
    used = os.times()
    return used.user + used.system


def _send(connection: socket.socket, data: memoryview) -> None:
    connection.sendall(data)


def _receive(connection: socket.socket, into: memoryview) -> None:
    hasher = blake3()
    for at in range(0, len(into), PIECE):
        piece = into[at : at + PIECE]
        got = 0
        while got < len(piece):
            got += connection.recv_into(piece[got:])
        hasher.update(piece)
