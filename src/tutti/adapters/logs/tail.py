"""The end of a log: the latest events, and whoever waits for more."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from itertools import takewhile

from tutti.ports.log import EventLog, Recorded, VersionConflict


class Tail:
    """Belongs to one event loop. `kept` events stay in memory, so that followers who keep up cost no reading."""

    def __init__(self, kept: int) -> None:
        self._recent: deque[Recorded] = deque(maxlen=kept)
        self._grown = asyncio.Event()
        self.closed = False

    def grow(self, recorded: Sequence[Recorded]) -> None:
        if recorded:
            self._recent.extend(recorded)
            self._wake()

    def skip(self) -> None:
        """There is more in the log than was told here."""
        self._recent.clear()
        self._wake()

    def close(self) -> None:
        """Every `follow` ends."""
        self.closed = True
        self._wake()

    async def follow(self, log: EventLog, after: int) -> AsyncIterator[list[Recorded]]:
        """EventLog.follow: from memory where that reaches back far enough, else from the log."""
        while not self.closed:
            grown = self._grown
            batch = self._since(after) if self._reaches(after) else await log.read(after)
            if batch:
                after = batch[-1].offset
                yield batch
            else:
                await grown.wait()

    def _wake(self) -> None:
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()

    def _reaches(self, after: int) -> bool:
        return bool(self._recent) and self._recent[0].offset <= after + 1

    def _since(self, after: int) -> list[Recorded]:
        newest_first = takewhile(lambda recorded: recorded.offset > after, reversed(self._recent))
        return [*newest_first][::-1]


def conflict(stream: str, expected: int, came: int) -> VersionConflict:
    return VersionConflict(f"stream {stream!r} was expected at version {expected} and is at {came}: read it again")
