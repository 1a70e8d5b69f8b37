"""Small reads of the REST API: in process, and over a socket, idle and while 32 nodes work through rounds.

    python bench/rest.py

In process, the ASGI application is called as a server would call it, without a client library. In the same run: a bare
FastAPI route that returns a constant, in the same three ways.
"""

import argparse
import asyncio
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop

from _common import show
from _federation import HERE, Federation, Process, federation, percentile, run_job, submit, wait_for
from _served import create_app

TARGET_MS = 1.0
BARE = "/constant"
Call = Callable[[str], Awaitable[None]]


def paths(job: str) -> dict[str, str]:
    return {
        "health": "/health",
        "status": "/api/v1/status",
        "jobs": "/api/v1/jobs",
        "a job": f"/api/v1/jobs/{job}",
        "a round": f"/api/v1/jobs/{job}/rounds/1",
        "nodes": "/api/v1/nodes",
        "a node": "/api/v1/nodes/node-00000",
    }


async def timed(call: Call, path: str, repeats: int) -> list[float]:
    """Milliseconds of each call; the first few do not count."""
    found = []
    for _ in range(repeats + 5):
        start = time.perf_counter()
        await call(path)
        found.append(1e3 * (time.perf_counter() - start))
    return found[5:]


# -- in process --------------------------------------------------------------------------------------------


def caller(app: Any, port: int) -> Call:
    """Calls an ASGI application; a status other than 200 is an error."""

    async def call(path: str) -> None:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", f"127.0.0.1:{port}".encode())],
            "client": ("127.0.0.1", 50_000),
            "server": ("127.0.0.1", port),
        }

        async def receive() -> Mapping[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Mapping[str, Any]) -> None:
            if message.get("status", 200) != 200:
                raise SystemExit(f"{path} answered {message['status']}")

        await app(scope, receive, send)

    return call


async def in_process(data: Path, its_paths: Mapping[str, str], repeats: int) -> dict[str, list[float]]:
    """The coordinator of the federation that has just ended, started again in this process."""
    from tutti.apps.bootstrap import CoordinatorSettings, coordinator

    async with coordinator(CoordinatorSettings(data_dir=data), 8000, "unused") as (_, app):
        call = caller(app, 8000)
        found = {name: await timed(call, path, repeats) for name, path in its_paths.items()}
    return {**found, BARE: await timed(caller(create_app(), 8000), BARE, repeats)}


# -- over a socket -----------------------------------------------------------------------------------------


async def over_socket(url: str, its_paths: Mapping[str, str], repeats: int) -> dict[str, list[float]]:
    """One kept-alive connection, one question after the other."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)

    async def call(path: str) -> None:
        writer.write(f"GET {path} HTTP/1.1\r\nhost: {where.netloc}\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b" 200 " not in head[:15]:
            raise SystemExit(f"{path} answered {head[:40]!r}")
        await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))

    found = {name: await timed(call, path, repeats) for name, path in its_paths.items()}
    writer.close()
    return found


async def both(url: str, bare_url: str, its_paths: Mapping[str, str], repeats: int) -> dict[str, list[float]]:
    ours = await over_socket(url, its_paths, repeats)
    return {**ours, **await over_socket(bare_url, {BARE: BARE}, repeats)}


async def under_load(it: Federation, bare_url: str, job: str, nodes: int, repeats: int) -> dict[str, list[float]]:
    """Ask while a job works through its rounds, from the second on; then stop it."""
    load = submit(it.client, nodes=nodes, rounds=100_000, size="tiny")
    wait_for(it.client, load, lambda now: now.rounds_done > 0)
    found = await both(it.client.url, bare_url, paths(job), repeats)
    it.client.stop(load)
    return found


# -- the whole ---------------------------------------------------------------------------------------------


def measure(nodes: int, rounds: int, repeats: int) -> dict[str, dict[str, list[float]]]:
    with tempfile.TemporaryDirectory(prefix="tutti-bench-") as temporary:
        folder = Path(temporary)
        with ExitStack() as stack:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            fd = listener.fileno()
            stack.enter_context(Process([str(HERE / "_served.py"), str(fd)], pass_fds=(fd,))).read()
            bare_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            it = stack.enter_context(federation(folder, nodes))
            job, _ = run_job(it.client, nodes=nodes, rounds=rounds, size="tiny")
            idle = uvloop.run(both(it.client.url, bare_url, paths(job), repeats))
            load = uvloop.run(under_load(it, bare_url, job, nodes, repeats))
        inside = uvloop.run(in_process(folder / "data", paths(job), repeats))
    return {"in process": inside, "socket": idle, "under load": load}


def rows_of(found: Mapping[str, Mapping[str, Sequence[float]]]) -> list[dict[str, Any]]:
    rows = []
    for name in found["in process"]:
        inside, idle, load = (found[way][name] for way in ("in process", "socket", "under load"))
        bare = percentile(found["in process"][BARE], 0.5)
        rows.append(
            {
                "read": "bare FastAPI" if name == BARE else name,
                "in process p50 ms": percentile(inside, 0.5),
                "times bare": percentile(inside, 0.5) / bare,
                "socket p50 ms": percentile(idle, 0.5),
                "p99 ms": percentile(idle, 0.99),
                "under load p50 ms": percentile(load, 0.5),
                "load p99 ms": percentile(load, 0.99),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=32)
    parser.add_argument("--quick", action="store_true", help="one node, a few reads: does it work at all?")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sizes = (1, 3, 5) if options.quick else (options.nodes, 30, 300)
    rows = rows_of(measure(*sizes))
    slowest = max(row["in process p50 ms"] for row in rows)
    notes = {
        f"every read in process p50 < {TARGET_MS:g} ms": "met" if slowest < TARGET_MS else "MISSED",
        "load": f"{sizes[0]} nodes that train a model of 7,850 parameters without any work",
    }
    show(rows, as_json=options.json, notes=notes)


if __name__ == "__main__":
    main()
