"""Until when the market waits for a worker: leases that each sign of its work renews, kept in memory.

A worker gets a whole one from a coordinator that has just started: that it was not there counts against nobody.
"""

from collections.abc import Container

from tutti.domain.events import NodeId
from tutti.domain.market import jobs as j
from tutti.domain.market import sealing
from tutti.domain.market.jobs import Attempt, ComputeJob
from tutti.domain.market.sealing import Phase
from tutti.services.market.desk import MarketDesk


class Leases:
    """`present`: which workers are connected."""

    def __init__(self, desk: MarketDesk, present: Container[NodeId]) -> None:
        self._desk, self._present = desk, present
        self.started = desk.clock()
        self._left: dict[NodeId, float] = {}
        self._heard: dict[tuple[str, int], float] = {}
        self._asked: dict[tuple[str, int], float] = {}  # since when a result is waited for

    def came(self, node: NodeId) -> None:
        self._left.pop(node, None)

    def left(self, node: NodeId) -> None:
        self._left[node] = self._desk.clock()

    def touch(self, node: NodeId, job: str, attempt: int) -> None:
        """A sign of a worker's work, if it is that."""
        if (job, attempt) in self._desk.market.owes.get(node, ()):
            self._heard[job, attempt] = self._desk.clock()

    def begin(self, job: str, attempt: int) -> bool:
        """Whether this is news."""
        new = (job, attempt) not in self._heard
        if new:
            self._heard[job, attempt] = self._desk.clock()
        return new

    def ask(self, job: str, attempt: int) -> bool:
        """A result is waited for from now on; whether that is news."""
        new = (job, attempt) not in self._asked
        self._asked.setdefault((job, attempt), self._desk.clock())
        return new

    def forget(self, job: ComputeJob) -> None:
        for attempt in job.attempts:
            self._heard.pop((job.id, attempt.number), None)
            self._asked.pop((job.id, attempt.number), None)

    def closes(self, job: ComputeJob) -> float:
        """When its time is up."""
        return max(job.expires, self.started + self._desk.rules.lease)

    def time_of(self, job: ComputeJob) -> float:
        """Now, by a clock on which a job's time is up when it expires."""
        return self._desk.clock() - (self.closes(job) - job.expires)

    def expiry(self, job: ComputeJob, attempt: Attempt) -> tuple[float, str, bool]:
        """Until when to wait for an attempt, why not longer, and whether that is no fault of the worker.

        One that is sealed has nothing to do but wait.
        """
        rules, key = self._desk.rules, (job.id, attempt.number)
        phase, patience = sealing.phase(job, attempt, rules), job.patience(rules)
        if phase in (Phase.SEALED, Phase.SHOWN):
            return float("inf"), "", True
        asked = self._asked.get(key, self._desk.clock())
        began = asked if phase is Phase.ASKED else max(attempt.at, self.started)
        heard = max(began, self._heard.get(key, began))
        ends = [
            (heard + rules.lease, f"no sign of its work for {rules.lease:g} s", False),
            (began + patience, f"no result for {patience:g} s", False),
        ]
        if phase is Phase.WORKING:
            ends.append((self.closes(job), f"no result within {job.submitted.seconds:g} s", True))
        if attempt.worker not in self._present:
            left = max(began, self._left.get(attempt.worker, self.started))
            ends.append((left + rules.away, f"{j.AWAY}{rules.away:g} s", False))
        return min(ends)

    def due(self, job: ComputeJob) -> float:
        """When somebody has to look at a job again, whatever happens until then."""
        return min([j.due(job), *(self.expiry(job, attempt)[0] for attempt in job.live if not job.final)])
