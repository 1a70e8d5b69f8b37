"""A replica among several: it works for the owner of the log, until it is the owner itself (docs/replicas.md)."""

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Receive, Scope, Send

from tutti.adapters._imports import extra
from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.adapters.blobs.layered import LayeredBlobs
from tutti.adapters.blobs.mirrored import MirroredBlobs
from tutti.adapters.fabrics.hub import HubFabric
from tutti.adapters.fabrics.relayed import RelayedFabric
from tutti.apps.api.relay import RelayApp
from tutti.core.errors import Unavailable
from tutti.domain.events import NodeId
from tutti.ports.log import Owner
from tutti.services.relay import ENTRY_SECONDS, Relay, RelayOver
from tutti.services.summing import RelaySums

if TYPE_CHECKING:
    from tutti.adapters.logs.postgres import PostgresLog
    from tutti.services.coordinator import Coordinator


class Stopped(Exception):
    """The process was told to end before it owned the log."""


class Front:
    """What answers at this process's address: a relay, and then a coordinator. `serve` has it answer."""

    def __init__(self) -> None:
        self.serve: Callable[[], Coroutine[Any, Any, None]]
        self.relay: RelayApp | None = None
        self.owned: ASGIApp | None = None
        self.serving: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.owned or self.relay
        assert app is not None
        await app(scope, receive, send)

    async def aclose(self) -> None:
        if self.relay is not None:
            await self.relay.close()


class Replica:
    """Between this process and the others: `relayed` are the nodes that others have, for whoever owns the log."""

    def __init__(self, redis: str, hub: HubFabric, core: "Callable[[], Coordinator]") -> None:
        with extra("redis", "working beside other coordinators"):
            from tutti.adapters.posts.redis import RedisPost

        self.name = secrets.token_hex(8)
        self.post = RedisPost(redis)
        self.relayed = RelayedFabric(self.name, self.post, lambda: core().members)
        self._hub, self._core = hub, core
        self._relay = Relay(self.name, hub, self.post, news=lambda recorded: self._heard(recorded))
        self._heard: Callable[..., None] = lambda recorded: None
        self._owns = asyncio.Event()

    async def authenticate(self, node: NodeId, shown: str) -> None:
        """Raises Forbidden, or Unavailable: whether a node may come in is up to the owner."""
        try:
            await self._relay.authenticate(node, shown)
            return
        except RelayOver:
            pass
        try:
            async with asyncio.timeout(ENTRY_SECONDS):
                await self._owns.wait()
        except TimeoutError:
            raise Unavailable("this coordinator has only begun: try again in a moment") from None
        self._core().members.authenticate(node, shown)

    async def turn_away(self, node: str, reason: str) -> None:
        """Have it recorded, which the owner does by itself."""
        if self._owns.is_set():
            await self._core().members.turn_away(node, reason)

    async def until_owner(
        self, log: "PostgresLog", waits: Callable[[], None], *, front: Front | None, blobs: DirectoryBlobs
    ) -> None:
        """Work for whoever owns the log until we do; raises Stopped if the process is to end before."""
        assert front is not None
        await self.post.check()
        core = self._core()
        self._heard = log.heard
        updates = DirectoryBlobs(blobs.root.parent / "updates")
        assert isinstance(blobs, MirroredBlobs)  # replicas share a bucket
        self._relay.sums = RelaySums(core.journal, LayeredBlobs(updates, blobs), blobs.far)
        front.relay = RelayApp(self._relay, self._hub, blobs, core, self.post, lambda: front.owned, updates)
        serving = front.serving = asyncio.create_task(front.serve())

        async def meanwhile(owner: Owner) -> None:
            if owner.name:
                self._relay.follow(owner)
            await core.journal.load()

        standing = asyncio.create_task(log.stand_by(waits, meanwhile))
        relaying = asyncio.create_task(self._relay.run())
        try:
            await asyncio.wait((serving, standing, relaying), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ours = standing.done()
            for task in (standing, relaying):
                task.cancel()
            await asyncio.gather(standing, relaying, return_exceptions=True)
        for task in (relaying, standing):
            if not task.cancelled():
                task.result()
        if not ours:
            raise Stopped

    def begin(self) -> Coroutine[None, None, None]:
        """The log is ours, and the coordinator has started: hear the others, who hear what is written."""
        self._owns.set()
        self._core().journal.watchers.append(self.relayed.tell_news)
        return self.relayed.run()
