"""What a round costs when the training itself costs nothing: a real coordinator, real nodes, everything logged durably.

    python bench/rounds.py

The time of a round is that between two RoundOpened events in the log. In the same run: a bare asyncio exchange of the
same bytes between as many processes, the same bytes written and synced to the same disk, and, if BENCH_FLWR_PYTHON
names an interpreter that has Flower, Flower's deployment. BENCH_PROFILE=file keeps cProfile's figures of the
coordinator's main thread in the last configuration.
"""

import argparse
import json
import os
import socket
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from _common import show
from _federation import HERE, Federation, Process, federation, percentile, run_job, shares
from _nowork import parameters

CONFIGURATIONS = ((2, "tiny", 60, 10.0), (32, "tiny", 60, 60.0), (32, "cnn", 17, 600.0))
"""Nodes, size, rounds of one run, and the target in milliseconds."""

HOSTS = 2

DEPLOYED = 2
"""Nodes up to which Flower's deployment is measured: each SuperNode needs some 400 MB."""


def measure(folder: Path, nodes: int, size: str, rounds: int, runs: int, profile: str) -> dict[str, Any]:
    """One row; runs of the federation and of its bound take turns, so that both see the same weather."""
    payload = 4 * parameters(size)
    ours, bare, disk, costs = [], [], [], []
    with federation(folder, nodes, hosts=HOSTS, profile=profile) as it:
        run_job(it.client, nodes=nodes, rounds=3, size=size)  # connections, caches, imports
        for _ in range(runs):
            seconds, cost = one_run(it, nodes, size, rounds)
            ours.append(seconds)
            costs.append(cost)
            bare.append(median(exchange(nodes, payload, rounds)))
            disk.append(synced(folder, nodes, payload))
        peak = it.coordinator.memory("VmHWM")
    every = [value for seconds in ours for value in seconds]
    at_median = median(every)
    return {
        "nodes": nodes,
        "model": size,
        "rounds": len(every),
        "median ms": 1e3 * at_median,
        "p90 ms": 1e3 * percentile(every, 0.9),
        "runs ms": "-".join(f"{1e3 * value:.3g}" for value in (min(map(median, ours)), max(map(median, ours)))),
        "bare ms": 1e3 * median(bare),
        "times bare": at_median / median(bare),
        "disk ms": 1e3 * median(disk),
        "CPU ms": 1e3 * median(cost["cpu"] for cost in costs),
        "nodes' CPU ms": 1e3 * median(cost["nodes"] for cost in costs),
        "peak MB": peak / 1e6,
        "bytes": round(median(cost["bytes"] for cost in costs)),
        "of payload": median(cost["bytes"] for cost in costs) / (2 * payload),
    }


def one_run(it: Federation, nodes: int, size: str, rounds: int) -> tuple[list[float], dict[str, float]]:
    """Seconds of each round; and per round the CPU seconds of both sides, per round and node the bytes on the wire."""
    before, cpu, at_nodes = it.ask(), it.coordinator.cpu(), sum(host.cpu() for host in it.hosts)
    _, seconds = run_job(it.client, nodes=nodes, rounds=rounds, size=size)
    done, after = rounds + 1, it.ask()
    wire = sum(now[way] - then[way] for then, now in zip(before, after, strict=True) for way in ("sent", "received"))
    return seconds, {
        "cpu": (it.coordinator.cpu() - cpu) / done,
        "nodes": (sum(host.cpu() for host in it.hosts) - at_nodes) / done,
        "bytes": wire / nodes / done,
    }


def exchange(nodes: int, payload: int, rounds: int) -> list[float]:
    """The peer: the same bytes over as many connections between as many processes, and nothing else."""
    bare = str(HERE / "_bare.py")
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener, ExitStack() as stack:
        port, fd = listener.getsockname()[1], listener.fileno()
        server = stack.enter_context(Process([bare, "serve", *map(str, (fd, nodes, payload, rounds))], pass_fds=(fd,)))
        server.read()
        for first, last in shares(nodes, HOSTS):
            stack.enter_context(Process([bare, "nodes", *map(str, (port, last - first, payload))]))
        found: list[float] = server.read()["seconds"]
        return found


def synced(folder: Path, nodes: int, payload: int) -> float:
    """Seconds in which the disk takes one round's updates: written, synced, six at a time."""
    updates = os.urandom(payload)

    def write(number: int) -> None:
        with (folder / f"sync-{number}").open("wb") as file:
            file.write(updates)
            file.flush()
            os.fsync(file.fileno())

    with ThreadPoolExecutor(6) as pool:
        start = time.perf_counter()
        list(pool.map(write, range(nodes)))
        return time.perf_counter() - start


def flower(nodes: int, size: str, *, quick: bool) -> dict[str, float] | None:
    """Median milliseconds of Flower's rounds, by kind, in the interpreter that has it; None if there is none."""
    python = os.environ.get("BENCH_FLWR_PYTHON", "")
    if not python or subprocess.run([python, "-c", "import flwr"], capture_output=True).returncode:
        return None
    kinds = {"grpc": 5 if quick else 10}
    if nodes <= DEPLOYED and not quick:
        kinds["deployment"] = 3
    found = {}
    for kind, rounds in kinds.items():
        command = [python, str(HERE / "_flower.py"), kind, str(nodes), str(parameters(size)), str(rounds)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[kind] = 1e3 * median(json.loads(done.stdout.splitlines()[-1])["seconds"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one node, one short run: does it work at all?")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    configurations = [(1, "tiny", 5, 10.0)] if options.quick else CONFIGURATIONS
    profile, rows, targets = os.environ.get("BENCH_PROFILE", ""), [], []
    for number, (nodes, size, rounds, target) in enumerate(configurations, start=1):
        last = profile if number == len(configurations) else ""
        with tempfile.TemporaryDirectory(prefix="tutti-bench-") as folder:
            rows.append(measure(Path(folder), nodes, size, rounds, 1 if options.quick else options.runs, last))
        theirs = flower(nodes, size, quick=options.quick)
        for kind, its in (theirs or {}).items():
            rows[-1] |= {f"flower {kind} ms": its, f"{kind} / ours": its / rows[-1]["median ms"]}
        targets.append(f"{nodes} x {size} <= {target:g} ms: {'met' if rows[-1]['median ms'] <= target else 'MISSED'}")
    notes = {
        "targets": "; ".join(targets),
        "bare": "asyncio streams in the same process layout: model down, update up, nothing logged",
        "disk": "one round's updates written and synced to the same disk, six at a time",
        "bytes": "TCP payload of one node in one round, both ways; the payload is the model and the update",
        "flower": "flwr not installed" if theirs is None else f"in the same run; deployment with {DEPLOYED} nodes only",
    }
    keys = list(dict.fromkeys(key for row in rows for key in row))
    rows = [{key: row.get(key) for key in keys} for row in rows]
    show(rows, as_json=options.json, notes=notes)


if __name__ == "__main__":
    main()
