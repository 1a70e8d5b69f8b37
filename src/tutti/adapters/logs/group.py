"""Group commit: an append waits for the commit that holds it; while one runs, others gather and share the next."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tutti.adapters.logs.codec import encode
from tutti.adapters.logs.tail import Tail
from tutti.core.errors import Conflict, StorageError
from tutti.domain.events import AnyEvent
from tutti.ports.log import Recorded, VersionConflict

GROUP = 256
"""Appends in one commit."""

WAITING = 4096
"""Appends that may wait; further callers wait for a place."""


class LogInUse(Conflict):
    """Another process owns this event log."""


@dataclass(frozen=True, slots=True, eq=False)
class Append:
    stream: str
    version: int
    events: list[tuple[bytes, AnyEvent]]
    done: "asyncio.Future[list[Recorded]]"


Outcome: TypeAlias = list[Recorded] | VersionConflict
Commit: TypeAlias = Callable[[Sequence[Append]], Awaitable[list[Outcome]]]


class Appends:
    """`commit` writes all appends of a group, but for those whose version is not that of their stream, or nothing.

    An append that is cancelled may or may not have been written.
    """

    def __init__(self, commit: Commit, tail: Tail, where: str) -> None:
        self._commit, self._tail, self._where = commit, tail, where
        self._waiting: deque[Append] = deque()
        self._places = asyncio.Semaphore(WAITING)
        self._committing: asyncio.Future[list[Outcome]] | None = None
        self._closing = False

    async def append(self, stream: str, version: int, events: Sequence[AnyEvent]) -> list[Recorded]:
        done: asyncio.Future[list[Recorded]] = asyncio.get_running_loop().create_future()
        request = Append(stream, version, [encode(event) for event in events], done)
        async with self._places:
            if self._closing:
                raise StorageError(f"the event log {self._where} is closed")
            self._waiting.append(request)
            self._commit_next()
            return await done

    async def finish(self) -> None:
        """Take no more, and commit what waits."""
        self._closing = True
        while self._committing is not None:
            await asyncio.wait([self._committing])

    def _commit_next(self) -> None:
        """Start a commit of what waits, unless one runs."""
        if self._committing is not None or not self._waiting:
            return
        taken = [self._waiting.popleft() for _ in range(min(GROUP, len(self._waiting)))]
        group = [request for request in taken if not request.done.cancelled()]
        self._committing = asyncio.ensure_future(self._commit(group))
        self._committing.add_done_callback(lambda committed: self._committed(group, committed))

    def _committed(self, group: Sequence[Append], committed: "asyncio.Future[list[Outcome]]") -> None:
        self._committing = None
        self._commit_next()
        error = committed.exception()
        outcomes: Sequence[Outcome | BaseException] = [error] * len(group) if error else committed.result()
        self._tail.grow([recorded for outcome in outcomes if isinstance(outcome, list) for recorded in outcome])
        for request, outcome in zip(group, outcomes, strict=True):
            if request.done.cancelled():
                continue
            if isinstance(outcome, list):
                request.done.set_result(outcome)
            else:
                request.done.set_exception(outcome)
