"""How a member of a ring clears away what nobody counts: updates that came late, or whose nodes died."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping

from tutti.core.errors import TuttiError
from tutti.domain.events import Digest
from tutti.domain.jobs import Job
from tutti.services.keeping import SWEEP_SECONDS

log = logging.getLogger(__name__)


class Leftovers:
    """A blob goes when two looks, a while apart, find it unneeded (as in BlobKeeper), and no open round can want it.

    An update is in no record before its round is over, which may be long after it came. So it stays until each job that
    ran when it was first found unneeded has finished a round since, or is over itself.

    Args:
        here: What is here.
        needed: What some job needs, as agreed on, or somebody wants kept.
        jobs: As agreed on, by id.
        delete: Deletes those that are still unneeded then.
    """

    def __init__(
        self,
        here: Callable[[], Awaitable[Collection[Digest]]],
        needed: Callable[[], set[Digest]],
        jobs: Callable[[], Mapping[str, Job]],
        delete: Callable[[set[Digest]], Awaitable[None]],
    ) -> None:
        self._here, self._needed, self._jobs, self._delete = here, needed, jobs, delete
        self._found: dict[Digest, dict[str, int]] = {}
        """Unneeded blobs, and how many rounds the jobs that ran had behind them at the look that found each first."""

    async def sweep(self) -> None:
        """Look again and again; never ends."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                await self.look()
            except TuttiError as error:
                log.error("cannot clear away old blobs: %s", error)

    async def look(self) -> None:
        unneeded = set(await self._here()) - self._needed()
        running = {job.id: len(job.past) for job in self._jobs().values() if not job.final}
        before = {digest: rounds for digest, rounds in self._found.items() if digest in unneeded}
        gone = {digest for digest, rounds in before.items() if not rounds.items() & running.items()}
        self._found = dict.fromkeys(unneeded, running) | before
        for digest in gone:
            del self._found[digest]
        if gone:
            await self._delete(gone - self._needed())
