"""A whole job over a broker that delivers every letter twice, late, and in any order: the model is the same."""

import asyncio
import random
from pathlib import Path

from support.services import bucket, coordinator_uid
from tutti.adapters.fabrics import amqp
from tutti.adapters.fabrics.amqp import Address
from tutti.apps.bootstrap import CoordinatorSettings, coordinator
from tutti.apps.nodes import NodeSettings, run_node
from tutti.core.registry import Choice
from tutti.domain.spec import load_spec
from tutti.wire import broker as wire

SPEC = {
    "dataset": "digits",
    "model": "linear",
    "rounds": 4,
    "seed": 7,
    "training": {"lr": 0.05, "epochs": 3},
    "cohort": {"min_nodes": 2, "grace": 120},
}


async def trained(folder: Path, address: Address, place: str) -> str:
    """The digest of the model that two nodes make."""
    settings = CoordinatorSettings(data_dir=folder, broker=f"{address.url}?coordinator={address.uid}", blobs=place)
    async with coordinator(settings, 0, "an operator's token") as (core, _), asyncio.TaskGroup() as nodes:
        token = await core.members.invite(uses=2)
        running = [
            nodes.create_task(
                run_node(
                    NodeSettings(
                        link=f"{settings.broker}#{token}",
                        data=Choice.parse(f"digits:part={i}/2"),
                        name=f"n{i}",
                        state_dir=folder / f"n{i}",
                    )
                )
            )
            for i in range(2)
        ]
        async with asyncio.timeout(60):
            job = await core.wait_final((await core.submit(load_spec(SPEC))).id)
        for node in running:
            node.cancel()
    assert (job.status, job.rounds_done) == ("completed", 4)
    return job.model


async def test_letters_that_come_twice_and_in_any_order_change_nothing(tmp_path, monkeypatch):
    plain, rng, twice = amqp.publish, random.Random(1), set[tuple[str, int]]()  # to be repeatable
    late = asyncio.TaskGroup()

    async def careless(channel, queue, letter, reply_to=None):
        if not isinstance(letter, wire.Counted):
            return await plain(channel, queue, letter, reply_to)
        twice.add((type(letter).__name__, letter.seq))
        for _ in range(2):
            late.create_task(later(rng.uniform(0, 0.05), channel, queue, letter, reply_to))

    async def later(seconds, *letter):
        await asyncio.sleep(seconds)
        try:
            await plain(*letter)
        except (amqp.Undeliverable, *amqp.BROKEN):  # the end has come meanwhile
            pass

    async with bucket(monkeypatch) as place, coordinator_uid() as one, coordinator_uid() as other:
        expected = await trained(tmp_path / "plain", one, place)
        monkeypatch.setattr(amqp, "publish", careless)
        monkeypatch.setattr("tutti.adapters.fabrics.broker_link.publish", careless)
        async with late:
            assert await trained(tmp_path / "careless", other, place) == expected
    assert len([name for name, _ in twice if name in ("Train", "Done", "Beat", "Tell")]) > 8
