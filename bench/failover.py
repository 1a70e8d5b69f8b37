"""How long nodes are without a coordinator when its process is killed.

    python bench/failover.py [--nodes 20] [--kills 6] [--log 0]

Three `tutti up --standby --redis` behind a real nginx, with the servers of `make services`; `kill -9` of the
one that owns the database in the middle of a job whose rounds cost nothing, again and again. From the kill on: until
another is ready, until half and all of the nodes are registered again (those of relays stay connected: 0), and until
the next round closes, which takes all of them. `--log N`: with N more events in the log, which a relay has to know
before it can take over. `ratio` is of the slower of ready and all back to the 3 s that
are promised.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from _common import show
from _federation import HERE, Process, percentile, plugin, shares, submit
from tutti.adapters.logs.postgres import PostgresLog
from tutti.apps.client import Client
from tutti.domain import events as e
from tutti.services.journal import NODES

sys.path.insert(0, str(HERE.parent / "tests"))
from support.commands import ENVIRONMENT
from support.replicas import Replicas, three

HOSTS = 2
PROMISED = 3.0  # seconds
Row = dict[str, Any]


def measure(nodes: int, kills: int, log: int) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="tutti-bench-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        it = stack.enter_context(three(folder, {**ENVIRONMENT, **plugin(folder)}, prepare=lambda url: fill(url, log)))
        client = stack.enter_context(it.client())
        hosts = []
        for first, last in shares(nodes, HOSTS):
            link = client.invite(uses=last - first).link
            command = [str(HERE / "_nodehost.py"), "nodes", link, str(first), str(last), str(folder / f"h-{first}")]
            hosts.append(stack.enter_context(Process(command, plugin(folder))))
        for host in hosts:
            host.read()
        job = submit(client, nodes=nodes, rounds=1_000_000, size="tiny")
        return [kill(it, client, hosts, job) for _ in range(kills)]


def fill(database: str, events: int) -> None:
    """Put so many events into the log, of nodes that came and went."""
    asyncio.run(_fill(database, events))


async def _fill(database: str, events: int) -> None:
    log = await PostgresLog.open(database)
    for start in range(0, events, 1000):
        gone = [
            e.NodeDisconnected(at=float(number), node=f"gone-{number}", reason="long ago")
            for number in range(start, min(start + 1000, events))
        ]
        await log.append(NODES, start, gone)
    await log.close()


def kill(it: Replicas, client: Client, hosts: list[Process], job: str) -> Row:
    """One failover; afterwards there are three of them again."""
    offset = client.status().offset
    closed(client, job, offset, 0.0)
    since = time.time()
    lost = it.kill()
    it.await_owner()
    ready = time.time() - since
    round = closed(client, job, offset, since) - since  # with all nodes: then they are back
    back = [seconds for host in hosts for seconds in host.ask(f"back {since}")["seconds"]]
    it.start(lost)
    it.await_standby(lost)
    return {
        "what": "kill -9 of the owner",
        "nodes": len(back),
        "stayed": back.count(0.0),
        "ready s": ready,
        "half back s": median(back),
        "p99 back s": percentile(back, 0.99),
        "all back s": max(back),
        "next round closed s": round,
        "ratio": max(ready, *back) / PROMISED,
    }


def closed(client: Client, job: str, offset: int, since: float) -> float:
    """When the first round closed after an offset and a time."""
    for event in client.follow(job, after=offset):
        if event.type == "RoundClosed" and event.at > since:
            return event.at
    raise SystemExit("the job ended")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=20)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--log", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="two nodes, one kill: does it work at all?")
    parser.add_argument("--json", action="store_true")
    o = parser.parse_args()
    nodes, kills = (2, 1) if o.quick else (o.nodes, o.kills)
    rows = measure(nodes, kills, o.log)
    show(rows, as_json=o.json, notes={"events in the log before": o.log})


if __name__ == "__main__":
    main()
