"""Events of jobs that are long over: moved from the log into a blob each, where readers find them as before.

First the blob is stored, then the log says so, and only then the events go; killed in between, the next look goes on.
"""

import asyncio
import logging

import msgspec
import zstandard

from tutti.core.errors import CorruptBlob, StorageError
from tutti.domain.events import JobEvent
from tutti.domain.jobs import Job
from tutti.ports.blobs import BlobStore
from tutti.ports.log import Trimmed
from tutti.services.journal import Journal, stream_of
from tutti.services.keeping import BlobKeeper

log = logging.getLogger(__name__)

BATCH = 1000
LEVEL = 9
LARGEST = 1 << 32
"""Bytes of a job's events, unpacked: more is no archive of ours."""

_decoder: msgspec.json.Decoder[JobEvent] = msgspec.json.Decoder(JobEvent)


def packed(events: list[JobEvent]) -> bytes:
    """Events as JSON, one a line, compressed."""
    return zstandard.compress(b"\n".join(map(msgspec.json.encode, events)), LEVEL)


async def events_in(store: BlobStore, job: Job) -> list[JobEvent]:
    """A job's events from its archive; raises NotFound, CorruptBlob, StorageError."""
    data = bytes(await store.read(job.archive))

    def unpacked() -> list[JobEvent]:
        lines = zstandard.decompress(data, LARGEST).split(b"\n")
        return [_decoder.decode(line) for line in lines]

    try:
        return await asyncio.to_thread(unpacked)
    except (zstandard.ZstdError, msgspec.MsgspecError) as error:
        raise CorruptBlob(f"the archive {job.archive} of job {job.id} cannot be read: {error}") from None


class Archivist:
    """Archives what has been over for as long as the keeper's `days`, if the log can be trimmed at all."""

    def __init__(self, journal: Journal, keeper: BlobKeeper) -> None:
        self._journal, self._keeper = journal, keeper
        self._trimmed: set[str] = set()

    async def tidy(self) -> None:
        """Archive the jobs whose time has come; raises StorageError, and the next look goes on."""
        for job in list(self._journal.jobs.values()):
            if self._keeper.is_old(job) and self._keeper.archivable(job):
                await self.archive(job)

    async def archive(self, job: Job) -> None:
        """Move one job's events; does nothing where that is done, or where the log cannot be trimmed."""
        if job.id in self._trimmed or not isinstance(self._journal.log, Trimmed):
            return
        if not job.archive:
            events = await self._events(job)
            digest = await self._keeper.store.put(await asyncio.to_thread(packed, events))
            with self._keeper.pinned([digest]):
                await self._journal.archive(job.id, digest, len(events))
            log.info("job %s: its %d events are archived as %s", job.id, len(events), digest)
        await self._journal.log.trim(stream_of(job.id), self._journal.archived_at(job.id))
        self._trimmed.add(job.id)

    async def _events(self, job: Job) -> list[JobEvent]:
        events: list[JobEvent] = []
        after = 0
        while batch := await self._journal.log.read(after, stream=stream_of(job.id), limit=BATCH):
            after = batch[-1].offset
            events += [recorded.event for recorded in batch]  # type: ignore[misc]  # a stream holds events of its own kind
        if not events:
            raise StorageError(f"job {job.id} has no events in the log: restore it from a copy")
        return events
