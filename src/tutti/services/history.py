"""Attempts at rounds in full: the newest are in a job's state, older ones are rebuilt from the log."""

from collections.abc import Container

from tutti.domain.events import JobEvent, JobFailed, JobStopped
from tutti.domain.history import RoundSummary, attempts_at
from tutti.domain.jobs import Job
from tutti.ports.blobs import BlobStore
from tutti.services.archive import events_in
from tutti.services.journal import Journal, stream_of

BATCH = 1000


async def attempts_of(journal: Journal, store: BlobStore, job: Job, rounds: Container[int]) -> list[RoundSummary]:
    """The finished attempts at these rounds that `job` knows of, in order, in full.

    What the job has forgotten the details of is read from the log, there where these rounds are, or from its archive.
    """
    known = [summary for summary in job.past if summary.number in rounds]
    if all(summary.detail is not None for summary in known):
        return known
    if job.archive:
        return attempts_at(await events_in(store, job), rounds)[: len(known)]
    events: list[JobEvent] = []
    for after, last in _spans(journal, job, rounds):
        while after < last:
            batch = await journal.log.read(after, stream=stream_of(job.id), limit=min(BATCH, last - after))
            if not batch:
                break
            after = batch[-1].offset
            events += [each.event for each in batch if each.offset <= last and _concerns(each.event, rounds)]  # type: ignore[misc]  # a stream holds events of its own kind
    return attempts_at(events, rounds)[: len(known)]


def _spans(journal: Journal, job: Job, rounds: Container[int]) -> list[tuple[int, int]]:
    """Where the events of these rounds are: behind one offset, up to another."""
    openings = journal.openings[job.id]
    ends = [offset - 1 for _, offset in openings[1:]] + [journal.offset]
    spans: list[tuple[int, int]] = []
    for (number, offset), end in zip(openings, ends, strict=True):
        if number not in rounds:
            continue
        if spans and spans[-1][1] == offset - 1:
            spans[-1] = spans[-1][0], end
        else:
            spans.append((offset - 1, end))
    return spans


def _concerns(event: object, rounds: Container[int]) -> bool:
    return getattr(event, "round", None) in rounds or isinstance(event, JobStopped | JobFailed)
