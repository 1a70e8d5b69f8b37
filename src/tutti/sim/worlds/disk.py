"""A coordinator's disk on virtual time: writes take a while, and a killed coordinator writes no more."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np

from tutti.adapters.blobs.scratch import ScratchBlobs
from tutti.adapters.logs.memory import MemoryLog
from tutti.core.errors import StorageError
from tutti.domain.events import AnyEvent, Digest
from tutti.ports.blobs import Buffer
from tutti.ports.log import Recorded
from tutti.sim.worlds.distributions import Draw


class Disk:
    """What one process of the coordinator sees of it."""

    def __init__(self, delay: Draw, rng: np.random.Generator) -> None:
        self._delay, self._rng = delay, rng
        self.killed = False

    async def work(self) -> None:
        """Raises StorageError if the process was killed meanwhile: what it wanted has not happened, or is not known."""
        await asyncio.sleep(self._delay(self._rng))
        if self.killed:
            raise StorageError("the coordinator was killed")


class SlowLog:
    """An EventLog before another: a kill falls before a write, or after it but before anybody knows."""

    def __init__(self, log: MemoryLog, disk: Disk) -> None:
        self._log, self._disk = log, disk

    async def append(self, stream: str, version: int, events: Sequence[AnyEvent]) -> list[Recorded]:
        await self._disk.work()
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
