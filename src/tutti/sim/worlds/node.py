"""One node of a world: the real runtime, living by its windows, on its machine, over its link, with its faults."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path

from tutti.core.registry import Choice
from tutti.domain.events import NodeId
from tutti.domain.nodes import Capabilities
from tutti.domain.policy import Policy
from tutti.domain.spec import DataSchema
from tutti.ports.fabric import Link, LinkRefused
from tutti.ports.machine import Load
from tutti.ports.training import Data, Examples, Trainer, models
from tutti.services.node import NodeRuntime
from tutti.sim.worlds.attacks import attacks
from tutti.sim.worlds.availability import Windows, traces
from tutti.sim.worlds.distributions import drawn
from tutti.sim.worlds.network import WorldLink
from tutti.sim.worlds.trainers import Bad, Idle, Paced
from tutti.sim.worlds.world import Purpose, World, rng_for
from tutti.version import __version__
from tutti.wire.messages import Start


@dataclass(frozen=True, slots=True)
class Profile:
    """What a world gave one node: examples a second, bytes a second, bytes of memory."""

    speed: float
    up: float
    down: float
    memory: int
    bad: bool


def profiles(world: World) -> list[Profile]:
    """Of every node, in order of their numbers; the same whatever else is drawn."""
    order = rng_for(world, Purpose.BYZANTINE).permutation(world.nodes)
    bad = set(order[: round(world.byzantine.share * world.nodes)].tolist())
    machine, network = world.machine, world.network
    draws = [drawn(choice) for choice in (machine.speed, network.up, network.down, machine.memory)]
    found = []
    for index in range(world.nodes):
        rng = rng_for(world, Purpose.MACHINE, index + 1)
        speed, up, down, memory = (max(1e-9, draw(rng)) for draw in draws)
        found.append(Profile(speed, up, down, int(memory), index in bad))
    return found


class Simulated:
    """ports.machine.Host of a node that shares its machine with the others."""

    def __init__(self, memory: int) -> None:
        self._memory = memory

    def capabilities(self) -> Capabilities:
        return Capabilities(cpus=1, memory=self._memory, platform="simulated", versions={"tutti": __version__})

    def load(self) -> Load:
        return Load(cpu=0.0, memory=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What differs between simulation and deployment.

    Attributes:
        connect: A link for one stay of a node.
        leave: Ends a stay: with a goodbye (True), or as a process that dies.
        cut: Loses the connection; the link may connect again.
        spend: Lets seconds pass in a training thread; `clock` reads them there.
        folder: For what nodes keep; it survives their deaths.
    """

    connect: Callable[[NodeId], Link]
    leave: Callable[[Link, bool], Awaitable[None]]
    cut: Callable[[Link], None]
    secret: Callable[[NodeId], str]
    spend: Callable[[float], None]
    clock: Callable[[], float]
    folder: Path


