"""A coordinator's disk on virtual time: writes take a while, and one that was killed or replaced writes no more."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import numpy as np

from tutti.adapters.blobs.scratch import ScratchBlobs
from tutti.adapters.logs.memory import MemoryLog
from tutti.core.errors import StorageError
from tutti.domain.events import AnyEvent, Digest
from tutti.ports.blobs import Buffer
from tutti.ports.log import LogLost, Recorded
from tutti.sim.worlds.distributions import Draw


class Disk:
    """What one process of the coordinator sees of it. `owner` counts up with each: it is its fencing token."""

    def __init__(self, delay: Draw, rng: np.random.Generator, owner: int) -> None:
        self._delay, self._rng = delay, rng
        self.owner = owner
        self.killed = False
        self.answers = asyncio.Event()
        self.answers.set()

    async def work(self) -> None:
        """Raises StorageError if the process was killed meanwhile: what it wanted has not happened, or is not known."""
        await asyncio.sleep(self._delay(self._rng))
        await self.answers.wait()
        if self.killed:
            raise StorageError("the coordinator was killed")


class SlowLog:
    """An EventLog before another: a kill falls before a write, or after it but before anybody knows.

    `newest` is the present owner's token; as a database would, it refuses what comes with an older one.
    """

    def __init__(self, log: MemoryLog, disk: Disk, newest: Callable[[], int]) -> None:
        self._log, self._disk, self._newest = log, disk, newest

    async def append(self, stream: str, version: int, events: Sequence[AnyEvent]) -> list[Recorded]:
        await self._disk.work()
        if self._newest() != self._disk.owner:
            raise LogLost("another coordinator has taken over the log")
        recorded = await self._log.append(stream, version, events)
        await self._disk.work()
        return recorded

    async def read(self, after: int = 0, *, stream: str | None = None, limit: int = 1000) -> list[Recorded]:
        return await self._log.read(after, stream=stream, limit=limit)

    def follow(self, after: int) -> AsyncIterator[list[Recorded]]:
        return self._log.follow(after)

    async def close(self) -> None:
        """The process ends; the log is there for the next one."""


class SlowBlobs(ScratchBlobs):
    """As SlowLog, for blobs."""

    def __init__(self, blobs: ScratchBlobs, disk: Disk) -> None:
        super().__init__(blobs.root)
        self._disk = disk

    async def put(self, data: Buffer, *, digest: Digest | None = None, sync: bool = True) -> Digest:
        await self._disk.work()
        stored = await super().put(data, digest=digest, sync=sync)
        await self._disk.work()
        return stored
