"""How far one coordinator goes: rounds of a thousand, reconnect storms, larger cohorts, a model of a gigabyte.

    python bench/scale.py round    [--nodes 1000] [--idle 9000]   rounds with the 2NN beside nodes that only look on
    python bench/scale.py storm    [--nodes 5000]                 the coordinator is killed; until all are back
    python bench/scale.py cohorts                                 10, 20, 50 and 100 nodes a round
    python bench/scale.py large    [--nodes 20] [--megabytes 1000]  one blob to all of them at once

All on loopback, the coordinator as people start it (`tutti up`), nodes in two further processes. What ten thousand idle
nodes cost is said by `bench/nodes.py --nodes 10000`. Peaks are the coordinator's resident memory; a model that is
mapped from disk counts there once, however many fetch it.
"""

import argparse
import asyncio
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import numpy as np
import psutil

from _common import show
from _federation import HERE, Process, coordinator, federation, plugin, run_job, shares
from _nowork import parameters
from transfer import coordinator_process
from tutti.adapters.blobs.directory import DirectoryBlobs

HOSTS = 2
MOST_MB = 220
"""Of the coordinator, at its peak in a round of a thousand beside nine thousand idle nodes."""

LINEAR = 0.8
"""Updates a second of a hundred nodes, to those of ten."""

BACK_SECONDS = 30.0
"""Until five thousand are back."""

GROWTH_MB = 64
"""Of the coordinator while twenty nodes fetch a gigabyte each."""

SIZE = "2nn"
Row = dict[str, Any]


