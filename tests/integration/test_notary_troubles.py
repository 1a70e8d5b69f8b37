"""A notary that refuses one session, whatever the reason, still records all others."""

import asyncio

import pytest

from support.worlds import DEADLINE, World, toy_spec
from tutti.core.errors import Conflict
from tutti.domain.events import NodeEquivocated
from tutti.services import notary
from tutti.services.notary import NotaryDesk


class Paper:
    """A notary that keeps what it is told, but for what it refuses."""

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.opened: list[str] = []

    async def open_session(self, job: str, spec: str, data: str, rounds: int) -> None:
        if job in self.refused:
            raise Conflict(f"{job} is somebody else's")
        self.opened.append(job)

    async def record_round(self, job: str, round: int, root: str, count: int, model: str) -> None: ...

    async def close_session(self, job: str, model: str | None) -> None: ...

    async def accuse(self, proof: NodeEquivocated) -> None: ...


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path)
    await world.up()
    yield world
    await world.close()


async def test_a_session_that_is_refused_stops_no_other(world, monkeypatch):
    monkeypatch.setattr(notary, "RETRY_SECONDS", 0.01)
    paper = Paper()
    desk = NotaryDesk(world.core.journal, paper)
    first = await world.core.submit(toy_spec(2, rounds=1))
    paper.refused.add(first.id)
    running = asyncio.create_task(desk.run())
    second = await world.core.submit(toy_spec(2, rounds=1))
    await until(lambda: second.id in paper.opened and "somebody else's" in desk.trouble)
    assert first.id not in paper.opened
    paper.refused.clear()
    await until(lambda: first.id in paper.opened and not desk.trouble)
    running.cancel()


async def until(true) -> None:
    async with asyncio.timeout(DEADLINE):
        while not true():  # noqa: ASYNC110 - what is waited for is told to nobody
            await asyncio.sleep(0)
