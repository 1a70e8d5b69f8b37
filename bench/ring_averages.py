"""How long N processes on this machine take to average vectors, with agreement on the result, beside hivemind.

    python bench/ring_averages.py [--peers 8,16] [--floats 1000000,10000000] [--rounds 5] [--quick] [--json]

A round of ours is all of it: every member makes an update and gives it to three of the committee, who sum all updates
before they vote, the record is on a majority of disks, and everybody has the new model. Training costs nothing.
`first s` is that of the first 20 rounds, `s` of those after them: so many models are kept, and from then on a new one
is written into memory that an old one has left; on a virtual machine the first use of a page takes ten times as long.
The peer makes as many rounds in all (with --quick there are no first ones).
BENCH_HIVEMIND_PYTHON names an interpreter that has hivemind; its averager (as many processes, one group) then runs in
the same way. `s` is the median of the rounds in seconds, `CPU s` what all processes together used for one, which other
work on the machine changes less. `bare` is the limit of a round that goes over TCP, see _bare_averages.py; members on
one machine hand files over, and may be below it.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np

from _bare_averages import bare
from _common import show
from _federation import HERE, plugin
from _nowork import SCHEMA
from _ring import Ring, free_port, until
from tutti.apps.ringclient import RingClient
from tutti.domain.spec import load_spec
from tutti.ports.training import Data, Examples
from tutti.services.keeping import Keep

ROWS = 400  # for each member, so that all get some


async def ours(peers: int, floats: int, rounds: int, before: int) -> tuple[float | None, float, float | None]:
    """Seconds of one of the first rounds, so many `before` the others; of one of those, and CPU seconds for it."""
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
            job = await client.submit(load_spec(_job(floats, before + rounds, holders)))
            members = [process.pid for process in ring.processes.values()]
            used: dict[int, float] = {}
            async for view, closed in client.follow(job):  # noqa: B007 - the last view is wanted
                made = [each.closed_at for each in closed if each.status == "closed" and each.closed_at is not None]
                if len(made) > before:
                    used.setdefault(len(made), cpu_seconds(members))
            assert view.status == "completed", view.reason
            one, last = min(used), max(used)  # they are one if the rounds were over between two looks
            cpu = (used[last] - used[one]) / (last - one) if last > one else None
            took = [b - a for a, b in pairwise(made)]
            return median(took[:before]) if before else None, median(took[before:]), cpu
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


def cpu_seconds(processes: Iterable[int]) -> float:
    """What these have used so far."""
    return sum(_cpu_ticks(Path(f"/proc/{process}/stat")) for process in processes) / os.sysconf("SC_CLK_TCK")


def _cpu_ticks(stat: Path) -> int:
    fields = stat.read_text().rpartition(") ")[2].split()
    return int(fields[11]) + int(fields[12])


def of_session(leader: int) -> list[int]:
    """All processes of a session."""
    return [int(each.name) for each in Path("/proc").glob("[0-9]*") if _session(each) == leader]


def _session(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(") ")[2].split()[3])
    except (OSError, IndexError):  # it has just ended
        return 0


def hivemind(peers: int, floats: int, rounds: int) -> tuple[float, float] | None:
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
        assert json.loads(process.stdout.readline()) == "ready"
        began = cpu_seconds(of_session(process.pid))
        seconds = float(json.loads(process.stdout.readline())["seconds"])
        return seconds, (cpu_seconds(of_session(process.pid)) - began) / rounds
    finally:  # it leaves processes behind
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default="8,16")
    parser.add_argument("--floats", default="1000000,10000000")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="only show that it works")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.peers, options.floats, options.rounds = "3", "1000", 2
    before = 0 if options.quick else Keep().models
    rows = []
    for floats in map(int, options.floats.split(",")):
        for peers in map(int, options.peers.split(",")):
            first, mine, used = asyncio.run(ours(peers, floats, options.rounds, before))
            limit, least = bare(peers, floats, options.rounds)
            theirs, theirs_used = hivemind(peers, floats, before + options.rounds) or (None, None)
            rows.append(
                {
                    "peers": peers,
                    "floats": floats,
                    "first s": first,
                    "s": mine,
                    "CPU s": used,
                    "bare s": limit,
                    "bare CPU s": least,
                    "s / bare": mine / limit,
                    "hivemind s": theirs,
                    "hivemind CPU s": theirs_used,
                    "hivemind / first s": None if theirs is None or first is None else theirs / first,
                    "hivemind / s": None if theirs is None else theirs / mine,
                    "hivemind / bare": None if theirs is None else theirs / limit,
                }
            )
    show(rows, as_json=options.json, notes={"hivemind": os.environ.get("BENCH_HIVEMIND_PYTHON", "not measured")})


if __name__ == "__main__":
    main()
