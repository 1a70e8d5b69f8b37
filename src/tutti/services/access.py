"""What nodes may fetch and store: the models of their rounds, and the updates that they owe."""

from collections.abc import Mapping
from typing import Protocol

from tutti.domain.events import Digest, NodeId
from tutti.services.errands import Errands, Several
from tutti.services.journal import Journal

UPLOADS_PER_TASK = 256


class Sized(Protocol):
    """What runs a job."""

    @property
    def largest_update(self) -> int:
        """Bytes that an update may have."""
        ...


class Access:
    """Asked for each blob; `live` are the running jobs, by their identifiers."""

    def __init__(self, journal: Journal, live: Mapping[str, Sized]) -> None:
        self._journal = journal
        self._live = live
        self.errands: Errands = Several()
        self._uploads: dict[tuple[NodeId, str], tuple[tuple[int, int], int]] = {}  # of the newest task: how many

    def update_limit(self, node: NodeId) -> int:
        """The largest blob in bytes that a node may store now; 0 when no update of it is expected.

        Asking counts as one upload begun, of which a task has a few, so that nobody fills the disk.
        """
        for job_id, running in self._live.items():
            task = self._journal.jobs[job_id].task_of(node)
            if task is None or task.task != "train":
                continue
            owed, (before, begun) = (task.round, task.attempt), self._uploads.get((node, job_id), ((0, 0), 0))
            begun = begun + 1 if before == owed else 1
            self._uploads[node, job_id] = owed, begun
            if begun <= UPLOADS_PER_TASK:
                return max(running.largest_update, self.errands.update_limit(node))
        return self.errands.update_limit(node)

    def may_read(self, node: NodeId, digest: Digest) -> bool:
        """Whether a node may fetch a blob: the models of rounds that it takes part in and what
        leads to them, the table of its compute job."""
        for job_id in self._live:
            job = self._journal.jobs[job_id]
            task = job.round.task_of(node) if job.round and node in job.round.members else job.working.get(node)
            if task is not None and (task.fetched == digest or any(each.step == digest for each in job.steps)):
                return True
        return self.errands.may_read(node, digest)

    def over(self, job_id: str) -> None:
        """A job has ended: nothing of it need be remembered."""
        self._uploads = {key: count for key, count in self._uploads.items() if key[1] != job_id}
