"""Nodes as tasks of a Ray cluster: one on this machine, or one that is there already.

Each CPU has an actor, which keeps one network; rows and model lie in Ray's object store, which all actors of a machine
map. Updates are folded in as they come; Ray starts an actor anew that died, and does again what it was about. A
cluster that is started here listens on all addresses of this machine, and whoever connects to it may run code there.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from tutti.adapters._imports import extra, listed
from tutti.core.errors import UserError
from tutti.core.params import Params, Vector
from tutti.core.registry import Choice
from tutti.domain.spec import DataSchema, JobSpec, Positive
from tutti.ports.training import Examples, Trainer
from tutti.sim.engines._resident import Done, Order, Resident, Trouble, order_for
from tutti.sim.engines.port import Assignment, Engine, Failed, Result, Trained, engines, longest_first
from tutti.sim.federation import Federation
from tutti.wire import tensors

AHEAD = 2
"""Orders that an actor has at once: it works on one while the update of the other is folded in."""

TRIES = 3
"""How many actors may die over one node before it counts as failed."""

Labels: TypeAlias = NDArray[np.int64] | NDArray[np.float32]

_replies: msgspec.msgpack.Decoder[Done | Trouble] = msgspec.msgpack.Decoder(Done | Trouble)


@engines.register("ray")
def ray(
    address: str = "",
    workers: Positive | None = None,
    *,
    spec: JobSpec,
    trainer: Trainer,
    federation: Federation,
) -> Engine:
    """Nodes as tasks of a Ray cluster: the one at `address`, or one of so many CPUs on this machine."""
    with extra("ray", "engine 'ray'"):
        import ray
    ours = not ray.is_initialized()
    if ours:
        where = {"address": address} if address else {"num_cpus": workers, "include_dashboard": False}
        try:
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError) as error:
            raise UserError(f"engine 'ray': no cluster answers at {address!r}: {error}") from None
    return Ray(spec, federation, workers or max(1, int(ray.cluster_resources().get("CPU", 1))), ours)


class _Actor:
    """A Resident of its own process."""

    def __init__(
        self, model: Choice, schema: DataSchema, x: NDArray[np.float32], y: Labels, listed: tuple[str, ...]
    ) -> None:
        self._resident = Resident(model, schema, Examples(x, y), listed)

    def train(self, order: bytes, model: bytes) -> tuple[bytes, Vector]:
        params = tensors.decode(model)
        delta = np.empty_like(params.buffer)
        reply = self._resident.carry_out(msgspec.msgpack.decode(order, type=Order), params, delta)
        return msgspec.msgpack.encode(reply), delta


class Ray:
    name = "ray"

    def __init__(self, spec: JobSpec, federation: Federation, workers: int, ours: bool) -> None:
        """`ours`: the connection to the cluster was made for this engine, and ends with it."""
        import ray

        self._ray, self._ours, self._federation = ray, ours, federation
        kind = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=TRIES - 1)(_Actor)
        x, y = ray.put(federation.rows.x), ray.put(federation.rows.y)
        given = (spec.model, federation.schema, x, y, listed())
        self._actors: list[Any] = [kind.remote(*given) for _ in range(workers)]

    def train(self, params: Params, assignments: Sequence[Assignment]) -> Iterator[Result]:
        waiting = deque(longest_first(assignments, self._federation))
        model = self._ray.put(bytes(tensors.encode(params)))
        running: dict[Any, tuple[Assignment, Any]] = {}
        free = [actor for _ in range(AHEAD) for actor in self._actors]
        try:
            while waiting or running:
                while waiting and free:
                    assignment, actor = waiting.popleft(), free.pop(0)
                    order = order_for(assignment.task, self._federation.train[assignment.node])
                    running[actor.train.remote(msgspec.msgpack.encode(order), model)] = (assignment, actor)
                for done in self._ray.wait(list(running), num_returns=1)[0]:
                    assignment, actor = running.pop(done)
                    free.append(actor)
                    yield self._result(params, assignment, done)
        finally:
            if running:  # nobody waits for them any more, but they must not delay what comes next
                self._ray.wait(list(running), num_returns=len(running))

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        if self._ours:
            self._ray.shutdown()

    def _result(self, params: Params, assignment: Assignment, done: Any) -> Result:
        try:
            reply, delta = self._ray.get(done)
        except self._ray.exceptions.RayActorError as error:
            return Failed(assignment.node, f"{TRIES} workers died over it, out of memory? {error}".splitlines()[0])
        found = _replies.decode(reply)
        if isinstance(found, Trouble):
            return Failed(assignment.node, found.reason)
        change = Params(params.layout, delta)
        return Trained(assignment.node, change, found.examples, found.metrics, found.seconds, found.steps)
