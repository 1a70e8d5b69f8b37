"""A job in a world: the real coordinator and real node runtimes, in one process, on virtual time.

Same world, same job: the same events at the same times, byte for byte, in whichever process.
"""

import asyncio
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
from blake3 import blake3

from tutti.adapters.blobs.scratch import ScratchBlobs
from tutti.adapters.datasets import known_schema
from tutti.adapters.fabrics.local import LocalFabric, LocalLink
from tutti.adapters.logs.memory import MemoryLog
from tutti.adapters.workbench import Bench, ThisProcess
from tutti.domain import nodes as register
from tutti.domain.events import NodeId
from tutti.domain.jobs import Job
from tutti.domain.spec import JobSpec, load_spec
from tutti.ports.fabric import Link
from tutti.ports.log import Recorded
from tutti.services.coordinator import Coordinator
from tutti.services.members import fingerprint
from tutti.sim.worlds.clock import VirtualLoop, run
from tutti.sim.worlds.data import data_of
from tutti.sim.worlds.disk import Disk, SlowBlobs, SlowLog
from tutti.sim.worlds.distributions import drawn
from tutti.sim.worlds.node import Place, WorldNode, live_together, profiles
from tutti.sim.worlds.replicas import Replicas
from tutti.sim.worlds.world import Purpose, World, rng_for

MIDNIGHT = 1_704_067_200.0
"""The world's first: Monday, 1 January 2024, UTC, in seconds since the epoch."""

