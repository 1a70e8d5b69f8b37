"""What deaths cost a ring: eight real processes, `kill -9`, and what came of it.

    python bench/ring_faults.py [--trials 5] [--members 8] [--only leader,worker] [--json]
    python bench/ring_faults.py --simulated 1000

A job trains while a process is killed in the middle of a round. `extra` is how much longer the round took in which it
happened than the rounds before, in seconds: median and most of all trials, beside the limit. `resent` are bytes of
updates that nodes sent when they handed in again what was handed in before. Then in how many trials what must be so was
so.
`done`: the job had all its rounds, and its model could be fetched. `equal`: on the disk of every member there is one
chain, with one model for each round. `once`: in every round of it each update that counts was accepted once, with the
weight that counts. `stopped`: those that were cut off agreed on nothing meanwhile.

`large` kills the leader when all updates but one are in, each of 400 KB, and lets the last node go on at the same time;
nothing is learnt, so `extra` is the whole time from the death to the end of the round.

`cut` puts two members into a network namespace, and loses every packet to and from it for eight seconds; they go on
running (needs root). `frozen` stops the processes of the leader and of another of the committee (SIGSTOP): they
notice nothing until they go on.

Ends with 1 if in any trial something was not so, if a median is beyond its limit, or if after a leader's death a node
sent an update again.
"""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from _common import show
from _ring import Ring, free_port, until
from tutti.adapters.chains.sqlite import SqliteChain
from tutti.adapters.logs.chain import events_of
from tutti.apps.nodes import load_data
from tutti.apps.ringclient import RingClient
from tutti.core.registry import Choice
from tutti.domain import events as e
from tutti.domain.spec import load_spec
from tutti.ports.training import Data
from tutti.ring.record import Record
from tutti.services.views.ring import RingView

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "property")]
from support.badlink import BadLink, bad_link, why_not  # noqa: E402
from support.gated import GATE, installed, open_gate, rows  # noqa: E402

LETTER = TESTS.parent.parent / "shared" / "data" / "letter"
ROUNDS = 8
FAULT_IN = 4
GRACE = 0.5
FLOATS = 100_000
EPOCHS = 3
ROWS = 400
"""Of each member, where nothing is learnt: so many that all get some."""


@dataclass
class Bench:
    ring: Ring
    client: RingClient
    addresses: list[str]
    dataset: str
    link: BadLink | None = None
    stopped: bool | None = None

    async def until(self, condition: Callable[[list[RingView]], bool]) -> list[RingView]:
        return await until(self.client, condition)

    async def whole(self) -> list[RingView]:
        """Until everybody is there, with data, and connected to the leader."""
        count = len(self.addresses)
        return await self.until(
            lambda views: (
                len(views) == count
                and all(len(view.roster) == count for view in views)
                and any(
                    view.holders.get(self.dataset, 0) == sum(view.parts_owned > 0 for view in views) for view in views
                )
            )
        )

    async def job(self, seed: int, model: str = "mlp", rounds: int = ROUNDS) -> str:
        spec = {
            "name": "faults",
            "dataset": self.dataset,
            "model": model,
            "rounds": rounds,
            "seed": seed,
            "training": {"epochs": EPOCHS, "batch_size": 32},
            "evaluation": {"nodes": False},
            "cohort": {"min_nodes": 5, "quorum": 1, "grace": GRACE},
        }
        return await self.client.submit(load_spec(spec))

    def gate(self, address: str) -> Path:
        return self.ring.folder / f"{address.rpartition(':')[2]}.gate"


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
    bench.client = RingClient(bench.ring.address)


async def two(bench: Bench, views: list[RingView]) -> None:
    first = leader_of(views)
    bench.ring.kill(first, next(address for address in views[0].committee if address != first))


async def frozen(bench: Bench, views: list[RingView]) -> None:
    """The leader and another of the committee stand still for five seconds."""
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


async def cut(bench: Bench, views: list[RingView]) -> None:
    """The members in the namespace are cut off for eight seconds, and go on running."""
    assert bench.link is not None
    bench.link.loss = 1.0
    await asyncio.sleep(1.0)  # what was on its way may still be agreed on
    away = [address for address in bench.addresses if address.rpartition(":")[0] in bench.ring.inside]
    before = {address: len(records_of(bench.ring, address)) for address in away}
    await asyncio.sleep(7.0)
    bench.stopped = all(len(records_of(bench.ring, address)) == before[address] for address in away)
    bench.link.loss = 0.0


