"""What a relay does with updates that its own nodes upload: looks at them, keeps them, adds up those that count.

The owner of the log decides which count; it is told what the look came to, and given one sum instead of the updates.
Whatever a relay does not know, or need not be summed in parts, it passes on: the owner then looks itself.
"""

import asyncio
import logging
from collections import defaultdict
from contextlib import suppress

from tutti.core.errors import NotFound, StorageError, TuttiError
from tutti.core.reduce import Mean
from tutti.domain.events import Digest, NodeId, RoundOpened, UpdateAccepted
from tutti.domain.jobs import Job
from tutti.ports import BlobStore
from tutti.services.access import Access
from tutti.services.aggregation import Aggregation, Fold
from tutti.services.journal import Journal
from tutti.services.keeping import BlobKeeper
from tutti.wire.messages import Submission
from tutti.wire.relay import Sum
from tutti.wire.updates import Examined

log = logging.getLogger(__name__)


class _Summed:
    """A job whose updates may be summed in parts."""

    def __init__(self, job: Job, blobs: BlobStore) -> None:
        self.aggregation = Aggregation(job.spec, blobs)
        self.parameters = job.parameters

    @property
    def largest_update(self) -> int:
        return self.aggregation.largest_update(self.parameters)


class RelaySums:
    """For a relay whose `journal` follows the owner's log.

    Args:
        blobs: Puts, and forgets, what this replica alone keeps; reads models too.
        shared: What all replicas read.
    """

    def __init__(self, journal: Journal, blobs: BlobStore, shared: BlobStore) -> None:
        self.made = 0
        """How many sums the owner was given."""
        self._journal, self._blobs, self._shared = journal, blobs, shared
        self._jobs: dict[str, _Summed] = {}
        self._kept = defaultdict[str, tuple[tuple[int, int], set[Digest]]](lambda: ((0, 0), set()))
        self._heard, self._reading = 0, asyncio.Lock()
        self._left: set[str] = set()
        self._sent_on: dict[NodeId, tuple[str, int, int]] = {}
        self.access = Access(journal, self._jobs)

    def heard(self, offset: int) -> None:
        """The owner has written this much."""
        self._heard = max(self._heard, offset)

    def takes(self, node: NodeId) -> bool:
        """Whether an update that this node owes may be kept here."""
        self._look_at_jobs()
        tasks = ((job, self._journal.jobs[job].task_of(node)) for job in self._jobs if job not in self._left)
        elsewhere = self._sent_on.get(node)
        return any(
            task is not None and task.task == "train" and elsewhere != (job, task.round, task.attempt)
            for job, task in tasks
        )

    def leave(self, job: str, why: str) -> None:
        """Keep no more updates of this job, for it could not be summed here; what is here may still be."""
        if job not in self._left:
            self._left.add(job)
            log.warning("updates of job %s go to the owner from now on: %s", job, why)

    def send_on(self, node: NodeId, said: Submission) -> None:
        """The owner looks at this update; if its bytes are here, and it asks for them, they are to come to it."""
        if said.digest:
            self._sent_on[node] = said.job, said.round, said.attempt

    async def keeps(self, node: NodeId) -> bool:
        """The same, once this replica has read what it has heard of: its log may be a moment behind."""
        if not self.takes(node):
            await self._catch_up()
        return self.takes(node)

    async def examine(self, node: NodeId, said: Submission) -> Examined | None:
        """What came of a look at the update that is handed in; None for what the owner has to look at."""
        try:
            if not said.digest or not await self.keeps(node):
                return None
            if not self._is_open(said.job, said.round, said.attempt):  # it knows of the node's task in a round before
                await self._catch_up()
            opened = self._opened(said.job, said.round, said.attempt)
            summed, fold = await self._fold(said.job, opened)
            if isinstance(fold.accumulator, Mean):
                seen = await summed.aggregation.examine(fold, said.digest, said.weight, said.facts)
                await self._keep(said.job, fold.key, said.digest)
                return seen
        except TuttiError as error:
            log.info("the update of %s is left to the owner: %s", node, error)
            if isinstance(error, StorageError):
                self.leave(said.job, str(error))
        return None

    async def sum_of(self, wanted: Sum) -> Digest:
        """The blob of the sum of these updates, for all replicas to read; raises TuttiError."""
        opened = self._opened(wanted.job, wanted.round, wanted.attempt)
        summed, looked_at = await self._fold(wanted.job, opened)
        fold = summed.aggregation.beside(looked_at, len(opened.cohort))  # another sum may be on its way
        updates = [
            UpdateAccepted(at=opened.at, round=wanted.round, node=node, digest=digest, weight=weight)
            for node, digest, weight in wanted.updates
        ]
        await summed.aggregation.add(fold, updates)
        data = await summed.aggregation.packed(fold)
        digest = await self._shared.put(data)
        self.made += 1
        return digest

    async def tidy(self) -> None:
        """Forget what is left over, for ever; at first all, which was kept for an owner that does not know of it."""
        with suppress(TuttiError):  # what could not be found now is swept up later
            await self._blobs.delete(*await self._blobs.digests())
        await BlobKeeper(self._blobs, self._journal).sweep(_nothing)

    # -- within ----------------------------------------------------------------------------------------------

    async def _catch_up(self) -> None:
        """Read what has been heard of: whoever is told of a round is told by letters that come after its news."""
        async with self._reading:
            if self._journal.offset < self._heard:
                with suppress(TuttiError):
                    await self._journal.load()

    def _look_at_jobs(self) -> None:
        for job in self._journal.jobs.values():
            if job.final:
                self._jobs.pop(job.id, None)
                self._left.discard(job.id)
                self._kept.pop(job.id, None)  # the files are swept up
            elif job.id not in self._jobs and job.model and job.spec.rewards is None:  # scores read single updates
                summed = _Summed(job, self._blobs)
                if summed.aggregation.sums_in_parts:
                    self._jobs[job.id] = summed

    def _is_open(self, job_id: str, number: int, attempt: int) -> bool:
        job = self._journal.jobs.get(job_id)
        opened = job.round.opened if job is not None and job.round and job_id in self._jobs else None
        return opened is not None and (opened.round, opened.attempt, opened.task) == (number, attempt, "train")

    def _opened(self, job_id: str, number: int, attempt: int) -> RoundOpened:
        if not self._is_open(job_id, number, attempt):
            raise NotFound(f"round {number} of job {job_id!r} is not open here")
        round = self._journal.jobs[job_id].round
        assert round is not None
        return round.opened

    async def _fold(self, job_id: str, opened: RoundOpened) -> tuple[_Summed, Fold]:
        summed, job = self._jobs[job_id], self._journal.jobs[job_id]
        await summed.aggregation.restore(job.model, job.model, 0)  # its layout is all that is needed, in any round
        return summed, summed.aggregation.begin((opened.round, opened.attempt), len(opened.cohort))

    async def _keep(self, job_id: str, key: tuple[int, int], digest: Digest) -> None:
        """Note that an update is here; those of rounds before are not needed any more."""
        before, digests = self._kept[job_id]
        if before != key:
            self._kept[job_id] = key, {digest}
            await self._blobs.delete(*digests - {digest})
        else:
            digests.add(digest)


async def _nothing() -> None:
    pass
