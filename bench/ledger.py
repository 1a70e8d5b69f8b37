"""Orders a second that the embedded ledger records durably, signed and chained, against SQLite alone.

    python bench/ledger.py

A job is four orders: escrow, stake, reward, and a transfer. The peer writes rows of the same size, in groups of the
same size, to the same disk with the same durability, and does nothing else.
"""

import argparse
import asyncio
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path

from _common import show
from tutti.adapters.identities.ed25519 import Ed25519Key
from tutti.adapters.ledgers.signed import SignedLedger
from tutti.adapters.ledgers.sqlite import SqliteEntries
from tutti.domain.ledger import AnyOperation, Escrow, Mint, Order, Reward, Stake, Transfer


def operations(jobs: int) -> list[AnyOperation]:
    found: list[AnyOperation] = []
    for i in range(jobs):
        found += [
            Escrow(escrow=f"job-{i}", payer="client", amount=10),
            Reward(escrow=f"job-{i}", to=f"worker-{i % 50}"),
            Stake(account=f"worker-{i % 50}", amount=1),
            Transfer(source=f"worker-{i % 50}", to="client", amount=9),
        ]
    return found


async def ours(folder: Path, jobs: int, at_once: int) -> float:
    ledger = await SignedLedger(
        SqliteEntries(folder / "ledger.sqlite"), Ed25519Key(bytes(32)), lambda: int(1000 * time.time())
    ).open()
    await ledger.post(Order("mint", Mint(to="client", amount=10 * jobs)))
    orders = [Order(f"k{i}", operation) for i, operation in enumerate(operations(jobs))]
    started = time.perf_counter()
    for start in range(0, len(orders), at_once):
        await asyncio.gather(*map(ledger.post, orders[start : start + at_once]))
    took = time.perf_counter() - started
    await ledger.close()
    return took


def bare(folder: Path, count: int, at_once: int) -> float:
    with closing(sqlite3.connect(folder / "bare.sqlite", isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("CREATE TABLE entries (seq INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, entry BLOB NOT NULL)")
        started = time.perf_counter()
        for start in range(0, count, at_once):
            with db:
                db.execute("BEGIN IMMEDIATE")
                rows = ((f"k{i}", bytes(480)) for i in range(start, min(start + at_once, count)))
                db.executemany("INSERT INTO entries (key, entry) VALUES (?, ?)", rows)
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=2_000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = []
    for at_once in (4, 64, 256):
        with tempfile.TemporaryDirectory() as folder:
            took = asyncio.run(ours(Path(folder), given.jobs, at_once))
            alone = bare(Path(folder), 4 * given.jobs, at_once)
        speed = given.jobs / took
        rows.append({"orders at once": at_once, "jobs/s": speed, "orders/s": 4 * speed, "times bare": took / alone})
    show(rows, as_json=given.json, notes={"jobs": given.jobs})


if __name__ == "__main__":
    main()
