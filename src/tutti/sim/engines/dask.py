"""Nodes as tasks of a Dask cluster: one on this machine, or one that is there already.

Rows and trainer stay in each worker, also in one that joins or comes back later; the model is sent once a round, and
updates are folded in as they come. A worker that dies costs the computing again of what it was about. Dask itself
exchanges pickles: whoever may connect to its cluster may run code there.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tutti.adapters._imports import extra, listed
from tutti.core.errors import UserError
from tutti.core.params import Params
from tutti.core.registry import Choice
from tutti.domain.events import NodeId
from tutti.domain.spec import DataSchema, JobSpec, Positive
from tutti.ports.training import Examples, Trainer
from tutti.sim.engines._resident import Done, Order, Resident, Trouble, order_for
from tutti.sim.engines.port import Assignment, Engine, Failed, Result, Trained, engines, longest_first
from tutti.sim.federation import Federation
from tutti.wire import tensors

if TYPE_CHECKING:
    from distributed import Client

AHEAD = 2
"""Tasks at once for each thread of a worker: it works on one while the update of the other is folded in."""

TRIES = 3
"""How often a node is computed again after its worker, or the model that was sent to it, was lost."""

JOIN_SECONDS = 30.0
RESIDENT = "tutti-resident"

_replies: msgspec.msgpack.Decoder[Done | Trouble] = msgspec.msgpack.Decoder(Done | Trouble)


@engines.register("dask")
def dask(
    address: str = "",
    workers: Positive | None = None,
    *,
    spec: JobSpec,
    trainer: Trainer,
    federation: Federation,
) -> Engine:
    """Nodes as tasks of a Dask cluster: the one at `address`, or one of so many worker processes on this machine."""
    with extra("dask", "engine 'dask'"):
        from distributed import Client, LocalCluster
    local = None if address else LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
    try:
        client = Client(local or address, timeout=JOIN_SECONDS)
        client.wait_for_workers(1, timeout=JOIN_SECONDS)
    except (OSError, TimeoutError, ValueError) as error:
        raise UserError(f"engine 'dask': no cluster with a worker answers at {address!r}: {error}") from None
    return Dask(spec, federation, client, local)


@dataclass(frozen=True, eq=False)
class _Plugin:
    """What every worker is given when it starts: rows and model, kept as an attribute of the worker."""

    model: Choice
    schema: DataSchema
    rows: Examples
    listed: tuple[str, ...]
    name: str = RESIDENT

    def setup(self, worker: Any) -> None:
        setattr(worker, RESIDENT, Resident(self.model, self.schema, self.rows, self.listed))

    def teardown(self, worker: Any) -> None:
        delattr(worker, RESIDENT)


def _train(order: bytes, model: bytes) -> tuple[bytes, bytes]:
    """Runs in a worker: the reply, and the update."""
    from distributed import get_worker

    params = tensors.decode(model)
    delta = np.empty_like(params.buffer)
    resident: Resident = getattr(get_worker(), RESIDENT)
    reply = resident.carry_out(msgspec.msgpack.decode(order, type=Order), params, delta)
    return msgspec.msgpack.encode(reply), delta.tobytes()


class Dask:
    name = "dask"

    def __init__(self, spec: JobSpec, federation: Federation, client: "Client", local: Any) -> None:
        from distributed import WorkerPlugin

        self._client, self._local, self._federation = client, local, federation
        plugin = type("Plugin", (_Plugin, WorkerPlugin), {})(spec.model, federation.schema, federation.rows, listed())
        client.register_plugin(plugin)

    def train(self, params: Params, assignments: Sequence[Assignment]) -> Iterator[Result]:
        from distributed import KilledWorker, as_completed

        encoded = tensors.encode(params)
        waiting = deque(longest_first(assignments, self._federation))
        lost, running = dict[NodeId, int](), dict[Any, Assignment]()
        stream = as_completed()
        model = self._send(encoded)
        try:
            while waiting or running:
                while waiting and len(running) < AHEAD * self._threads():
                    assignment = waiting.popleft()
                    order = order_for(assignment.task, self._federation.train[assignment.node])
                    future = self._client.submit(_train, msgspec.msgpack.encode(order), model, pure=False)
                    running[future] = assignment
                    stream.add(future)
                future = next(stream)
                assignment = running.pop(future)
                try:
                    reply, delta = future.result()
                except (CancelledError, KilledWorker) as error:  # with its worker, or with its result before it came
                    lost[assignment.node] = lost.get(assignment.node, 0) + 1
                    if lost[assignment.node] == TRIES:
                        yield Failed(assignment.node, f"{TRIES} workers were lost over it, last: {error}")
                        continue
                else:
                    yield self._result(params, assignment, reply, delta)
                    continue
                model = self._send(encoded)  # the only worker that held it may have died
                waiting.appendleft(assignment)
        finally:
            self._client.cancel(list(running))

    def close(self) -> None:
        with suppress(TimeoutError):
            if self._local is None:
                self._client.unregister_worker_plugin(RESIDENT)
            self._client.close()
            if self._local is not None:
                self._local.close()

    def _threads(self) -> int:
        """Of all workers that are there now; a while without any is no reason to hand out nothing."""
        return max(1, sum(int(worker["nthreads"]) for worker in self._client.scheduler_info()["workers"].values()))

    def _send(self, encoded: memoryview) -> Any:
        return self._client.scatter([bytes(encoded)], broadcast=True, hash=False)[0]

    def _result(self, params: Params, assignment: Assignment, reply: bytes, delta: bytes) -> Result:
        found = _replies.decode(reply)
        if isinstance(found, Trouble):
            return Failed(assignment.node, found.reason)
        change = Params(params.layout, np.frombuffer(delta, np.float32))
        return Trained(assignment.node, change, found.examples, found.metrics, found.seconds, found.steps)
