"""Letters on their way to another replica (wire.relay), and for how long one is waited for."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from tutti.domain.events import NodeId
from tutti.ports.post import Post, PostLost
from tutti.wire.relay import Tell, ToOwner, ToRelay, weight

BEAT_SECONDS = 0.5
SILENT_BEATS = 6
"""After so many of one's own without a word the other side is gone; who stood still has counted only one of them."""

SILENCE_SECONDS = SILENT_BEATS * BEAT_SECONDS

RETRY_SECONDS = 0.2

LETTERS, BYTES = 64, 1 << 19
"""Of one envelope."""

MOST_LETTERS, MOST_BYTES = 8192, 64 << 20
"""That wait for one receiver: there is no room for more, though what has to be said is said."""

STUCK_SECONDS = 10.0
"""Whoever leaves no room for so long does not take what it is told."""

REMEMBERED = 8
"""Small models, and schemas of jobs, that a relay remembers, so that each travels once."""

L = TypeVar("L", bound=ToOwner | ToRelay)
K = TypeVar("K")
V = TypeVar("V")


class Remembered(dict[K, V]):
    """The last few; both sides add the same in the same order, and so know what the other one has."""

    def add(self, key: K, value: V) -> None:
        self[key] = value
        if len(self) > REMEMBERED:
            del self[next(iter(self))]


class Outbox(Generic[L]):
    """Letters on their way to one receiver, in the envelopes of one session."""

    def __init__(self, post: Post, to: str, seal: Callable[[int, tuple[L, ...]], bytes]) -> None:
        self._post, self._to, self._seal = post, to, seal
        self._waiting: deque[L] = deque()
        self.told: Counter[NodeId] = Counter()
        """How many messages wait for each node."""
        self._bytes, self._number = 0, 0
        self._full_since: float | None = None
        self._more, self._room = asyncio.Event(), asyncio.Event()

    def put(self, letter: L) -> None:
        self._waiting.append(letter)
        self._bytes += weight(letter)
        if isinstance(letter, Tell):
            self.told[letter.node] += 1
        if self.full and self._full_since is None:
            self._full_since = asyncio.get_running_loop().time()
        self._more.set()

    @property
    def full(self) -> bool:
        return len(self._waiting) >= MOST_LETTERS or self._bytes >= MOST_BYTES

    @property
    def stuck(self) -> bool:
        """Whether it has been full for long; all that a round says at once is no sign of that."""
        return self._full_since is not None and asyncio.get_running_loop().time() - self._full_since > STUCK_SECONDS

    async def room(self) -> None:
        """Wait while it is full."""
        while self.full:
            self._room.clear()
            await self._room.wait()

    async def run(self) -> None:
        """Send, for ever; raises PostLost if an envelope could not be sent for SILENCE_SECONDS."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(BEAT_SECONDS):
                    await self._more.wait()
            await self._send(self._seal(self._number, self._take()))
            self._number += 1

    def _take(self) -> tuple[L, ...]:
        taken, size = list[L](), 0
        while self._waiting and len(taken) < LETTERS and size < BYTES:
            taken.append(self._waiting.popleft())
            size += weight(taken[-1])
        for letter in taken:
            if isinstance(letter, Tell):
                self.told[letter.node] -= 1
                if not self.told[letter.node]:
                    del self.told[letter.node]
        self._bytes -= size
        if not self.full:
            self._full_since = None
        if not self._waiting:
            self._more.clear()
        self._room.set()
        return tuple(taken)

    async def _send(self, envelope: bytes) -> None:
        """Whoever gets it twice knows by its number."""
        loop = asyncio.get_running_loop()
        until = loop.time() + SILENCE_SECONDS
        while True:
            try:
                await self._post.send(self._to, envelope)
                return
            except PostLost:
                if loop.time() > until:
                    raise
            await asyncio.sleep(RETRY_SECONDS)