TOKEN = "world"  # noqa: S105 - there is no stranger in a simulation
READ = 5000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a job in a world.

    Attributes:
        job: Its last state; not final if the world's `longest` ran out.
        seconds: World time from its submission to its end.
        took: Seconds that the simulation took.
        events: Everything logged, in order.
        crashes: Of the coordinator; `stalls`, after which another one took over; `deaths`, of nodes in the middle of a
            task; `relay_deaths`, of replicas that have nodes.
        sums: Of updates, made by such replicas.
    """

    job: Job
    seconds: float
    took: float
    events: list[Recorded]
    crashes: int
    deaths: int
    stalls: int = 0
    relay_deaths: int = 0
    sums: int = 0

    def trace(self) -> bytes:
        """The event log as JSON, one event a line."""
        return b"".join(
            msgspec.json.encode({"offset": each.offset, "stream": each.stream, "event": each.event}) + b"\n"
            for each in self.events
        )

    def digest(self) -> str:
        """BLAKE3 of the trace."""
        found: str = blake3(self.trace()).hexdigest()
        return found


def simulate_world(
    world: World,
    job: JobSpec | Mapping[str, Any],
    *,
    folder: Path | None = None,
    watch: Callable[[Job], None] | None = None,
) -> Outcome:
    """Run a job in a world.

    Args:
        folder: For blobs and what nodes keep; a temporary one if not given.
        watch: Called whenever a round has ended, with the job.

    Raises UserError for a job or a world that cannot be.
    """
    spec = job if isinstance(job, JobSpec) else load_spec(job)
    with tempfile.TemporaryDirectory(prefix="tutti-world-", dir=folder) as temporary:
        began = perf_counter()
        federation = _Federation(world, Path(temporary))
        done, seconds = run(federation.carry_out(spec, watch or (lambda _: None)))
        deaths = sum(node.deaths for node in federation.nodes)
        took, broke = (
            perf_counter() - began,
            (federation.crashes, deaths, federation.stalls, federation.replicas.deaths, federation.replicas.sums),
        )
        return Outcome(done, seconds, took, federation.recorded, *broke)


class _Federation:
    """The coordinator, which may crash or be replaced, and goes on with the same log and blobs; and its nodes."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.crashes = self.stalls = self._owners = 0
        self.nodes: list[WorldNode] = []
        self.recorded: list[Recorded] = []
        self._folder = folder
        self._log = MemoryLog()
        self._blobs = ScratchBlobs(folder / "blobs")
        self._links: dict[NodeId, LocalLink] = {}
        self._chance = rng_for(world, Purpose.COORDINATOR)
        self.replicas = Replicas(world, self._blobs, self._log)

    async def carry_out(self, spec: JobSpec, watch: Callable[[Job], None]) -> tuple[Job, float]:
        """The job at its end, or when the world's time is over, and how long that took."""
        loop = asyncio.get_running_loop()
        await self._up()
        await self._admit()
        living = asyncio.gather(live_together(self.nodes), self.replicas.live())
        try:
            job = await self._core.submit(spec, key=f"world {self.world.seed}")
            began = loop.time()
            with suppress(TimeoutError):
                async with asyncio.timeout(self.world.longest):
                    await self._until_final(job.id, watch)
            seconds = loop.time() - began
            await self._read_all()  # now: that all nodes leave at the end is no part of the world
            return self._core.job(job.id), seconds
        finally:
            living.cancel()
            await asyncio.gather(living, return_exceptions=True)
            await self._core.stop()

    async def _until_final(self, job_id: str, watch: Callable[[Job], None]) -> None:
        faults, loop = self.world.faults, asyncio.get_running_loop()
        crash, stall = faults.crash and drawn(faults.crash), faults.stall and drawn(faults.stall)
        while True:
            dies_at = loop.time() + crash(self._chance) if crash else inf
            stands_still_at = loop.time() + stall(self._chance) if stall else inf
            first = min(dies_at, stands_still_at)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(None if first == inf else first):
                    return await self._follow(job_id, watch)
            await (self._crash() if dies_at <= stands_still_at else self._stall())

    async def _follow(self, job_id: str, watch: Callable[[Job], None]) -> None:
        job = self._core.job(job_id)
        while not job.final:
            seen = len(job.past)
            job = await self._core.wait_for(job_id, lambda job, seen=seen: job.final or len(job.past) > seen)  # type: ignore[misc]
            if len(job.past) > seen:
                watch(job)
        await self._core.wait_final(job_id)

    # -- the coordinator ---------------------------------------------------------------------------------

    async def _up(self) -> None:
        """A coordinator starts, and owns the log from now on."""
        loop, world = asyncio.get_running_loop(), self.world
        self._owners += 1
        disk = self._disk = Disk(drawn(world.faults.disk), self._chance, self._owners)
        ahead = MIDNIGHT + world.start + drawn(world.faults.skew)(self._chance)
        fabric = self._fabric = LocalFabric(
            lambda node, secret: core.members.authenticate(node, secret),
            self._blobs,
            limit=lambda node: core.access.update_limit(node),
            heartbeat=world.heartbeat,
        )
        reached, relayed = self.replicas.joined(self._owners, fabric, lambda: core)
        core = self._core = Coordinator(
            event_log=SlowLog(self._log, disk, lambda: self._owners),
            blobs=SlowBlobs(self._blobs, disk),
            fabric=reached,
            summing=relayed,
            workbench=Bench(ThisProcess()),
            known_schema=known_schema,
            clock=lambda: ahead + loop.time(),
        )
        await core.start()
        self.replicas.begin(core, fabric)

    def _connect_all(self, fabric: LocalFabric | None) -> None:
        """Let the nodes' next tries find this coordinator, or none; those that are at relays stay there."""
        before, self.replicas.owners = self.replicas.owners, fabric
        if fabric is None and before is not None:
            self.replicas.cut(before)
        for link in self._links.values():
            link.fabric = fabric
            if fabric is None:
                link.drop()

    async def _crash(self) -> None:
        """It is killed, and comes back."""
        self.crashes += 1
        self._disk.killed = True
        self._connect_all(None)
        await self._core.stop()
        await asyncio.sleep(drawn(self.world.faults.outage)(self._chance))
        await self._up()
        self._connect_all(self._fabric)

    async def _stall(self) -> None:
        """It is cut off from its log; another one takes over, while it still speaks with the nodes; then it ends."""
        self.stalls += 1
        faults, disk, core = self.world.faults, self._disk, self._core
        disk.answers.clear()
        await asyncio.sleep(drawn(faults.outage)(self._chance))
        asyncio.get_running_loop().call_soon(disk.answers.set)  # just when the other has read the log
        await self._up()
        await asyncio.sleep(drawn(faults.overlap)(self._chance))
        disk.killed = True
        self._connect_all(None)
        await core.stop()
        self._connect_all(self._fabric)

    # -- the nodes ---------------------------------------------------------------------------------------

    async def _admit(self) -> None:
        """Every node joins, as it would with a link."""
        world, loop = self.world, asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        invite = register.IssueInvite(
            token=fingerprint(TOKEN), uses=world.nodes, expires=self._core.clock() + world.longest, by="world"
        )
        await self._core.journal.nodes(invite)
        place = Place(
            connect=self._connect,
            leave=self._leave,
            cut=self._cut,
            secret=_secret,
            spend=loop.spend,
            clock=loop.time,
            folder=self._folder / "nodes",
        )
        given = zip(profiles(world), data_of(world), strict=True)
        self.nodes = [WorldNode(world, number, *each, place) for number, each in enumerate(given, start=1)]
        for node in self.nodes:
            await self._core.members.admit(TOKEN, node.name, _secret(node.name))

    def _connect(self, node: NodeId) -> Link:
        if self.world.relays:
            return self.replicas.link()
        link = self._links[node] = LocalLink(None if self._disk.killed else self._fabric)
        return link

    async def _leave(self, link: Link, goodbye: bool) -> None:
        assert isinstance(link, LocalLink)
        link.close() if goodbye else link.drop()

    def _cut(self, link: Link) -> None:
        assert isinstance(link, LocalLink)
        link.drop()

    # -- what happened -----------------------------------------------------------------------------------

    async def _read_all(self) -> None:
        offset = 0
        while batch := await self._log.read(offset, limit=READ):
            self.recorded += batch
            offset = batch[-1].offset


def _secret(node: NodeId) -> str:
    return f"secret of {node}"
