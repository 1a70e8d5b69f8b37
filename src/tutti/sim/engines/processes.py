"""One worker process for each core, each with one thread: bitwise what one thread computes in sequence.

Rows, model and updates lie in files of a memory file system that all processes map; only orders and metrics
travel. A worker that dies is replaced, and its nodes are computed again. On a machine with GPUs, workers share them
out in turn.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path

import msgspec
import numpy as np

from tutti.adapters._imports import listed
from tutti.core.params import Params, Vector
from tutti.domain.events import NodeId
from tutti.domain.spec import JobSpec, Positive
from tutti.ports.training import Trainer
from tutti.sim.engines._resident import Done, Trouble, order_for
from tutti.sim.engines._worker import Setup, slot_file
from tutti.sim.engines.port import Assignment, CannotCompute, Engine, Failed, Result, Trained, engines, longest_first
from tutti.sim.federation import Federation
from tutti.wire import tensors

SLOTS = 2
"""Orders that a worker has at once: it works on one while the update of the other is folded in."""

TRIES = 3
"""How many workers may die over one node before it counts as failed."""

MODELS_BYTES = 256 * 2**20
"""Room that must be left for the model and its updates."""

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_replies: msgspec.msgpack.Decoder[Done | Trouble] = msgspec.msgpack.Decoder(Done | Trouble)


@engines.register("processes")
def processes(workers: Positive | None = None, *, spec: JobSpec, trainer: Trainer, federation: Federation) -> Engine:
    """One worker process a core, with one thread each; on a machine with GPUs, one a GPU."""
    return Processes(spec, federation, workers)


@dataclass(slots=True, eq=False)
class _Worker:
    process: "subprocess.Popen[bytes]"
    connection: Connection
    free: list[int]
    owed: dict[int, Assignment] = field(default_factory=dict)


class Processes:
    name = "processes"

    def __init__(self, spec: JobSpec, federation: Federation, workers: int | None = None) -> None:
        if sys.platform == "win32":
            raise CannotCompute("worker processes need a system with inherited file descriptors")
        self._federation = federation
        self._spec = spec
        self._gpus = _gpus()
        rows, count = federation.rows, workers or self._gpus or len(os.sched_getaffinity(0))
        self._holder = tempfile.TemporaryDirectory(
            prefix="tutti-sim-", dir=_memory_folder(rows.x.nbytes + rows.y.nbytes)
        )
        self._folder = Path(self._holder.name)
        np.save(self._folder / "x.npy", rows.x)
        np.save(self._folder / "y.npy", rows.y)
        self._slots: dict[int, Vector] = {}
        self._listed = listed()
        self._workers = [self._start(list(range(SLOTS * i, SLOTS * (i + 1)))) for i in range(count)]

    @property
    def pids(self) -> list[int]:
        return [worker.process.pid for worker in self._workers]

    def train(self, params: Params, assignments: Sequence[Assignment]) -> Iterator[Result]:
        self._publish(params)
        waiting, deaths = deque(longest_first(assignments, self._federation)), dict[NodeId, int]()
        try:
            while True:
                self._hand_out(waiting)
                if not (busy := [worker.connection for worker in self._workers if worker.owed]):
                    return
                for connection in wait(busy):
                    worker = next(worker for worker in self._workers if worker.connection is connection)
                    try:
                        reply = _replies.decode(worker.connection.recv_bytes())
                    except (EOFError, OSError):
                        yield from self._replace(worker, waiting, deaths)
                        continue
                    yield self._result(params, worker.owed[reply.slot], reply)
                    del worker.owed[reply.slot]
                    worker.free.append(reply.slot)
        finally:
            if any(worker.owed for worker in self._workers):  # nobody waits for them any more
                self._workers = [self._restart(worker) for worker in self._workers]

    def close(self) -> None:
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            try:
                worker.process.wait(5)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        self._slots.clear()
        self._holder.cleanup()

    def _start(self, slots: list[int]) -> _Worker:
        ours, theirs = Pipe()
        environment = {
            **os.environ,
            **dict.fromkeys(_THREADS, "1"),
            **gpu_for(slots[0] // SLOTS, self._gpus, os.environ.get("CUDA_VISIBLE_DEVICES")),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        process = subprocess.Popen(  # noqa: S603  # this very interpreter, and a module of ours
            [sys.executable, "-m", "tutti.sim.engines._worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment,
        )
        theirs.close()
        setup = Setup(self._spec.model, self._federation.schema, str(self._folder), self._listed)
        ours.send_bytes(msgspec.msgpack.encode(setup))
        return _Worker(process, ours, slots)

    def _restart(self, worker: _Worker) -> _Worker:
        worker.connection.close()
        worker.process.kill()
        worker.process.wait()
        return self._start(sorted([*worker.free, *worker.owed]))

    def _publish(self, params: Params) -> None:
        """Let the workers see the model, and make the slots for its updates when it is the first."""
        partial = self._folder / "params.partial"
        partial.write_bytes(tensors.encode(params))
        partial.replace(self._folder / "params.safetensors")
        for slot in range(SLOTS * len(self._workers)):
            if slot not in self._slots:
                file = slot_file(self._folder, slot)
                self._slots[slot] = np.memmap(file, np.float32, mode="w+", shape=params.buffer.shape)

    def _hand_out(self, waiting: "deque[Assignment]") -> None:
        while waiting and (ready := [worker for worker in self._workers if worker.free]):
            worker = min(ready, key=lambda worker: len(worker.owed))
            slot, assignment = worker.free.pop(), waiting.popleft()
            worker.owed[slot] = assignment
            order = order_for(assignment.task, self._federation.train[assignment.node], slot)
            try:
                worker.connection.send_bytes(msgspec.msgpack.encode(order))
            except OSError:
                return  # it died; reading from it says so

    def _result(self, params: Params, assignment: Assignment, reply: Done | Trouble) -> Result:
        if isinstance(reply, Trouble):
            return Failed(assignment.node, reply.reason)
        delta = Params(params.layout, self._slots[reply.slot])
        return Trained(assignment.node, delta, reply.examples, reply.metrics, reply.seconds, reply.steps)

    def _replace(self, worker: _Worker, waiting: "deque[Assignment]", deaths: dict[NodeId, int]) -> Iterator[Result]:
        """Start another worker; what the dead one owed is computed again, unless it has cost too many already."""
        code = worker.process.wait()
        for assignment in worker.owed.values():
            deaths[assignment.node] = deaths.get(assignment.node, 0) + 1
            if deaths[assignment.node] < TRIES:
                waiting.appendleft(assignment)
            else:
                yield Failed(
                    assignment.node, f"{TRIES} worker processes died over it, exit code {code}: out of memory?"
                )
        self._workers[self._workers.index(worker)] = self._restart(worker)


def _memory_folder(needed: int) -> str | None:
    """Where files live in memory, if this system has such a place with room for twice what is needed."""
    folder = Path("/dev/shm")  # noqa: S108  # a private folder is made in it
    if not os.access(folder, os.W_OK) or shutil.disk_usage(folder).free < 2 * needed + MODELS_BYTES:
        return None
    return str(folder)


def _gpus() -> int:
    """How many GPUs torch computes on; 0 where torch is not there."""
    try:
        import torch
    except ModuleNotFoundError:
        return 0
    return torch.cuda.device_count()


def gpu_for(worker: int, gpus: int, visible: str | None) -> dict[str, str]:
    """The environment in which a worker sees its own GPU only, of those that this process may see."""
    if not gpus:
        return {}
    names = visible.split(",") if visible else [str(number) for number in range(gpus)]
    return {"CUDA_VISIBLE_DEVICES": names[worker % len(names)]}
