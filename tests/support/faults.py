"""The real log and blob store, with a saboteur before them: the n-th write fails, or a coordinator stops at it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.core.errors import StorageError
from tutti.domain.events import AnyEvent, Digest
from tutti.ports import EventLog, Recorded


@dataclass
class Saboteur:
    """Counts writes from `arm` on. At number `at` it raises StorageError (`fail`), or lets the writer hang for ever,
    before the write (`stop before`) or after it (`stop after`): what a process that is killed there has done.
    A writer that hangs goes on as if nothing had been when it is `let_go`."""

    how: str = "fail"
    at: int = -1
    count: int = 0
    struck: asyncio.Event = field(default_factory=asyncio.Event)
    _hanging: "asyncio.Future[None] | None" = None

    def arm(self, at: int) -> None:
        self.at, self.count = at, 0

    async def before(self) -> bool:
        self.count += 1
        if self.count != self.at:
            return False
        if self.how == "fail":
            self.struck.set()
            raise StorageError("the disk is full: free some space")
        if self.how == "stop before":
            await self._hang()
        return True

    async def after(self, struck: bool) -> None:
        if struck and self.how == "stop after":
            await self._hang()

    async def _hang(self) -> None:
        self._hanging = asyncio.get_running_loop().create_future()
        self.struck.set()
        await self._hanging

    def let_go(self) -> None:
        """The disk was only slow."""
        assert self._hanging is not None
        self._hanging.set_result(None)

    def release(self) -> None:
        """The process is dead now: whoever hangs comes to an end, and nobody hangs any more."""
        self.at = -1
        if self._hanging is not None and not self._hanging.done():
            self._hanging.set_exception(StorageError("the process was killed here"))


class SabotagedLog:
    def __init__(self, log: EventLog, saboteur: Saboteur) -> None:
        self._log, self._saboteur = log, saboteur

    async def append(self, stream: str, version: int, events: Sequence[AnyEvent]) -> list[Recorded]:
        struck = await self._saboteur.before()
        recorded = await self._log.append(stream, version, events)
        await self._saboteur.after(struck)
        return recorded

    async def read(self, after: int = 0, *, stream: str | None = None, limit: int = 1000) -> list[Recorded]:
        return await self._log.read(after, stream=stream, limit=limit)

    async def trim(self, stream: str, before: int) -> None:
        struck = await self._saboteur.before()
        await self._log.trim(stream, before)  # type: ignore[attr-defined]  # those that tests put behind it can
        await self._saboteur.after(struck)

    def follow(self, after: int) -> AsyncIterator[list[Recorded]]:
        return self._log.follow(after)

    async def close(self) -> None:
        await self._log.close()


class SabotagedBlobs(DirectoryBlobs):
    def __init__(self, root: Path, saboteur: Saboteur) -> None:
        super().__init__(root)
        self._saboteur = saboteur

    async def put(self, data, *, digest: Digest | None = None, sync: bool = True) -> Digest:
        struck = await self._saboteur.before()
        stored = await super().put(data, digest=digest, sync=sync)
        await self._saboteur.after(struck)
        return stored
