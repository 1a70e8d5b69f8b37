"""A post within one process, for simulation and tests; faults are part of it."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable

from tutti.ports.post import PostLost


class MemoryPost:
    """A Post of everybody in this process.

    Args:
        fate: Asked of each letter how often it arrives: 0 for one that is lost, 2 for one that comes twice.
        room: Letters that may wait for one receiver.
    """

    def __init__(self, fate: Callable[[], int] = lambda: 1, *, room: int = 512) -> None:
        self._fate, self._room = fate, room
        self._boxes: defaultdict[str, asyncio.Queue[bytes]] = defaultdict(lambda: asyncio.Queue(room))
        self.away = False
        """Whether nothing can be sent: what has been is still read."""

    async def send(self, to: str, letter: bytes) -> None:
        if self.away:
            raise PostLost("the post is away")
        for _ in range(self._fate()):
            await self._boxes[to].put(letter)

    async def letters(self, name: str) -> AsyncIterator[bytes]:
        while True:
            yield await self._boxes[name].get()

    @property
    def trouble(self) -> str:
        return "the post is away" if self.away else ""

    async def close(self) -> None:
        pass
