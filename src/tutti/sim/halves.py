"""The nodes' halves of a strategy around an engine, for a whole cohort: what services.work does on one node."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from tutti.core.codec import compressed, without_residual
from tutti.core.local import Demand, Handed, Memory, Plan, Request, Trained
from tutti.core.registry import Choice
from tutti.core.strategy import ServerState, Strategy
from tutti.domain.events import NodeId
from tutti.ports.training import Task, Trainer
from tutti.services.work import Diverged, handed_in, reason_of
from tutti.sim.engines import port
from tutti.sim.engines.port import Assignment, Engine, Failed
from tutti.sim.federation import Federation


@dataclass(frozen=True, slots=True)
class Order:
    """What one node is told, and what it kept of the round in which it counted last."""

    task: Task
    settings: Mapping[str, float]
    memory: Memory


class NodeHalves:
    def __init__(
        self, strategy: Strategy, codec: Choice, engine: Engine, trainer: Trainer, federation: Federation
    ) -> None:
        self._strategy, self._local, self._codec = strategy, strategy.local, codec
        self._engine, self._trainer, self._federation = engine, trainer, federation

    def work(
        self, orders: Mapping[NodeId, Order], server: ServerState
    ) -> Iterator[tuple[port.Trained | Failed, Handed | None]]:
        """What became of each node, in any order: what the engine says of its first plan, and what it hands in.

        As with engines, what is handed in may be overwritten once the next is asked for.
        """
        requests: dict[NodeId, Request] = {}
        for node, order in orders.items():
            try:
                requests[node] = self._request(node, order, server)
            except Exception as error:
                yield Failed(node, reason_of(error)), None
        if self._local.demand is Demand.ANY:
            for node, request in requests.items():
                yield self._handed(request, self._one_by_one(node, orders[node], request), orders[node].memory)
            return
        assignments = [_assignment(node, orders[node], self._local.plan(requests[node])[0]) for node in requests]
        for result in self._engine.train(server.params, assignments):
            yield self._handed(requests[result.node], [result], orders[result.node].memory)

    def _request(self, node: NodeId, order: Order, server: ServerState) -> Request:
        loss, task = 0.0, order.task
        if self._local.loss_first:
            loss = self._trainer.evaluate(server.params, self._federation.examples(node))["loss"]
        slots = server.slots if self._strategy.shares_slots else {}
        return Request(
            server.params, slots, order.settings, without_residual(order.memory), task.lr, task.training.momentum, loss
        )

    def _one_by_one(self, node: NodeId, order: Order, request: Request) -> list[port.Result]:
        return [
            result
            for plan in self._local.plan(request)
            for result in self._engine.train(plan.start, [_assignment(node, order, plan)])
        ]

    def _handed(self, request: Request, results: list[port.Result], kept: Memory) -> tuple[port.Result, Handed | None]:
        trained = []
        for result in results:
            if isinstance(result, Failed):
                return result, None
            trained.append(Trained(result.delta, result.steps))
        try:
            return results[0], compressed(self._codec, handed_in(self._local, request, trained), kept)
        except Diverged as diverged:
            return Failed(results[0].node, str(diverged)), None


def _assignment(node: NodeId, order: Order, plan: Plan) -> Assignment:
    return Assignment(node, replace(order.task, correction=plan.correction))
