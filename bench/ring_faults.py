"""What deaths cost a ring: eight real processes, `kill -9`, and what came of it.

    python bench/ring_faults.py [--trials 1] [--members 8] [--only leader,worker] [--json]
    python bench/ring_faults.py --simulated 1000

A job trains while a process is killed in the middle of a round. `extra` is how much longer the round took in which it
happened than the rounds before, in seconds; `resent` are bytes of updates that a node sent again to a member that had
been given them. `equal`: all members end with one chain and one model. `once`: in every round of every member's
chain, each update that counts was accepted once, with the weight that counts.
"""

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from _common import show
from _ring import Ring, free_port, until
from tutti.adapters.chains.sqlite import SqliteChain
from tutti.adapters.logs.chain import events_of
from tutti.apps.nodes import load_data
from tutti.apps.ringclient import RingClient
from tutti.core.registry import Choice
from tutti.domain import events as e
from tutti.domain.spec import load_spec
from tutti.services.views.ring import RingView

TESTS = Path(__file__).resolve().parent.parent / "tests"
LETTER = TESTS.parent.parent / "shared" / "data" / "letter"
ROUNDS = 8
FAULT_IN = 4
GRACE = 0.5


@dataclass
class Bench:
    ring: Ring
    client: RingClient
    addresses: list[str]
    dataset: str

    async def until(self, condition: Callable[[list[RingView]], bool]) -> list[RingView]:
        return await until(self.client, condition)

    async def whole(self) -> list[RingView]:
        """Until everybody is there, with data, and connected to the leader."""
        count = len(self.addresses)
        return await self.until(
            lambda views: (
                len(views) == count
                and len({view.digest for view in views}) == 1
                and all(len(view.roster) == count for view in views)
                and any(
                    view.holders.get(self.dataset, 0) == sum(view.parts_owned > 0 for view in views) for view in views
                )
            )
        )

    async def job(self, seed: int, epochs: int) -> str:
        spec = {
            "name": "faults",
            "dataset": self.dataset,
            "model": "mlp",
            "rounds": ROUNDS,
            "seed": seed,
            "training": {"epochs": epochs, "batch_size": 32},
            "evaluation": {"nodes": False},
            "cohort": {"min_nodes": 5, "quorum": 1, "grace": GRACE},
        }
        return await self.client.submit(load_spec(spec))


def leader_of(views: list[RingView]) -> str:
    return next(view.leader for view in views if view.leader == view.address)


Fault = Callable[[Bench, list[RingView]], Awaitable[None]]


async def nothing(bench: Bench, views: list[RingView]) -> None:
    """No fault: what the measuring itself shows."""


async def worker(bench: Bench, views: list[RingView]) -> None:
    order = views[0].committee
    bench.ring.kill(next(address for address in bench.addresses if address not in order))


async def leader(bench: Bench, views: list[RingView]) -> None:
    bench.ring.kill(leader_of(views))


async def supernode(bench: Bench, views: list[RingView]) -> None:
    bench.ring.kill("supernode")


async def client(bench: Bench, views: list[RingView]) -> None:
    """Everything that this client holds is gone; another one fetches the result."""
    await bench.client.close()
    bench.client = RingClient(f"127.0.0.1:{bench.ring.port}")


async def two(bench: Bench, views: list[RingView]) -> None:
    first = leader_of(views)
    bench.ring.kill(first, next(address for address in views[0].committee if address != first))


async def minority(bench: Bench, views: list[RingView]) -> None:
    """The leader and another of the committee are cut off for five seconds (stopped, so that nobody hears them)."""
    cut = [leader_of(views), next(address for address in views[0].committee if address != leader_of(views))]
    for address in cut:
        bench.ring.processes[address].send_signal(signal.SIGSTOP)
    await asyncio.sleep(5.0)
    for address in cut:
        bench.ring.processes[address].send_signal(signal.SIGCONT)


async def joins(bench: Bench, views: list[RingView]) -> None:
    """One that was away comes back in the middle of the run, and catches up."""
    away = next(address for address in bench.addresses if address not in bench.ring.processes)
    bench.ring.member(away)


FAULTS: dict[str, Fault] = {
    fault.__name__: fault for fault in (nothing, worker, leader, supernode, client, two, minority, joins)
}


