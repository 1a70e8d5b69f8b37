"""How long N processes on this machine take to average vectors, with agreement on the result, beside hivemind.

    python bench/ring_averages.py [--peers 8,16] [--floats 1000000,10000000] [--rounds 5] [--json]

A round of ours is all of it: every member makes an update and gives it to the whole committee, each of which sums all
updates before it votes, the record is on a majority of disks, and everybody has the new model. Training costs nothing.
BENCH_HIVEMIND_PYTHON names an interpreter that has hivemind; its averager (as many processes, one group) then runs in
the same way. The figure is the median of the rounds, in seconds.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np

from _common import show
from _federation import HERE, plugin
from _nowork import SCHEMA
from _ring import Ring, free_port, until
from tutti.apps.ringclient import RingClient
from tutti.domain.spec import load_spec
from tutti.ports.training import Data, Examples

ROWS = 400  # for each member, so that all get some


async def ours(peers: int, floats: int, rounds: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        ring = Ring(Path(folder), environment=plugin(Path(folder)))
        client = RingClient(f"127.0.0.1:{ring.port}")
        try:
            ring.supernode()
            for _ in range(peers):
                ring.member(f"127.0.0.1:{free_port()}")
            await until(client, lambda views: [len(view.roster) for view in views] == [peers] * peers)
            placed = await client.place(_rows(peers))
            holders = sum(1 for rows in placed.values() if rows)
            await client.until_held("nowork", holders)
            job = await client.submit(load_spec(_job(floats, rounds, holders)))
            async for view, closed in client.follow(job):  # noqa: B007 - the last one is wanted
                pass
            assert view.status == "completed", view.reason
            made = [each.closed_at for each in closed if each.status == "closed" and each.closed_at is not None]
            return median(b - a for a, b in pairwise(made))
        finally:
            await client.close()
            ring.stop()


def _rows(peers: int) -> Data:
    x, y = np.zeros((peers * ROWS, 1), np.float32), np.zeros(peers * ROWS, np.int64)
    return Data("nowork", SCHEMA, Examples(x, y), Examples(x[:0], y[:0]))


def _job(floats: int, rounds: int, nodes: int) -> dict[str, object]:
    return {
        "name": "average",
        "dataset": "nowork",
        "model": f"nowork:floats={floats}",
        "rounds": rounds + 1,
        "evaluation": {"nodes": False},
        "cohort": {"min_nodes": nodes, "quorum": nodes, "grace": 60.0},
    }


def hivemind(peers: int, floats: int, rounds: int) -> float | None:
    python = os.environ.get("BENCH_HIVEMIND_PYTHON")
    if not python:
        return None
    command = [python, str(HERE / "_hivemind.py"), str(peers), str(floats), str(rounds)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    try:
        return float(json.loads(process.stdout.readline())["seconds"])
    finally:  # it leaves processes behind
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default="8,16")
    parser.add_argument("--floats", default="1000000,10000000")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for floats in map(int, options.floats.split(",")):
        for peers in map(int, options.peers.split(",")):
            mine = asyncio.run(ours(peers, floats, options.rounds))
            theirs = hivemind(peers, floats, options.rounds)
            ratio = None if theirs is None else theirs / mine
            rows.append({"peers": peers, "floats": floats, "s": mine, "hivemind s": theirs, "hivemind / s": ratio})
    show(rows, as_json=options.json, notes={"hivemind": os.environ.get("BENCH_HIVEMIND_PYTHON", "not measured")})


if __name__ == "__main__":
    main()