def rounds(nodes: int, idle: int, quick: bool) -> Iterator[Row]:
    """A round of so many with the 2NN: everybody fetches the model, and hands in an update of its own."""
    with tempfile.TemporaryDirectory(prefix="tutti-bench-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        it = stack.enter_context(federation(folder, nodes, hosts=HOSTS))
        before = it.coordinator.memory()
        if idle:
            for first, last in shares(idle, HOSTS):
                link = it.client.invite(uses=last - first).link
                names = (str(nodes + first), str(nodes + last))
                command = [str(HERE / "_nodehost.py"), "links", link, *names, str(folder / f"idle-{first}")]
                host = stack.enter_context(Process(command, plugin(folder)))
                host.read()
                host.ask("connect")
        connected = it.coordinator.memory()
        cpu, began = it.coordinator.cpu(), time.perf_counter()
        _, seconds = run_job(it.client, nodes=nodes, rounds=1 if quick else 3, size=SIZE)
        took, payload = time.perf_counter() - began, 8 * nodes * parameters(SIZE)
        yield {
            "what": "round",
            "nodes": nodes,
            "idle beside": idle,
            "seconds": median(seconds),
            "MB/s of payload": payload / 1e6 / median(seconds),
            "CPU share": (it.coordinator.cpu() - cpu) / took,
            "idle MB": before / 1e6,
            "connected MB": connected / 1e6,
            "peak MB": it.coordinator.memory("VmHWM") / 1e6,
            "ratio": it.coordinator.memory("VmHWM") / (4 * nodes * parameters(SIZE)),
        }


def cohorts(sizes: tuple[int, ...], quick: bool) -> Iterator[Row]:
    """Updates a second by the size of the cohort; `ratio` is to the first row's: linear is 1."""
    first = 0.0
    for nodes in sizes:
        with (
            tempfile.TemporaryDirectory(prefix="tutti-bench-") as temporary,
            federation(Path(temporary), nodes, hosts=HOSTS) as it,
        ):
            run_job(it.client, nodes=nodes, rounds=1, size=SIZE)
            _, seconds = run_job(it.client, nodes=nodes, rounds=2 if quick else 10, size=SIZE)
            peak = it.coordinator.memory("VmHWM")
        rate = nodes / median(seconds)
        first = first or rate
        yield {
            "what": "cohort",
            "nodes": nodes,
            "seconds": median(seconds),
            "updates a second": rate,
            "ratio": rate / first,
            "peak MB": peak / 1e6,
        }


def storm(nodes: int, quick: bool) -> Iterator[Row]:
    """Kill the coordinator and start it again: seconds until every node's connection stands again."""
    with tempfile.TemporaryDirectory(prefix="tutti-bench-") as temporary, ExitStack() as stack:
        folder, first = Path(temporary), ExitStack()
        server, client = first.enter_context(coordinator(folder))
        port = int(client.url.rsplit(":", 1)[1])
        hosts = []
        for low, high in shares(nodes, HOSTS):
            link = client.invite(uses=high - low).link
            command = [str(HERE / "_nodehost.py"), "nodes", link, str(low), str(high), str(folder / f"h-{low}")]
            hosts.append(stack.enter_context(Process(command, plugin(folder))))
        for host in hosts:
            host.read()
        first.close()
        server, client = stack.enter_context(coordinator(folder, port=port))
        began = time.perf_counter()
        while (here := client.status().nodes_connected) < nodes:
            if time.perf_counter() - began > 300:
                raise SystemExit(f"{here} of {nodes} nodes are back")
            time.sleep(0.1)
        seconds = time.perf_counter() - began
        yield {
            "what": "storm",
            "nodes": nodes,
            "seconds until all are back": seconds,
            "a second": nodes / seconds,
            "peak MB": server.memory("VmHWM") / 1e6,
            "ratio": seconds / 5.0,
        }


def large(nodes: int, megabytes: int, quick: bool) -> Iterator[Row]:
    """One blob to all nodes at once: bytes a second in all, and how much the coordinator's memory grew."""
    with tempfile.TemporaryDirectory(prefix="tutti-bench-") as temporary:
        yield asyncio.run(_fetched(Path(temporary), nodes, megabytes * 1_000_000))


async def _fetched(root: Path, nodes: int, size: int) -> Row:
    """The coordinator's side of `transfer.py`; the nodes read and forget, for it is not their memory that counts."""
    blob = np.random.default_rng(0).bytes(size)
    digest = await DirectoryBlobs(root / "blobs").put(blob)
    copied = _copied(blob, nodes)
    del blob
    async with coordinator_process(root / "blobs") as (url, _):
        headers = {"Authorization": "Bearer node:secret", "Accept-Encoding": "identity"}
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as session:
            address = f"{url}/api/v1/blobs/{digest}"
            await _read(session, address, first=True)
            server = next(one for one in psutil.Process().children() if "--serve" in one.cmdline())
            before, began = _anonymous(server.pid), time.perf_counter()
            peak, reading = before, asyncio.gather(*(_read(session, address) for _ in range(nodes)))
            while not reading.done():
                peak = max(peak, _anonymous(server.pid))
                await asyncio.wait([reading], timeout=0.02)
            total, seconds = sum(reading.result()), time.perf_counter() - began
    if total != nodes * size:
        raise SystemExit(f"expected {nodes * size} bytes, came {total}")
    return {
        "what": "large",
        "nodes": nodes,
        "MB": size / 1e6,
        "seconds": seconds,
        "MB/s": total / 1e6 / seconds,
        "ratio": seconds / copied,
        "MB before": before / 1e6,
        "peak MB": peak / 1e6,
    }


async def _read(session: aiohttp.ClientSession, address: str, *, first: bool = False) -> int:
    """Bytes of the whole blob, or of its first piece."""
    came = 0
    async with session.get(address) as response:
        response.raise_for_status()
        async for chunk in response.content.iter_any():
            came += len(chunk)
            if first:
                break
    return came


def _anonymous(pid: int) -> int:
    """Resident bytes but for pages of mapped files, which the system takes back when it wants."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def _copied(blob: bytes, times: int) -> float:
    """The bound: seconds to copy the blob so often within this process's memory, piece by piece."""
    view, piece, began = memoryview(blob), bytearray(1 << 18), time.perf_counter()
    for _ in range(times):
        for start in range(0, len(view), len(piece)):
            part = view[start : start + len(piece)]
            piece[: len(part)] = part
    return time.perf_counter() - began


def targets(rows: list[Row]) -> dict[str, Any]:
    """Which target the rows meet."""
    last = rows[-1]
    named, found, good = {
        "round": (f"peak <= {MOST_MB} MB", last.get("peak MB"), lambda x: x <= MOST_MB),
        "cohort": (f"throughput is linear: the last ratio >= {LINEAR}", last["ratio"], lambda x: x >= LINEAR),
        "storm": (
            f"all are back within {BACK_SECONDS:g} s",
            last.get("seconds until all are back"),
            lambda x: x <= BACK_SECONDS,
        ),
        "large": (
            f"memory grows by <= {GROWTH_MB} MB",
            last["peak MB"] - last.get("MB before", 0),
            lambda x: x <= GROWTH_MB,
        ),
    }[last["what"]]
    return {named: f"{found:.3g}, {'met' if good(found) else 'MISSED'}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("round", "storm", "cohorts", "large"), nargs="?", default="round")
    parser.add_argument("--nodes", type=int)
    parser.add_argument("--idle", type=int, default=0)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="a few nodes, a short look: does it work at all?")
    parser.add_argument("--json", action="store_true")
    o = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    many = 4 if o.quick else o.nodes
    runs: dict[str, Callable[[], Iterator[Row]]] = {
        "round": lambda: rounds(many or 1000, o.idle, o.quick),
        "storm": lambda: storm(many or 5000, o.quick),
        "cohorts": lambda: cohorts((2, 4) if o.quick else (10, 20, 50, 100), o.quick),
        "large": lambda: large(many or 20, o.megabytes, o.quick),
    }
    rows = list(runs[o.what]())
    show(rows, as_json=o.json, notes=targets(rows))


if __name__ == "__main__":
    main()
