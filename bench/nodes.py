"""A thousand connected, idle nodes on one coordinator: what each costs, and how fast a heartbeat is dealt with.

    python bench/nodes.py

Beside it, in the same run: as many bare WebSockets of the same client library on an echo served by the same server.
A heartbeat has no answer, so what is timed is a heartbeat and, behind it, a submission to no job, which has one.
"""

import argparse
import resource
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from _common import show
from _federation import HERE, Process, coordinator, percentile, plugin, shares

HOSTS = 2
IDLE_MB = 200
MOST_MB = 220
"""With ten thousand connected."""


@contextmanager
def hosts(kind: str, address: Any, nodes: int, folder: Path) -> Iterator[list[Process]]:
    """Processes that hold the node's ends; `address` gives each the link for so many of them."""
    with ExitStack() as stack:
        started = []
        for first, last in shares(nodes, HOSTS):
            command = [str(HERE / "_nodehost.py"), kind, address(last - first), str(first), str(last), str(folder)]
            started.append(stack.enter_context(Process(command, plugin(folder))))
        for host in started:
            host.read()
        yield started


def measure(name: str, server: Process, started: list[Process], nodes: int, probes: int, idle: float) -> dict[str, Any]:
    """One row about a server that has no connections yet and hosts that are about to make them."""
    before = server.memory()
    seconds = max(host.ask("connect")["seconds"] for host in started)
    cpu, since = server.cpu(), time.perf_counter()
    time.sleep(idle)
    share = (server.cpu() - cpu) / (time.perf_counter() - since)
    after = server.memory()
    trips = [trip for _ in range(3) for trip in started[0].ask(str(probes))["seconds"]]
    return {
        "server": name,
        "connections": nodes,
        "a second": nodes / seconds,
        "idle MB before": before / 1e6,
        "with MB": after / 1e6,
        "KB each": (after - before) / 1e3 / nodes,
        "CPU idle %": 100 * share,
        "heartbeat p50 ms": 1e3 * median(trips),
        "p99 ms": 1e3 * percentile(trips, 0.99),
    }


def ours(nodes: int, probes: int, idle: float) -> tuple[dict[str, Any], dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="tutti-bench-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        server, client = stack.enter_context(coordinator(folder))
        link = lambda uses: client.invite(uses=uses).link  # noqa: E731
        at_start = server.memory()
        started = stack.enter_context(hosts("links", link, nodes, folder))
        row = measure("coordinator", server, started, nodes, probes, idle)
        notes = {
            "connected, says the coordinator": client.status().nodes_connected,
            f"idle memory of the coordinator <= {IDLE_MB} MB": f"{at_start / 1e6:.0f} MB just started, "
            f"{'met' if at_start <= IDLE_MB * 1e6 else 'MISSED'}",
            f"memory with {nodes} connected <= {MOST_MB} MB": f"{row['with MB']:.0f} MB, "
            f"{'met' if row['with MB'] <= MOST_MB else 'MISSED'}",
            "torch is loaded": server.has_loaded("torch"),
            "heartbeats a second": nodes / 15,
        }
        return row, notes


def bare(nodes: int, probes: int, idle: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="tutti-bench-") as temporary, ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=2048))
        server = stack.enter_context(
            Process([str(HERE / "_served.py"), str(listener.fileno())], None, (listener.fileno(),))
        )
        server.read()
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}/echo"
        started = stack.enter_context(hosts("sockets", lambda uses: url, nodes, Path(temporary)))
        started[0].ask("0")
        return measure("bare echo", server, started, nodes, probes, idle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--idle", type=float, default=30.0, help="seconds over which the idle CPU is measured")
    parser.add_argument("--quick", action="store_true", help="one node, a short look: does it work at all?")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    nodes, probes, idle = (1, 10, 0.2) if options.quick else (options.nodes, 300, options.idle)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    row, notes = ours(nodes, probes, idle)
    rows = [row, bare(nodes, probes, idle)]
    for each in rows:
        each["memory / bare"] = each["KB each"] / rows[1]["KB each"] if rows[1]["KB each"] else None
        each["latency / bare"] = each["heartbeat p50 ms"] / rows[1]["heartbeat p50 ms"]
    show(rows, as_json=options.json, notes=notes)


if __name__ == "__main__":
    main()
