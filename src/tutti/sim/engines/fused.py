"""Dense relu networks by one compiled loop (dense.h): a node a call, a thread for each core.

Equal to the sequential engine but for rounding, since sums are taken in another order: about 1e-6 a parameter after
a hundred steps, more where rounding decides on which side of zero the input of a relu lies. Bitwise the same on any
number of threads, and on all processors with vectors of the same width.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from queue import SimpleQueue
from time import perf_counter
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from tutti.adapters.trainers.batches import batches
from tutti.core.params import Params, Vector
from tutti.domain.spec import JobSpec, Metrics, Positive
from tutti.ports.training import Task, Trainer
from tutti.services.work import reason_of
from tutti.sim.engines._dense import dense_of
from tutti.sim.engines.port import Assignment, CannotCompute, Engine, Failed, Result, Trained, engines, longest_first
from tutti.sim.federation import Federation


@engines.register("fused")
def fused(threads: Positive | None = None, *, spec: JobSpec, trainer: Trainer, federation: Federation) -> Engine:
    """Dense relu networks and SGD by one compiled loop, a node a thread."""
    return Fused(spec, trainer, federation, threads)


class Fused:
    """Two buffers more than threads are in use: finished updates wait in them while the others go on."""

    name = "fused"

    def __init__(self, spec: JobSpec, trainer: Trainer, federation: Federation, threads: int | None = None) -> None:
        self._kernel = _kernel()
        dense = dense_of(trainer)
        if dense.activation != "relu":
            raise CannotCompute(f"the compiled loop knows relu, the model has {dense.activation}")
        if spec.training.optimizer != "sgd":
            raise CannotCompute(f"the compiled loop knows SGD, the job uses {spec.training.optimizer}")
        if spec.training.mixed_precision:
            raise CannotCompute("the compiled loop computes in float32, the job wants mixed precision")
        if len(dense.widths) > 17:
            raise CannotCompute("the compiled loop takes up to 16 layers")
        self._widths = np.array(dense.widths, np.int64)
        self._federation = federation
        self._classes = federation.schema.task == "classification"
        self._x = np.ascontiguousarray(federation.rows.x)
        self._y = np.ascontiguousarray(federation.rows.y)
        self._threads = threads or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="tutti-fused")
        self._spaces: SimpleQueue[NDArray[np.uint8]] = SimpleQueue()
        for _ in range(self._threads):
            self._spaces.put(np.zeros(0, np.uint8))
        self._free: list[Vector] = []

    def train(self, params: Params, assignments: Sequence[Assignment]) -> Iterator[Result]:
        waiting = iter(longest_first(assignments, self._federation))
        running: dict[Future[Trained | Failed], Vector] = {}
        try:
            while True:
                while len(running) < self._threads + 2 and (assignment := next(waiting, None)) is not None:
                    buffer = self._free.pop() if self._free else np.zeros(params.layout.size, np.float32)
                    running[self._pool.submit(self._one, params, assignment, buffer)] = buffer
                if not running:
                    return
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    buffer = running.pop(done)
                    yield done.result()
                    self._free.append(buffer)
        finally:
            wait(running)

    def close(self) -> None:
        self._pool.shutdown()

    def _one(self, params: Params, assignment: Assignment, delta: Vector) -> Result:
        began, task, mine = perf_counter(), assignment.task, self._federation.train[assignment.node]
        space = self._spaces.get()
        try:
            space, metrics, steps = self._run(params, task, mine, delta, space)
        except Exception as error:
            return Failed(assignment.node, reason_of(error))
        finally:
            self._spaces.put(space)
        change = Params(params.layout, delta)
        return Trained(assignment.node, change, len(mine), metrics, perf_counter() - began, steps)

    def _run(
        self, params: Params, task: Task, mine: NDArray[np.int64], delta: Vector, space: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], Metrics, int]:
        work = batches(len(mine), task)
        sizes = np.fromiter((len(rows) for _, rows in work), np.int64, len(work))
        order = mine[np.concatenate([rows for _, rows in work])]
        tallied = next(i for i, (epoch, _) in enumerate(work) if epoch == work[-1][0])
        training, mu = task.training, task.correction.pull
        needed = self._kernel.room(self._widths, int(sizes.max()), training.momentum, mu)
        if len(space) < needed:
            space = np.zeros(needed, np.uint8)
        loss, hits = self._kernel.train(
            self._widths,
            params.buffer,
            self._x,
            self._y,
            order,
            sizes,
            space,
            delta,
            tallied,
            task.lr,
            training.momentum,
            training.weight_decay,
            mu,
        )
        counted = int(sizes[tallied:].sum())
        metrics = {"loss": loss / counted}
        if self._classes:
            metrics["accuracy"] = hits / counted
        return space, metrics, len(work)


def _kernel() -> ModuleType:
    try:
        from tutti.sim.engines import _fused
    except ImportError:
        raise CannotCompute("the compiled loop was not built: install Tutti where there is a C compiler") from None
    return _fused
