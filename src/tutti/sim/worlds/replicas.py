"""Replicas in a world: relays that have nodes, and work for whoever owns the log, over a post that loses letters."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from tutti.adapters.blobs.layered import LayeredBlobs
from tutti.adapters.blobs.scratch import ScratchBlobs
from tutti.adapters.fabrics.joined import JoinedFabrics
from tutti.adapters.fabrics.local import LocalFabric, LocalLink
from tutti.adapters.fabrics.relayed import RelayedFabric
from tutti.adapters.posts.memory import MemoryPost
from tutti.core.errors import StorageError
from tutti.domain.events import Digest, NodeId
from tutti.ports import EventLog, Fabric, LinkLost
from tutti.ports.blobs import Buffer
from tutti.ports.log import Owner
from tutti.services.coordinator import Coordinator
from tutti.services.journal import Journal
from tutti.services.relay import Relay
from tutti.services.summing import RelaySums
from tutti.sim.worlds.distributions import drawn
from tutti.sim.worlds.world import Purpose, World, rng_for
from tutti.wire.messages import CoordinatorMessage, Registration

LATER_SECONDS = 0.05
SLOW_SECONDS = 600.0


@dataclass(slots=True, eq=False)
class _Process:
    """A relay while it lives."""

    fabric: LocalFabric
    relay: Relay
    task: "asyncio.Task[None]"
    reading: "asyncio.Task[None]"


class _Unreadable(ScratchBlobs):
    """On a disk that gives errors."""

    async def read(self, digest: Digest) -> bytes:
        async with self.file(digest):
            raise StorageError("the disk gives errors")


class _Full(ScratchBlobs):
    async def put(self, data: Buffer, *, digest: Digest | None = None, sync: bool = True) -> Digest:
        raise StorageError("the store is full")


class _Slow(ScratchBlobs):
    async def put(self, data: Buffer, *, digest: Digest | None = None, sync: bool = True) -> Digest:
        await asyncio.sleep(SLOW_SECONDS)
        return await super().put(data, digest=digest, sync=sync)


FAILING = ((1 / 3, (_Unreadable, ScratchBlobs)), (2 / 3, (ScratchBlobs, _Full)), (1, (ScratchBlobs, _Slow)))
"""Up to which part of the relays whose store fails: where it keeps updates, and where sums go."""


class Replicas:
    """All ways to the coordinator: `owners` is where it takes nodes itself, if it is there."""

    def __init__(self, world: World, blobs: ScratchBlobs, log: EventLog) -> None:
        self.deaths = self.sums = 0
        self.owners: LocalFabric | None = None
        self._world, self._blobs, self._log = world, blobs, log
        self._core: Coordinator | None = None
        self._relayed: RelayedFabric | None = None
        self._chance = rng_for(world, Purpose.REPLICAS)
        self._post = MemoryPost(self._fate)
        self._owner = Owner(0, "", "")
        self._alive: list[_Process | None] = []
        self._links: list[BalancedLink] = []

    def joined(
        self, number: int, own: LocalFabric, core: Callable[[], Coordinator]
    ) -> tuple[Fabric, RelayedFabric | None]:
        """The fabric of one more owner: its own nodes, and those of relays, which work for it from now on."""
        if not self._world.relays:
            return own, None
        self._owner = Owner(number, f"owner-{number}", "")
        self._relayed = relayed = RelayedFabric(self._owner.name, self._post, lambda: core().members)
        return JoinedFabrics(own, relayed), relayed

    def begin(self, core: Coordinator, own: LocalFabric) -> None:
        """The owner has started."""
        self._core, self.owners = core, self.owners or own
        if self._relayed is None:
            return
        core.journal.watchers.append(self._relayed.tell_news)
        core.background.spawn(self._relayed.run())
        for process in self._alive:
            if process is not None:
                process.relay.follow(self._owner)

    async def live(self) -> None:
        """All relays, as long as the world lasts."""
        async with asyncio.TaskGroup() as group:
            for index in range(self._world.relays):
                self._alive.append(None)
                group.create_task(self._live(index))

    async def _live(self, index: int) -> None:
        faults, births = self._world.faults, 0
        while True:
            births += 1
            process = self._alive[index] = self._born(f"relay-{index}-{births}")
            try:
                if faults.relay is None:
                    await process.task
                await asyncio.sleep(drawn(faults.relay)(self._chance) if faults.relay else 0)
            finally:
                process.task.cancel()
                process.reading.cancel()
                self._alive[index] = None
                assert process.relay.sums is not None
                self.sums += process.relay.sums.made
            self.deaths += 1
            self.cut(process.fabric)
            await asyncio.sleep(drawn(faults.outage)(self._chance))

    def _born(self, name: str) -> _Process:
        share = self._world.faults.store
        fails = float(self._chance.random()) if share else 1.0
        kept, store = next((kinds for most, kinds in FAILING if fails < share * most), (ScratchBlobs, ScratchBlobs))
        shared = store(self._blobs.root)
        own = LayeredBlobs(kept(self._blobs.root.parent / name), self._blobs)
        journal = Journal(self._log, asyncio.get_running_loop().time)
        sums = RelaySums(journal, own, shared)
        fabric = LocalFabric(
            lambda node, shown: relay.authenticate(node, shown),
            self._blobs,
            limit=lambda node: sums.access.update_limit(node) if sums.takes(node) else self._limit(node),
            heartbeat=self._world.heartbeat,
            uploads=lambda node: own if sums.takes(node) else self._blobs,
        )
        relay = Relay(name, fabric, self._post)
        relay.sums = sums
        if self._owner.name:
            relay.follow(self._owner)
        return _Process(fabric, relay, asyncio.create_task(relay.run()), asyncio.create_task(self._read(journal)))

    async def _read(self, journal: Journal) -> None:
        """The log as a relay sees it: a moment later."""
        async for _ in self._log.follow(0):
            await asyncio.sleep(LATER_SECONDS)
            await journal.load()

    def _limit(self, node: NodeId) -> int:
        """What a relay hears of the owner, to whom uploads go."""
        if self.owners is None or self._core is None:
            raise LinkLost("the owner is away")
        return self._core.access.update_limit(node)

    # -- for nodes -------------------------------------------------------------------------------------------

    def link(self) -> "BalancedLink":
        link = BalancedLink(self._some)
        self._links.append(link)
        return link

    def cut(self, fabric: LocalFabric) -> None:
        """Whoever is connected there is so no more."""
        for link in self._links:
            if link.fabric is fabric:
                link.fabric = None
                link.drop()

    def _some(self) -> LocalFabric | None:
        """What a load balancer leads to: any of those that are there."""
        there = [self.owners, *(process.fabric for process in self._alive if process is not None)]
        up = [fabric for fabric in there if fabric is not None]
        return up[int(self._chance.integers(len(up)))] if up else None

    def _fate(self) -> int:
        lost, drawn_ = self._world.faults.post, float(self._chance.random())
        return 0 if drawn_ < lost else 2 if drawn_ < 2 * lost else 1


class BalancedLink(LocalLink):
    """A Link that leads to another replica each time."""

    def __init__(self, some: Callable[[], LocalFabric | None]) -> None:
        super().__init__(None)
        self._some = some

    async def connect(self, registration: Registration) -> AsyncIterator[CoordinatorMessage]:
        self.drop()
        self.fabric = self._some()
        return await super().connect(registration)