class WorldNode:
    """Comes and goes with its windows; within them it may die in the middle of a task, and come back."""

    def __init__(self, world: World, number: int, profile: Profile, data: Data, place: Place) -> None:
        self.name = world.name(number)
        self.deaths = 0
        self._world, self._number, self._profile, self._place = world, number, profile, place
        self._data = _poisoned(data, world, number) if profile.bad else data
        self._messages = rng_for(world, Purpose.MESSAGES, number)
        self._tasks = rng_for(world, Purpose.TASKS, number)
        self._latency, self._away, self._jitter = map(
            drawn, (world.network.latency, world.faults.away, world.machine.jitter)
        )
        self._cut = drawn(world.network.cut) if world.network.cut else None
        self._met: set[tuple[str, int, int]] = set()
        self._limit: asyncio.Timeout | None = None
        self._link: Link | None = None
        self._timers: list[asyncio.TimerHandle] = []

    async def live(self) -> None:
        """To the end of its last window; raises LinkRefused if the coordinator does not want it."""
        loop = asyncio.get_running_loop()
        origin = loop.time() - self._world.start
        for begins, ends in self._windows():
            if origin + ends <= loop.time():
                continue
            await asyncio.sleep(origin + begins - loop.time())
            while loop.time() < origin + ends:
                if not await self._stay(origin + ends):
                    break
                await asyncio.sleep(self._away(self._tasks))

    def _windows(self) -> Windows:
        rng = rng_for(self._world, Purpose.AVAILABILITY, self._number)
        return traces.build(self._world.availability)(self._number, rng)

    async def _stay(self, until: float) -> bool:
        """One life of the node's process; True if it died before `until`."""
        link, deaths = self._place.connect(self.name), self.deaths
        self._link = link
        try:
            async with asyncio.timeout_at(None if until == inf else until) as self._limit:
                self._cut_later(link)
                await self._runtime(link).run()
        except TimeoutError:
            pass
        finally:
            self._limit = None
            for timer in self._timers:
                timer.cancel()
            self._timers.clear()
            await self._place.leave(link, self.deaths == deaths)
        return self.deaths > deaths

    def _runtime(self, link: Link) -> NodeRuntime:
        profile, world = self._profile, self._world
        slow = WorldLink(
            link,
            self._messages,
            latency=self._latency,
            up=profile.up,
            down=profile.down,
            duplicate=world.network.duplicate,
            on_start=self._on_start,
        )
        return NodeRuntime(
            name=self.name,
            token=self._place.secret(self.name),
            link=slow,
            data=self._data,
            policy=Policy(),
            machine=Simulated(profile.memory),
            workdir=self._place.folder / self.name,
            trainer_for=self._trainer,
            clock=self._place.clock,
        )

    def _trainer(self, model: Choice, schema: DataSchema) -> Trainer:
        build = partial(models.build, model, data=schema)
        trainer: Trainer = build() if self._world.train else Idle(build)
        if self._profile.bad:
            trainer = Bad(trainer, attacks.build(self._world.byzantine.attack))
        return Paced(trainer, self._profile.speed, self._jitter_of, self._place.spend, self._place.clock)

    def _jitter_of(self, seed: int) -> float:
        return self._jitter(rng_for(self._world, Purpose.TASKS, self._number, seed, 0))

    # -- faults ------------------------------------------------------------------------------------------

    def _on_start(self, start: Start) -> None:
        """A task is about to arrive: perhaps the node will die of it, once."""
        task = (start.job, start.round, start.attempt)
        if task in self._met or not self._world.faults.drop_out:
            return
        self._met.add(task)
        rng = rng_for(self._world, Purpose.TASKS, self._number, start.seed, 1 + start.attempt)
        if rng.random() < self._world.faults.drop_out:
            seconds = rng.random() * len(self._data.train) * start.training.epochs / self._profile.speed
            self._later(seconds, self._die)

    def _die(self) -> None:
        if self._limit is not None and not self._limit.expired():
            self.deaths += 1
            if self._link is not None:
                self._place.cut(self._link)
            self._limit.reschedule(asyncio.get_running_loop().time())

    def _cut_later(self, link: Link) -> None:
        if self._cut is None:
            return

        def cut() -> None:
            self._place.cut(link)
            self._cut_later(link)

        self._later(self._cut(self._messages), cut)

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self._timers = [timer for timer in self._timers if timer.when() > loop.time()]
        self._timers.append(loop.call_later(seconds, what))


def _poisoned(data: Data, world: World, number: int) -> Data:
    attack = attacks.build(world.byzantine.attack)
    rows: Examples = attack.poison(data.train, rng_for(world, Purpose.BYZANTINE, number))
    return Data(data.name, data.schema, rows, data.held_out)


async def live_together(nodes: list[WorldNode]) -> None:
    """All of them, until cancelled; the first that is refused ends it, with the reason."""
    try:
        async with asyncio.TaskGroup() as group:
            for node in nodes:
                group.create_task(node.live())
    except BaseExceptionGroup as failed:
        refused, _ = failed.split(LinkRefused)
        raise (refused or failed).exceptions[0] from None
