"""Which nodes a job may ask now, and whose turn it is. Between jobs: first come, first served."""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

from tutti.domain import commands, jobs
from tutti.domain.events import NodeId
from tutti.domain.jobs import Job
from tutti.domain.nodes import DataSummary, why_not
from tutti.services.journal import Journal
from tutti.services.presence import Presence

Busy: TypeAlias = Mapping[NodeId, tuple[str, int]]
"""Of each node that owes an update, for which job and round."""


class Waiting(Protocol):
    """What runs a job."""

    def poke(self) -> None:
        """Look again: perhaps there are nodes now."""
        ...


class Scheduler:
    """Compares the jobs that are running: `live`, by their identifiers."""

    def __init__(self, journal: Journal, presence: Presence, live: Mapping[str, Waiting]) -> None:
        self._journal = journal
        self._presence = presence
        self._live = live

    def holders(self, dataset: str) -> dict[NodeId, DataSummary]:
        """What the connected nodes that hold this data set say of it, by name."""
        return {
            node: seen.registration.data
            for node, seen in sorted(self._presence.connected().items())
            if seen.registration is not None and seen.registration.data.name == dataset
        }

    def task_of(self, node: NodeId) -> tuple[str, int] | None:
        """The job and round for which a node owes an update, if any."""
        for job_id in self._live:
            if (task := self._journal.jobs[job_id].task_of(node)) is not None:
                return job_id, task.round
        return None

    def busy(self) -> Busy:
        """The same of all nodes at once."""
        found: dict[NodeId, tuple[str, int]] = {}
        for job_id in self._live:
            for node, task in self._journal.jobs[job_id].tasks().items():
                found.setdefault(node, (job_id, task.round))
        return found

    def wants_nodes(self, job: Job) -> bool:
        """Whether the job waits for nothing but nodes."""
        return isinstance(jobs.react(job, now=self._journal.clock()), commands.GatherCohort)

    def candidates(self, job: Job) -> tuple[list[NodeId], dict[NodeId, str]]:
        """The nodes that could take part now, and of each of the others why it could not."""
        left_out: dict[NodeId, str] = {}
        free, busy = [], self.busy()
        for node in self._journal.register.nodes:
            reason = self._unavailable(node, job, busy)
            if reason is None:
                free.append(node)
            else:
                left_out[node] = reason
        return free, left_out

    def can_open(self, job: Job, candidates: Sequence[NodeId]) -> bool:
        """Whether these nodes are enough for the next round."""
        return len(candidates) >= _needed(job)

    def returning(self, job: Job) -> dict[NodeId, float]:
        """Nodes of the last cohort that may be back in a moment, and when the job stops waiting for them.

        A node or a coordinator that is killed and restarted between two rounds then changes no cohort.
        """
        if not job.past:
            return {}
        presence, rules, now = self._presence, job.spec.cohort, self._journal.clock()
        last = [node for node in job.past[-1].round.opened.cohort if node in self._journal.register.nodes]
        back = {node: presence.back_by(node, rules.grace) for node in last}
        return {node: at for node, at in back.items() if at is not None and at > now}

    def someone_waits_longer(self, job: Job) -> bool:
        """Whether another job that could open a round now has waited longer for it; it is told to look."""
        before = [
            other
            for other in map(self._journal.jobs.__getitem__, self._live)
            if other.id != job.id and other.waiting_since < job.waiting_since and self.wants_nodes(other)
        ]
        if not before:
            return False
        busy = self.busy()
        for other in before:
            if self._are_enough(other, busy):
                self._live[other.id].poke()
                return True
        return False

    def poke_waiting(self, but: str = "") -> None:
        """Nodes have become free: whoever waits for nodes looks again."""
        for job_id, waiting in self._live.items():
            if job_id != but and self.wants_nodes(self._journal.jobs[job_id]):
                waiting.poke()

    def _are_enough(self, job: Job, busy: Busy) -> bool:
        """As `can_open` of the candidates, without looking at more nodes than it takes."""
        needed = _needed(job)
        if needed <= 0:
            return True
        for node in self._presence.holding(job.spec.dataset):
            if node in self._journal.register.nodes and self._unavailable(node, job, busy) is None:
                needed -= 1
                if needed == 0:
                    return True
        return False

    def _unavailable(self, node: NodeId, job: Job, busy: Busy) -> str | None:
        seen = self._presence.get(node)
        if seen is None or not seen.connected or seen.registration is None:
            return "not connected"
        if node in self._journal.register.drained:
            return "drained: it is given no more work"
        registration = seen.registration
        rules = job.spec.cohort
        expected = rules.size or rules.min_nodes
        reason = why_not(job.spec, job.data, registration.data, registration.terms, expected)
        if reason is None and node in busy:
            return "busy with job {} round {}".format(*busy[node])
        return reason


def _needed(job: Job) -> int:
    """Candidates that the next round takes, beside the nodes that still work for the job."""
    return (job.spec.cohort.min_nodes if jobs.next_task(job) == "train" else 1) - len(job.working)
