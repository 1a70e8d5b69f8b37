"""A world's nodes for a real coordinator: real links and real time, as slow and as faulty as the world file says."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tutti.adapters.fabrics.hub_link import HubLink
from tutti.apps.nodes import NodeSettings, membership, sole_use
from tutti.ports.fabric import Link
from tutti.sim.worlds.data import data_of
from tutti.sim.worlds.node import Place, WorldNode, live_together, profiles
from tutti.sim.worlds.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSettings:
    """What `tutti world join` needs to know; `numbers` says which of the world's nodes live here."""

    world: World
    link: str
    numbers: range
    state_dir: Path


async def run_world(settings: WorldSettings, on_ready: Callable[[], None]) -> None:
    """Join (once) and live until cancelled, or until the last window of the last node is over.

    Raises UserError or LinkRefused with the reason if that cannot be.
    """
    world, state_dir = settings.world, settings.state_dir
    with sole_use(state_dir):
        data = await asyncio.to_thread(lambda: list(data_of(world)))
        members = {}
        for name in map(world.name, settings.numbers):
            wanted = NodeSettings(link=settings.link, data=world.data, name=name, state_dir=state_dir / name)
            wanted.state_dir.mkdir(exist_ok=True)
            members[name] = await membership(wanted)
        place = Place(
            connect=lambda name: HubLink(members[name].url, name, members[name].secret),
            leave=_leave,
            cut=_cut,
            secret=lambda name: members[name].secret,
            spend=time.sleep,
            clock=time.perf_counter,
            folder=state_dir,
        )
        given = profiles(world)
        nodes = [WorldNode(world, n, given[n - 1], data[n - 1], place) for n in settings.numbers]
        on_ready()
        await live_together(nodes)


async def _leave(link: Link, goodbye: bool) -> None:
    assert isinstance(link, HubLink)
    if not goodbye:
        link.drop()
    await link.close()


def _cut(link: Link) -> None:
    assert isinstance(link, HubLink)
    link.drop()
