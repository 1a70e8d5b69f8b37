"""An event log in memory, for tests and simulation: all the promises but durability."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence

from tutti.adapters.logs.codec import encode
from tutti.adapters.logs.tail import Tail, conflict
from tutti.core.errors import StorageError
from tutti.domain.events import AnyEvent
from tutti.ports.log import Recorded


class MemoryLog:
    """An EventLog. Events pass through JSON, as they would on a disk, so that nobody shares what is in them."""

    def __init__(self) -> None:
        self._events: list[Recorded] = []
        self._versions: defaultdict[str, int] = defaultdict(int)
        self._last = 0
        self._tail = Tail(kept=1024)

    async def append(self, stream: str, version: int, events: Sequence[AnyEvent]) -> list[Recorded]:
        if self._tail.closed:
            raise StorageError("the event log is closed")
        if version != self._versions[stream]:
            raise conflict(stream, version, self._versions[stream])
        stored = [encode(event)[1] for event in events]
        recorded = [Recorded(self._last + i, stream, version + i, event) for i, event in enumerate(stored, start=1)]
        self._events += recorded
        self._last += len(recorded)
        self._versions[stream] += len(recorded)
        self._tail.grow(recorded)
        return recorded

    async def read(self, after: int = 0, *, stream: str | None = None, limit: int = 1000) -> list[Recorded]:
        if self._tail.closed:
            raise StorageError("the event log is closed")
        first = bisect_right(self._events, after, key=lambda recorded: recorded.offset)
        if stream is None:
            return self._events[first : first + limit]
        return [recorded for recorded in self._events[first:] if recorded.stream == stream][:limit]

    async def trim(self, stream: str, before: int) -> None:
        if self._tail.closed:
            raise StorageError("the event log is closed")
        self._events = [each for each in self._events if each.stream != stream or each.version >= before]

    def follow(self, after: int) -> AsyncIterator[list[Recorded]]:
        return self._tail.follow(self, after)

    async def close(self) -> None:
        self._tail.close()
