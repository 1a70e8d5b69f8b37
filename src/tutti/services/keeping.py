"""Which blobs are kept, and how those that nobody refers to any more go."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from tutti.core.errors import TuttiError
from tutti.domain.events import Digest
from tutti.domain.jobs import Job
from tutti.ports import BlobStore
from tutti.services.journal import Journal

log = logging.getLogger(__name__)

SWEEP_SECONDS, LATE_SECONDS = 60.0, 2.0
BYTES_PER_PARAMETER = 4
DAY = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """What stays in the store.

    Attributes:
        models: How many of a job's newest models, beside the first and the best.
        days: After how many days of a job that is over only its final and its best model do; None: never.
    """

    models: int = 20
    days: float | None = None

    def is_old(self, job: Job, now: float) -> bool:
        """Whether a job has been over for so long."""
        over = job.past[-1].closed_at if job.past else job.submitted_at
        return job.final and self.days is not None and now - over > self.days * DAY


def kept_blobs(job: Job, keep: Keep = Keep(), *, old: bool = False) -> set[Digest]:
    """Blobs that a job still needs: recent models, the first, the best, the checkpoint, accepted updates."""
    recent = [] if old else [summary.model for summary in job.past[-keep.models :]]
    kept = {job.model} if old else {*recent, job.initial_model, job.model, job.state}
    if job.best is not None and (model := job.model_of(job.best[0])) is not None:
        kept.add(model)
    if job.round is not None:
        kept.update(update.digest for update in job.round.accepted)
        kept.add(job.round.opened.model)
        kept.update(member.base.fetched for member in job.round.members.values() if member.base is not None)
    kept.update(task.fetched for task in job.working.values())
    if not job.final:
        kept.update(each.step for each in job.steps)
    kept.add(job.archive)
    return kept - {""}


class BlobKeeper:
    """The coordinator's blobs: `store` has them, this knows which are needed."""

    def __init__(self, store: BlobStore, journal: Journal) -> None:
        self.store = store
        self.retained: Callable[[], set[Digest]] = set
        """Further blobs that must stay for now, such as updates that are still to be scored."""
        self.archivable: Callable[[Job], bool] = lambda job: True
        """Whether nobody but its readers needs the events of a job that is over."""
        self.keep = Keep()
        self._journal = journal
        self._pinned: Counter[Digest] = Counter()
        self._of_final: dict[tuple[str, bool, Digest], set[Digest]] = {}

    def needed(self) -> set[Digest]:
        """Every blob that some job still refers to, or is about to."""
        return set(self._pinned).union(self.retained(), *map(self._of, self._journal.jobs.values()))

    def is_old(self, job: Job) -> bool:
        """Whether a job has been over for as long as things are kept."""
        return self.keep.is_old(job, self._journal.clock())

    def size_of(self, job: Job) -> int:
        """Bytes that are kept of a job, about: as if each of its blobs were a model."""
        return BYTES_PER_PARAMETER * job.parameters * len(self._of(job))

    def _of(self, job: Job) -> set[Digest]:
        if not job.final:
            return kept_blobs(job, self.keep)
        which = job.id, self.is_old(job), job.archive
        if which not in self._of_final:  # of thousands of old jobs it is worked out once
            self._of_final[which] = kept_blobs(job, self.keep, old=which[1])
        return self._of_final[which]

    @contextmanager
    def pinned(self, digests: Iterable[Digest]) -> Iterator[None]:
        """Keep blobs from being cleared away between their being stored and the event that names them."""
        pinned = list(digests)
        self._pinned.update(pinned)
        try:
            yield
        finally:
            self._pinned -= Counter(pinned)

    async def forget(self, job: Job, digests: Iterable[Digest]) -> None:
        """Delete these blobs and the job's models that have grown old, as far as no job needs them any more.

        Nothing waits for it; what is left over, because the disk failed or the process died, is swept up later.
        """
        past = [summary.model for summary in job.past[-self.keep.models - 4 : -self.keep.models]]
        with suppress(TuttiError):
            await self.store.delete(*{*digests, *past} - self.needed() - {""})

    async def clear(self) -> None:
        """Delete what nobody needs, at a start: nothing is on its way yet."""
        await self.store.delete(*set(await self.store.digests()) - self.needed())

    async def sweep(self, tidy: Callable[[], Awaitable[None]]) -> None:
        """Clear away what nobody refers to: updates that came late, or were never handed in. Never ends.

        `tidy` is done at each look, too. A blob goes when two looks, a while apart, find it unneeded, so that an update
        on its way is not hit. After the process has stood still, which looks were before that does not count: others
        may own the blobs now.
        """
        before: set[Digest] = set()
        now = asyncio.get_running_loop().time
        while True:
            due = now() + SWEEP_SECONDS
            await asyncio.sleep(SWEEP_SECONDS)
            if now() > due + LATE_SECONDS:
                before = set()
            try:
                before = await self.look_for_unneeded(before)
                await tidy()
            except TuttiError as error:
                log.error("cannot clear away old blobs: %s", error)

    async def look_for_unneeded(self, before: set[Digest]) -> set[Digest]:
        """Delete the blobs that nobody needs now nor did at the look before; returns those unneeded since this look."""
        unneeded = set(await self.store.digests()) - self.needed()
        await self.store.delete(*(unneeded & before) - self.needed())
        return unneeded - before
