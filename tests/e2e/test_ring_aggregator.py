"""The leader is killed when all updates but one are in: nobody sends one again, though they are large."""

import asyncio
import os
from contextlib import ExitStack
from pathlib import Path
from signal import SIGKILL

from support.commands import running
from support.gated import GATE, gated, installed, open_gate, rows
from support.ports import free_port
from support.ring_processes import Ring
from tutti.adapters.fabrics.ring import SMALL, copies
from tutti.apps.ringclient import RingClient
from tutti.domain.spec import load_spec
from tutti.services.views.ring import RingView
from tutti.wire import tensors

MEMBERS, ROWS, FLOATS = 6, 2400, 100_000
JOB = load_spec(
    {
        "name": "large",
        "dataset": "gated",
        "model": f"gated:floats={FLOATS}",
        "rounds": 1,
        "evaluation": {"nodes": False},
        "cohort": {"min_nodes": MEMBERS - 1, "grace": 0.5},
    }
)


def sent(views: list[RingView]) -> dict[str, int]:
    return {view.address: view.sent_bytes for view in views}


def test_a_leader_that_dies_in_the_middle_of_a_round_costs_nobody_an_upload(tmp_path: Path):
    with ExitStack() as stack:
        port = free_port()
        supernode = stack.enter_context(running("ring", "supernode", "--port", port, cwd=tmp_path))
        ring, environment = Ring(tmp_path, stack, port, supernode), installed(tmp_path)
        for _ in range(MEMBERS):
            own = free_port()
            ring.start(own, **environment, **{GATE: str(tmp_path / f"{own}.gate")})
        views = ring.until_all_are_there()
        order = views[0].committee
        (worker,) = set(ring.members) - set(order)  # of six, five decide
        gate = tmp_path / f"{worker.rpartition(':')[2]}.gate"
        os.mkfifo(gate)
        asyncio.run(through_a_death(ring, order, worker, gate))


async def through_a_death(ring: Ring, order: tuple[str, ...], worker: str, gate: Path) -> None:
    client = RingClient(f"127.0.0.1:{ring.port}")
    try:
        await client.place(rows(ROWS))
        await client.until_held("gated", MEMBERS)
        job = await client.submit(JOB)
        size = len(tensors.encode(gated(FLOATS, data=JOB).init(0)))
        count = copies(size, order)
        assert (size > SMALL, count) == (True, 3)
        given = {address: size * (count - (address in order[:count])) for address in ring.members} | {worker: 0}
        await ring.until(lambda views: sent(views) == given)
        ring.members.pop(order[0]).end(SIGKILL)
        open_gate(gate)
        async for view, rounds in client.follow(job):  # noqa: B007 - the last one is wanted
            pass
        assert view.status == "completed", view.reason
        assert [each.counted for each in rounds if each.status == "closed" and each.task == "train"] == [MEMBERS - 1]
        alive = await ring.until(lambda views: len(views) == MEMBERS - 1 and len({view.digest for view in views}) == 1)
        del given[order[0]]
        assert sent(alive) == given | {worker: size * count}
        assert sum(view.resent_bytes for view in alive) == 0
        assert {each.model_digest for view in alive for each in view.jobs} == {view.model_digest}
    finally:
        await client.close()