FAULTS: dict[str, Fault] = {
    fault.__name__: fault for fault in (nothing, worker, leader, supernode, client, two, frozen, joins, cut)
}
NAMES = [*FAULTS, "large"]
LIMITS = {"worker": 1.0, "leader": 2.0, "large": 2.0, "supernode": 0.5, "client": 0.5}
"""Seconds that a death may cost; a supernode and a client cost nothing, but rounds differ by themselves."""


async def struck(bench: Bench, name: str, seed: int, views: list[RingView]) -> tuple[str, float, float]:
    """A job during which this happens: its id, what its rounds took before, and how much longer that one took."""
    if name == "joins":
        order = views[0].committee
        bench.ring.kill(next(address for address in bench.addresses if address not in order))
        await bench.until(lambda views: len(views) == len(bench.addresses) - 1)
    job = await bench.job(seed)

    def reached(views: list[RingView]) -> bool:
        return any(j.id == job and j.rounds_done >= FAULT_IN for view in views for j in view.jobs)

    views = await bench.until(reached)
    await asyncio.sleep(0.1)
    at = time.time()
    await FAULTS[name](bench, views)
    if "supernode" not in bench.ring.processes and name != "supernode":
        bench.ring.supernode()
    closed = await closed_rounds(bench, job)
    spans = [b - a for a, b in pairwise(closed)]
    normal = median(spans[: FAULT_IN - 1])
    first = next((number for number, end in enumerate(closed) if number and end > at), len(closed) - 1)
    return job, normal, spans[first - 1] - normal


async def all_but_one_in(bench: Bench, seed: int, views: list[RingView]) -> tuple[str, float, float]:
    """The leader dies when all updates but one are in, which are large; likewise."""
    worker = next(address for address in bench.addresses if address not in views[0].committee)
    os.mkfifo(bench.gate(worker))
    before, size = {view.address: view.sent_bytes for view in views}, 4 * FLOATS
    job = await bench.job(seed, f"gated:floats={FLOATS}", 1)
    views = await bench.until(
        lambda views: all(view.sent_bytes - before[view.address] > 2 * size or view.address == worker for view in views)
    )
    at = time.time()
    bench.ring.kill(leader_of(views))
    open_gate(bench.gate(worker))
    (end,) = await closed_rounds(bench, job)
    return job, 0.0, end - at


async def closed_rounds(bench: Bench, job: str) -> list[float]:
    """When each of the job's rounds was closed, at its end."""
    async for _, rounds in bench.client.follow(job):  # noqa: B007 - the last one is wanted
        pass
    return [each.closed_at for each in rounds if each.status == "closed" and each.task == "train" and each.closed_at]


async def trial(bench: Bench, name: str, seed: int) -> dict[str, object]:
    views = await bench.whole()
    do = all_but_one_in(bench, seed, views) if name == "large" else struck(bench, name, seed, views)
    job, normal, extra = await do
    final, _ = await bench.client.progress(job)
    await bench.client.model(final.model_digest)
    if "supernode" not in bench.ring.processes:
        bench.ring.supernode()
    for address in bench.addresses:
        if address not in bench.ring.processes:
            bench.ring.member(address)
    views = await bench.whole()
    for _ in range(100):  # until nobody is behind; if somebody stays so, they are not equal
        chains = [records_of(bench.ring, address) for address in bench.addresses]
        equal = len({tuple(record.digest for record in chain) for chain in chains}) == 1
        if equal:
            break
        await asyncio.sleep(0.2)
    stopped, bench.stopped = bench.stopped, None
    return {
        "fault": name,
        "round s": normal,
        "extra s": extra,
        "resent": sum(view.resent_bytes for view in views),
        "done": final.status == "completed" and final.rounds_done == final.rounds,
        "equal": equal,
        "once": all(map(counted_once, chains)),
        "stopped": stopped,
    }


def records_of(ring: Ring, address: str) -> list[Record]:
    """The chain on a member's own disk."""
    store = SqliteChain(ring.folder / address.rpartition(":")[2] / "chain.sqlite")
    try:
        return list(store.load()[0])
    finally:
        store.close()


