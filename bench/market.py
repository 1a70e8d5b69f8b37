"""Compute jobs a second through assign, verify and pay on the embedded default, and what strategies earn.

    python bench/market.py

All in one process: a coordinator with its log, ledger and blobs in SQLite and files, real workers over the local
fabric, tiny tables. The peer writes as many rows to two bare SQLite files with the same durability, in groups of 32.
With `--honest N`, N random jobs are done honestly and judged instead: none may be found wanting.
"""

import argparse
import asyncio
import os
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from _common import show
from tutti.adapters.apart import Processes
from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.adapters.fabrics.local import LocalFabric, LocalLink
from tutti.adapters.identities.ed25519 import Ed25519Key
from tutti.adapters.ledgers.signed import SignedLedger
from tutti.adapters.ledgers.sqlite import SqliteEntries
from tutti.adapters.logs.sqlite import SqliteLog
from tutti.adapters.machine import Machine
from tutti.adapters.workbench import Bench, ThisProcess
from tutti.apps.nodes import no_data
from tutti.core.registry import Choice
from tutti.core.workload import Table
from tutti.domain.ledger import Mint, Order
from tutti.domain.policy import Policy
from tutti.services.coordinator import Coordinator
from tutti.services.market.desk import MarketDesk, Who, Wish
from tutti.services.market.floor import MarketFloor
from tutti.services.market.worker import Worker
from tutti.services.node import NodeRuntime
from tutti.testing.market import check_honest
from tutti.testing.market_economy import STRATEGIES, compare
from tutti.wire.messages import Offer
from tutti.wire.tables import encode_table

ADMIN = Who(name="bench", admin=True)
LOG_ROWS, LEDGER_ROWS = 8, 3
"""That one job leaves behind: eight events (tutti.domain.market.events), an escrow, a bond and a reward."""


class Stage:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tasks: list[asyncio.Task[None]] = []

    async def up(self, workers: int) -> None:
        log = await SqliteLog.open(self.folder / "log.sqlite")
        blobs = DirectoryBlobs(self.folder / "blobs")
        fabric = LocalFabric(lambda node, secret: None, blobs, limit=lambda node: self.core.access.update_limit(node))
        self.core = Coordinator(
            event_log=log,
            blobs=blobs,
            fabric=fabric,
            workbench=Bench(ThisProcess()),
            known_schema=lambda choice: None,
            clock=time.time,
        )
        key = Ed25519Key(bytes(32))
        self.ledger = await SignedLedger(
            SqliteEntries(self.folder / "ledger.sqlite"), key, lambda: int(1000 * time.time())
        ).open()
        self.desk = MarketDesk(self.core.journal, blobs, self.ledger, time.time)
        self.floor = MarketFloor(self.desk, fabric, Processes())
        self.core.lend(self.floor)
        self.core.keeper.retained = self.desk.retained
        await self.core.start()
        self.core.background.spawn(self.floor.run())
        for number in range(workers):
            await self._hire(f"worker-{number}", fabric)
        while not self._ready(workers):  # noqa: ASYNC110 - before what is measured
            await asyncio.sleep(0.01)

    def _ready(self, workers: int) -> bool:
        measured = all(worker.gflops > 0 for worker in self.desk.market.workers.values())
        return measured and len(self.floor.assigning.free()) == workers

    async def _hire(self, name: str, fabric: LocalFabric) -> None:
        await self.ledger.post(Order(name, Mint(to=f"node:{name}", amount=1000)))
        link = LocalLink(fabric)
        runtime = NodeRuntime(
            name=name,
            token="",
            link=link,
            data=no_data(),
            policy=Policy(),
            machine=Machine(),
            workdir=self.folder / name,
            trainer_for=lambda model, schema: None,
            worker=Worker(name, name, Offer(stake=1000), link, self.folder / name / "market"),
        )
        self.tasks.append(asyncio.create_task(runtime.run()))

    async def measure(self, jobs: int) -> float:
        """Seconds from the first wish to the last payment."""
        await self.desk.register_client("client", 10 * jobs, ADMIN)
        rng = np.random.default_rng(0)
        data = await self.desk.keep_table(encode_table(Table(rng.random((50, 4)), rng.random(50))), ADMIN)
        wish = Wish(client="client", kind=Choice("linear_regression"), reward=10, data=data)
        done = asyncio.Event()
        told = self.desk.changed

        def changed(job: str) -> None:
            told(job)
            if len(self.desk.market.jobs) == jobs and not self.desk.market.open:
                done.set()

        self.desk.changed = changed
        started = time.perf_counter()
        for start in range(0, jobs, 64):
            await asyncio.gather(*(self.desk.submit(wish, ADMIN, f"k{i}") for i in range(start, min(start + 64, jobs))))
            self.desk._tables[data] = (ADMIN.name, time.time())
        await done.wait()
        took = time.perf_counter() - started
        verified = sum(job.verified is not None for job in self.desk.market.jobs.values())
        if verified != jobs or not (await self.ledger.totals()).conserved:
            raise SystemExit(f"{verified} of {jobs} jobs were verified")
        return took

    async def down(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.core.stop()
        await self.ledger.close()


def bare(folder: Path, jobs: int) -> float:
    """The same number of rows, and nothing else."""
    started = time.perf_counter()
    for name, rows in (("log", LOG_ROWS), ("ledger", LEDGER_ROWS)):
        with closing(sqlite3.connect(folder / f"bare-{name}.sqlite", isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("CREATE TABLE entries (seq INTEGER PRIMARY KEY, entry BLOB NOT NULL)")
            for _ in range(0, jobs * rows, 32):
                with db:
                    db.execute("BEGIN IMMEDIATE")
                    db.executemany("INSERT INTO entries (entry) VALUES (?)", [(bytes(300),)] * 32)
    return time.perf_counter() - started


async def throughput(jobs: int, workers: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        bench = Stage(Path(folder))
        await bench.up(workers)
        took = await bench.measure(jobs)
        await bench.down()
        alone = bare(Path(folder), jobs)
    return {
        "workers": workers,
        "jobs": jobs,
        "jobs/s": jobs / took,
        "ms a job": 1e3 * took / jobs,
        "times bare": took / alone,
    }


def honest(jobs: int) -> list[dict[str, object]]:
    started = time.perf_counter()
    wanting = [found for seed in range(jobs) if (found := check_honest(np.random.default_rng(seed)))]
    took = time.perf_counter() - started
    return [{"honest jobs": jobs, "found wanting": len(wanting), "jobs/s": jobs / took}]


def economy(seeds: int) -> list[dict[str, object]]:
    rows = []
    for strategy in STRATEGIES:
        found = [compare(strategy, seed) for seed in range(seeds)]
        its, others = (sum(each) / seeds for each in zip(*found, strict=True))
        rows.append({"strategy": strategy, "its profit": its, "an honest one's beside it": others})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few jobs, only to see that it runs")
    parser.add_argument("--honest", type=int, metavar="N", help="judge N honest random jobs instead")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.honest:
        show(honest(given.honest), as_json=given.json, notes={})
        return
    sizes = [(40, 4)] if given.quick else [(1000, 4), (1000, 32)]
    show([asyncio.run(throughput(*size)) for size in sizes], as_json=given.json, notes={})
    if not given.json:
        show(economy(2 if given.quick else 10), as_json=False, notes={})


if __name__ == "__main__":
    main()