async def trial(bench: Bench, name: str, seed: int, epochs: int) -> dict[str, object]:
    views = await bench.whole()
    if name == "joins":
        order = views[0].committee
        bench.ring.kill(next(address for address in bench.addresses if address not in order))
        await bench.until(lambda views: len(views) == len(bench.addresses) - 1)
    job = await bench.job(seed, epochs)

    def reached(views: list[RingView]) -> bool:
        return any(j.id == job and j.rounds_done >= FAULT_IN for view in views for j in view.jobs)

    views = await bench.until(reached)
    await asyncio.sleep(0.1)
    at = time.time()
    await FAULTS[name](bench, views)
    if "supernode" not in bench.ring.processes and name != "supernode":
        bench.ring.supernode()
    async for final, rounds in bench.client.follow(job):  # noqa: B007 - the last one is wanted
        pass
    closed = [each for each in rounds if each.status == "closed" and each.task == "train" and each.closed_at]
    spans = [b.closed_at - a.closed_at for a, b in pairwise(closed)]
    normal = median(spans[: FAULT_IN - 1])
    struck = next((b for a, b in pairwise(closed) if b.closed_at > at), closed[-1])
    before = closed[closed.index(struck) - 1]
    if "supernode" not in bench.ring.processes:
        bench.ring.supernode()
    for address in bench.addresses:
        if address not in bench.ring.processes:
            bench.ring.member(address)
    views = await bench.whole()
    models = {j.model_digest for view in views for j in view.jobs if j.id == job}
    return {
        "trial": name,
        "round s": round(normal, 2),
        "extra s": round(struck.closed_at - before.closed_at - normal, 2),
        "resent": sum(view.resent_bytes for view in views),
        "rounds": final.rounds_done,
        "done": final.status,
        "equal": len(models) == 1 and len({view.digest for view in views}) == 1,
        "once": all(counted_once(bench.ring.folder / address.rpartition(":")[2]) for address in bench.addresses),
    }


def counted_once(state: Path) -> bool:
    """From the chain on a member's own disk."""
    store = SqliteChain(state / "chain.sqlite")
    records, _ = store.load()
    store.close()
    accepted: dict[str, dict[str, int]] = {}
    for stream, event in (pair for record in records for pair in events_of(record)):
        match event:
            case e.RoundOpened():
                accepted[stream] = {}
            case e.UpdateAccepted(node=node, weight=weight):
                if node in accepted[stream]:
                    return False
                accepted[stream][node] = weight
            case e.RoundClosed(counted=counted) if counted != accepted[stream]:
                return False
    return True


async def run(trials: int, members: int, only: list[str]) -> list[dict[str, object]]:
    source = f"letter:path={LETTER},held_out=0" if LETTER.exists() else "digits:held_out=0"
    data = await asyncio.to_thread(load_data, Choice.parse(source))
    with tempfile.TemporaryDirectory() as folder:
        ring = Ring(Path(folder))
        ring.supernode()
        addresses = [f"127.0.0.1:{free_port()}" for _ in range(members)]
        client = RingClient(f"127.0.0.1:{ring.port}")
        bench = Bench(ring, client, addresses, data.name)
        try:
            for address in addresses:
                ring.member(address)
            await bench.until(
                lambda views: all(len(view.roster) == members for view in views) and len(views) == members
            )
            await client.place(data)
            names = only * trials
            return [await trial(bench, name, seed, 3) for seed, name in enumerate(names)]
        finally:
            await bench.client.close()
            ring.stop()


def simulated(schedules: int) -> list[dict[str, object]]:
    """Random schedules of crashes, cuts, losses, delays and duplicates on virtual time (tests/property)."""
    sys.path[:0] = [str(TESTS), str(TESTS / "property")]
    from test_consensus import check, faulty

    failed = []
    for seed in range(schedules):
        try:
            check(faulty(seed))
        except AssertionError as error:
            failed.append(f"{seed}: {error}")
    again = faulty(0).trace == faulty(0).trace
    return [{"schedules": schedules, "failed": len(failed), "first": failed[0] if failed else "-", "same trace": again}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--only", default=",".join(FAULTS))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--simulated", type=int, metavar="SCHEDULES", help="on virtual time instead, so many")
    options = parser.parse_args()
    if options.simulated:
        results = simulated(options.simulated)
    else:
        results = asyncio.run(run(options.trials, options.members, options.only.split(",")))
    show(results, as_json=options.json, notes={})


if __name__ == "__main__":
    main()
