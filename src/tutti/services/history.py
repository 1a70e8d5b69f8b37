"""Attempts at rounds in full: the newest are in a job's state, older ones are rebuilt from the log."""

from collections.abc import Container

from tutti.domain.events import JobEvent, JobFailed, JobStopped
from tutti.domain.history import RoundSummary, attempts_at
from tutti.domain.jobs import Job
from tutti.ports import EventLog
from tutti.services.journal import stream_of


async def attempts_of(log: EventLog, job: Job, rounds: Container[int]) -> list[RoundSummary]:
    """The finished attempts at these rounds that `job` knows of, in order, in full.

    For an attempt that the job has forgotten the details of, its whole stream is read, a batch at a time.
    """
    known = [summary for summary in job.past if summary.number in rounds]
    if all(summary.detail is not None for summary in known):
        return known
    events: list[JobEvent] = []
    after = 0
    while batch := await log.read(after, stream=stream_of(job.id)):
        after = batch[-1].offset
        events += [recorded.event for recorded in batch if _concerns(recorded.event, rounds)]  # type: ignore[misc]  # a stream holds events of its own kind
    return attempts_at(events, rounds)[: len(known)]


def _concerns(event: object, rounds: Container[int]) -> bool:
    return getattr(event, "round", None) in rounds or isinstance(event, JobStopped | JobFailed)
