"""What the coordinator does beside its jobs: it clears blobs away, bounds what one node sends, and may die of a bug."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from support.faults import Saboteur
from support.worlds import DEADLINE, SCHEMA, World, toy_spec
from tutti.adapters.fabrics.local import LocalLink
from tutti.core.params import Params
from tutti.domain import events as e
from tutti.domain.nodes import Capabilities, DataSummary
from tutti.ports.log import VersionConflict
from tutti.services import keeping
from tutti.services.inbox import SUBMISSIONS_OF_ONE
from tutti.wire import tensors
from tutti.wire.messages import PROTOCOL, CoordinatorMessage, Registration, Start, Submission, Verdict

LEFTOVER = b"an update that came late"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    await world.up()
    async with asyncio.timeout(DEADLINE):
        yield world
    await world.close()


# -- clearing away -------------------------------------------------------------------------------------


async def test_a_blob_that_nobody_refers_to_goes_at_the_second_look(world: World) -> None:
    leftover = await world.core.blobs.put(LEFTOVER)
    seen = await world.core.keeper.look_for_unneeded(set())
    assert seen == {leftover}
    assert await world.core.blobs.digests() == [leftover]
    assert await world.core.keeper.look_for_unneeded(seen) == set()
    assert await world.core.blobs.digests() == []


async def test_a_blob_that_is_pinned_stays_for_as_long_as_it_is(world: World) -> None:
    model = await world.core.blobs.put(b"a model that no event names yet")
    with world.core.keeper.pinned([model]), world.core.keeper.pinned([model]):
        seen: set[str] = set()
        for _ in range(3):
            seen = await world.core.keeper.look_for_unneeded(seen)
    assert seen == set()
    seen = await world.core.keeper.look_for_unneeded(seen)
    with world.core.keeper.pinned([model]):  # pinned between two looks
        seen = await world.core.keeper.look_for_unneeded(seen)
        assert await world.core.blobs.digests() == [model]


async def test_an_update_on_its_way_survives_a_look_and_then_counts(world: World) -> None:
    """Stored but not handed in at the first look, accepted at the second: everything that the job needs is there."""
    ada, cyd = await Raw.join(world, "ada"), await Raw.join(world, "cyd")
    job = await world.core.submit(toy_spec(nodes=2, rounds=1, evaluation={"nodes": False}))
    start, update = await ada.hear(Start), await ada.store_update(1.0)
    seen = await world.core.keeper.look_for_unneeded(set())
    assert seen == {update}
    await ada.link.send(submission(start, update))
    assert (await ada.hear(Verdict)).accepted
    for _ in range(3):
        seen = await world.core.keeper.look_for_unneeded(seen)
    assert update in await world.core.blobs.digests()
    await cyd.link.send(submission(start, await cyd.store_update(2.0)))
    job = await world.finished(job)
    assert (job.status, job.past[0].counted) == ("completed", {"ada": 3, "cyd": 3})


async def test_clearing_away_goes_on_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "SWEEP_SECONDS", 0.0)
    world = World(tmp_path)
    await world.up()
    await world.core.blobs.put(LEFTOVER)
    async with asyncio.timeout(DEADLINE):
        while await world.core.blobs.digests():  # each look at the directory takes a while
            pass
    await world.close()


# -- a node that says too much -------------------------------------------------------------------------


class Raw:
    """A node that the test speaks for."""

    def __init__(self, link: LocalLink) -> None:
        self.link = link
        self.messages: AsyncIterator[CoordinatorMessage]

    @classmethod
    async def join(cls, world: World, name: str) -> "Raw":
        raw = cls(LocalLink(world.fabric))
        secret = await world.core.members.admit(await world.core.members.invite(), name)
        data = DataSummary("toy", SCHEMA, 16, 4)
        known = Registration(protocol=PROTOCOL, node=name, token=secret, capabilities=Capabilities(), data=data)
        raw.messages = await raw.link.connect(known)
        return raw

    async def hear(self, kind):
        """The next message of that kind."""
        async for message in self.messages:
            if isinstance(message, kind):
                return message
        raise AssertionError("the connection ended")

    async def store_update(self, value: float) -> str:
        """An update whose values are all the same."""
        update = Params.from_arrays({"w": np.full(3, value, np.float32), "b": np.full(1, value, np.float32)})
        blob = tensors.encode(update)
        await self.link.store(blob, tensors.digest(blob))
        return tensors.digest(blob)


def submission(start: Start, digest: str) -> Submission:
    return Submission(
        job=start.job, round=start.round, attempt=start.attempt, digest=digest, weight=3, metrics={}, seconds=0.0
    )


async def test_a_node_that_hands_in_again_and_again_is_bounded_and_harms_nobody(tmp_path: Path) -> None:
    """While the log is slow, a few of its submissions wait, and each further one is answered at once."""
    world, saboteur, many = World(tmp_path), Saboteur("stop before"), 100
    await world.up(saboteur)
    async with asyncio.timeout(DEADLINE):
        eve = await Raw.join(world, "eve")
        await world.join("ada", 0)
        job = await world.core.submit(toy_spec(nodes=2, rounds=1, evaluation={"nodes": False}))
        start, update = await eve.hear(Start), await eve.store_update(1.0)
        await world.until(lambda job: job.round is not None and job.round.came == 1, job)  # ada's is in
        saboteur.arm(1)
        for _ in range(many):
            await eve.link.send(submission(start, update))
        turned_away = [await eve.hear(Verdict) for _ in range(many - SUBMISSIONS_OF_ONE)]
        assert {verdict.reason for verdict in turned_away} == {"4 submissions already wait for a verdict"}
        await saboteur.struck.wait()
        await world.join("bob", 1)  # others are heard meanwhile
        while (seen := world.core.presence.get("bob")) is None or not seen.connected:  # noqa: ASYNC110  # no event
            await asyncio.sleep(0)
        saboteur.let_go()
        judged = [await eve.hear(Verdict) for _ in range(SUBMISSIONS_OF_ONE)]
        assert any(verdict.accepted for verdict in judged)
        job = await world.finished(job)
        assert (job.status, job.past[0].counted) == ("completed", {"ada": 16, "eve": 3})
    await world.close()


# -- a bug ---------------------------------------------------------------------------------------------


async def test_background_work_that_dies_is_told_to_whoever_runs_the_coordinator(world: World) -> None:
    """Here of a log that somebody else writes to, so that memory and log no longer agree."""
    await world.join("ada", 0)
    async with asyncio.timeout(DEADLINE):
        async for recorded in world.core.log.follow(0):
            if any(isinstance(each.event, e.NodeConnected) for each in recorded):
                break
    *_, last = await world.core.log.read(stream="nodes")
    foreign = e.InviteIssued(at=0.0, token="of somebody else", uses=1, expires=1.0)
    await world.core.log.append("nodes", last.version, [foreign])
    await world.kill("ada")
    async with asyncio.timeout(DEADLINE):
        failure = await world.core.background.failed
    assert "start it again" in str(failure)
    assert VersionConflict.__name__ in str(failure)
    await world.down()
    await world.up()
    await world.join("ada", 0)
    assert (await world.finished(await world.core.submit(toy_spec(nodes=1, rounds=1)))).status == "completed"
