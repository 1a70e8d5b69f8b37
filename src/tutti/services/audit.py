"""Audits by re-execution: updates of browsers are drawn at random, and computed again from the same rows.

A browser trains with arithmetic that gives the same bits everywhere (adapters/browser), with WebAssembly or without.
Where anybody can have the rows, as those that the coordinator assigned itself, an honest update therefore comes out
again to the last bit. One that does not was made up: it is refused, its node gets no more work until an operator says
so, and its reputation on the compute market is that of a cheat.
"""

import logging
from collections.abc import Awaitable, Callable
from random import SystemRandom

from tutti.core.errors import UserError
from tutti.core.local import Correction
from tutti.core.registry import Choice
from tutti.core.sampling import node_seed
from tutti.core.schedules import schedules
from tutti.domain import events as e
from tutti.domain.events import NodeId
from tutti.domain.jobs import Job
from tutti.domain.nodes import DataSummary
from tutti.domain.spec import DataSchema
from tutti.ports import Workbench
from tutti.ports.training import Task
from tutti.services.keeping import BlobKeeper
from tutti.services.presence import Presence
from tutti.wire.messages import Submission

log = logging.getLogger(__name__)

BROWSER = "browser"
"""What a node that trains with the kernel says among its `trainers`."""

LARGEST_BATCH = 1 << 16


class Auditor:
    """`share` of the updates that can be audited are; `draw` gives numbers from 0 to 1 that no node can foresee."""

    def __init__(
        self,
        workbench: Workbench,
        keeper: BlobKeeper,
        presence: Presence,
        known_schema: Callable[[Choice], DataSchema | None],
        quarantine: Callable[[NodeId, str], Awaitable[None]],
        share: float,
        draw: Callable[[], float] | None = None,
    ) -> None:
        self._workbench, self._keeper, self._presence = workbench, keeper, presence
        self._known_schema, self._quarantine = known_schema, quarantine
        self._share, self._draw = share, draw or SystemRandom().random

    async def fault(self, job: Job, opened: e.RoundOpened, node: NodeId, said: Submission) -> str | None:
        """Why a stored update is not what its node should have computed; None if it is, or was not audited."""
        data = self._public_data(node)
        if data is None or self._draw() >= self._share:
            return None
        training = job.spec.training
        if training.optimizer != "sgd":
            return await self._forged(node, f"browsers train with SGD, this job wants {training.optimizer}")
        batch = training.batch_size or int(said.metrics.get("batch_size", 0))
        if not 1 <= batch <= LARGEST_BATCH:
            return await self._forged(
                node, f"expected its batch_size in the metrics, 1 to {LARGEST_BATCH}, came {batch}"
            )
        if said.weight != data.examples:
            return await self._forged(node, f"expected a weight of {data.examples}, its rows, came {said.weight}")
        lr = training.lr * schedules.build(training.lr_schedule)(opened.round, job.spec.rounds)
        pull = Correction(pull=opened.settings.get("mu", 0.0))
        task = Task(training, node_seed(job.spec.seed, opened.round, node), batch, lr, pull)
        async with self._keeper.store.file(opened.fetched) as weights, self._keeper.store.file(said.digest) as update:
            fault = await self._workbench.audit(job.spec.model, job.data, data, task, weights, update)
        return None if fault is None else await self._forged(node, fault)

    def _public_data(self, node: NodeId) -> DataSummary | None:
        """What a browser says of its rows, if anybody can have the same."""
        seen = self._presence.get(node)
        its = seen.registration if seen else None
        if its is None or BROWSER not in its.capabilities.trainers or not its.data.source:
            return None
        try:
            known = self._known_schema(Choice.parse(its.data.source))
        except UserError:
            known = None
        return None if known is None else its.data

    async def _forged(self, node: NodeId, fault: str) -> str:
        log.warning("%s is given no more work: an audit of its update found: %s", node, fault)
        await self._quarantine(node, fault)
        return f"audited: {fault}"
