"""A link as slow, and as unreliable, as a world's network: around any Link, so for simulation and deployment."""

import asyncio
from collections.abc import AsyncIterator, Callable

import numpy as np

from tutti.domain.events import Digest
from tutti.ports.blobs import Buffer
from tutti.ports.fabric import Link
from tutti.sim.worlds.distributions import Draw
from tutti.wire.messages import CoordinatorMessage, NodeMessage, Registered, Registration, Start


class WorldLink:
    """A Link. Messages keep their order; each is under way for a draw of `latency`, in either direction.

    Args:
        up: Bytes a second from the node; `down`, to it.
        duplicate: Share of messages that arrive twice. A Registered comes once: it opens a connection.
        on_start: Told of every task before the node is.
    """

    def __init__(
        self,
        inner: Link,
        rng: np.random.Generator,
        *,
        latency: Draw,
        up: float,
        down: float,
        duplicate: float = 0.0,
        on_start: Callable[[Start], None],
    ) -> None:
        self._inner, self._rng, self._latency = inner, rng, latency
        self._up, self._down, self._duplicate, self._on_start = up, down, duplicate, on_start

    async def connect(self, registration: Registration) -> AsyncIterator[CoordinatorMessage]:
        await self._travel()
        return self._messages(await self._inner.connect(registration))

    async def send(self, message: NodeMessage) -> None:
        await self._travel()
        await self._inner.send(message)
        if self._twice():
            await self._inner.send(message)

    async def fetch(self, digest: Digest) -> Buffer:
        """The transfer is slow after the bytes are here: how many there are shows then."""
        await self._travel()
        blob = await self._inner.fetch(digest)
        await self._travel(len(blob) / self._down)
        return blob

    async def store(self, blob: Buffer, digest: Digest) -> None:
        await self._travel(len(blob) / self._up)
        await self._inner.store(blob, digest)
        await self._travel()

    async def _messages(self, messages: AsyncIterator[CoordinatorMessage]) -> AsyncIterator[CoordinatorMessage]:
        async for message in messages:
            await self._travel()
            if isinstance(message, Start):
                self._on_start(message)
            yield message
            if not isinstance(message, Registered) and self._twice():
                yield message

    async def _travel(self, seconds: float = 0.0) -> None:
        await asyncio.sleep(self._latency(self._rng) + seconds)

    def _twice(self) -> bool:
        return self._duplicate > 0 and self._rng.random() < self._duplicate