def counted_once(records: list[Record]) -> bool:
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


def summary(trials: list[dict[str, Any]], name: str) -> dict[str, object]:
    mine = [trial for trial in trials if trial["fault"] == name]
    extras = [trial["extra s"] for trial in mine]

    def share(what: str) -> str:
        known = [trial[what] for trial in mine if trial[what] is not None]
        return f"{sum(known)} of {len(known)}" if known else "-"

    return {
        "fault": name,
        "trials": len(mine),
        "round s": round(median(trial["round s"] for trial in mine), 2),
        "extra s": round(median(extras), 2),
        "most": round(max(extras), 2),
        "limit": LIMITS.get(name, "-"),
        "resent": max(trial["resent"] for trial in mine),
        **{what: share(what) for what in ("done", "equal", "once", "stopped")},
    }


def failed(trials: list[dict[str, Any]], table: list[dict[str, Any]]) -> bool:
    wrong = any(trial[what] is False for trial in trials for what in ("done", "equal", "once", "stopped"))
    again = any(trial["resent"] for trial in trials if trial["fault"] in ("leader", "large"))
    return wrong or again or any(row["limit"] != "-" and row["extra s"] > row["limit"] for row in table)


async def run(
    trials: int, members: int, only: list[str], data: Data, link: BadLink | None = None
) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        ring = Ring(Path(folder), environment={**os.environ, **installed(Path(folder))})
        hosts = [ring.host] * members
        if link is not None:
            ring.host, there = link.here, f"{link.here.rpartition('.')[0]}.2"
            ring.inside = {there: link.inside}
            hosts = [*[link.here] * (members - 2), there, there]
        ring.supernode()
        addresses = [f"{host}:{free_port()}" for host in hosts]
        client = RingClient(ring.address)
        bench = Bench(ring, client, addresses, data.name, link)
        ring.own = lambda address: {GATE: str(bench.gate(address))}
        try:
            for address in addresses:
                ring.member(address)
            await bench.until(
                lambda views: all(len(view.roster) == members for view in views) and len(views) == members
            )
            await client.place(data)
            results = []
            for seed, name in enumerate(only * trials):
                results.append(await trial(bench, name, seed))
                print(results[-1], file=sys.stderr, flush=True)
            return results
        finally:
            await bench.client.close()
            ring.stop()


def simulated(schedules: int) -> list[dict[str, object]]:
    """Random schedules of crashes, cuts, losses, delays and duplicates on virtual time (tests/property)."""
    from test_consensus import check, faulty

    wrong, again = [], 0
    for seed in range(schedules):
        try:
            world = faulty(seed)
            check(world)
            again += seed % 100 == 0 and faulty(seed).trace == world.trace
        except AssertionError as error:
            wrong.append(f"{seed}: {error}")
    traces = f"{again} of {len(range(0, schedules, 100))}"
    return [{"schedules": schedules, "failed": len(wrong), "first": wrong[0] if wrong else "-", "same trace": traces}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--only", default=",".join(NAMES))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--simulated", type=int, metavar="SCHEDULES", help="on virtual time instead, so many")
    options = parser.parse_args()
    if options.simulated:
        table = simulated(options.simulated)
        show(table, as_json=options.json, notes={})
        sys.exit(1 if table[0]["failed"] else 0)
    names = options.only.split(",")
    source = f"letter:path={LETTER},held_out=0" if LETTER.exists() else "digits:held_out=0"
    letters, notes, trials = load_data(Choice.parse(source)), {"load": os.getloadavg()[0]}, []
    if usual := [name for name in names if name not in ("cut", "large")]:
        trials += asyncio.run(run(options.trials, options.members, usual, letters))
    if "large" in names:
        trials += asyncio.run(run(options.trials, options.members, ["large"], rows(ROWS * options.members)))
    if "cut" in names and (reason := why_not()) is not None:
        notes["cut"] = f"not tried: {reason}"
    elif "cut" in names:
        with bad_link() as link:
            trials += asyncio.run(run(options.trials, options.members, ["cut"], letters, link))
    table = [summary(trials, name) for name in names if any(trial["fault"] == name for trial in trials)]
    show(table, as_json=options.json, notes=notes)
    sys.exit(1 if failed(trials, table) else 0)


if __name__ == "__main__":
    main()
