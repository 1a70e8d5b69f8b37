"""Time of a node's GET and PUT of a blob on loopback, beside the same bytes through two bare sockets.

    python bench/transfer.py [--json]

Coordinator and node are two processes. A PUT is hashed, synced to the disk and renamed before it is answered;
a GET is hashed and written to a file. The bare exchange (asyncio streams, no HTTP, no hash, no disk) is the bound.
"""

import argparse
import asyncio
import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

import numpy as np
import uvicorn
import uvloop
from blake3 import blake3
from starlette.applications import Starlette

from _common import show
from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.adapters.fabrics.hub import HubFabric
from tutti.adapters.fabrics.hub_link import HubLink
from tutti.apps.api.transfer import routes
from tutti.services.stats import Stats

SIZES = {31_000: 200, 6_600_000: 20}
QUICK = {31_000: 5}


class Doorkeeper:
    """Lets every node in and takes every update."""

    def __init__(self) -> None:
        self.stats = Stats()

    def authenticate(self, node: str, secret: str, use: str = "") -> None:
        pass

    def may_read(self, node: str, digest: str) -> bool:
        return True

    def update_limit(self, node: str) -> int:
        return 1 << 30


async def coordinator(listener: socket.socket, bare: socket.socket, root: Path) -> None:
    keeper = Doorkeeper()
    fabric, blobs = HubFabric(keeper.authenticate), DirectoryBlobs(root)
    app = Starlette(routes=routes(fabric, keeper, keeper, keeper.stats, blobs, lambda request: True))
    config = uvicorn.Config(app, http="httptools", ws="none", lifespan="off", log_level="error", access_log=False)
    async with await asyncio.start_server(_swap, sock=bare, limit=1 << 20):
        await uvicorn.Server(config).serve(sockets=[listener])


async def _swap(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take so many bytes, give as many back."""
    with contextlib.suppress(asyncio.IncompleteReadError):
        while True:
            size = int.from_bytes(await reader.readexactly(8), "little")
            writer.write(await reader.readexactly(size))
            await writer.drain()
    writer.close()


@asynccontextmanager
async def coordinator_process(root: Path) -> AsyncIterator[tuple[str, int]]:
    """Yields the address for HTTP and the port of the bare exchange."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [each.getsockname()[1] for each in sockets]
    files = [each.fileno() for each in sockets]
    command = [sys.executable, __file__, "--serve", *map(str, files), str(root)]
    process = subprocess.Popen(command, pass_fds=files)  # noqa: ASYNC220  # nothing else runs yet
    try:
        yield f"http://127.0.0.1:{ports[0]}", ports[1]
    finally:
        process.terminate()
        process.wait()


async def measure(url: str, port: int, size: int, repeats: int) -> dict[str, object]:
    rng = np.random.default_rng(size)
    puts, gets, bares = [], [], []
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    async with HubLink(url, "node", "secret") as link:
        for _ in range(repeats + 3):
            blob = rng.bytes(size)
            digest = blake3(blob).hexdigest()
            puts.append(await _timed(lambda blob=blob, digest=digest: link.store(blob, digest)))
            gets.append(await _timed(lambda digest=digest: link.fetch(digest)))
            bares.append(await _timed(lambda blob=blob: _exchange(reader, writer, blob)))
    writer.close()
    put, get, bare = (1000 * median(each[3:]) for each in (puts, gets, bares))
    return {
        "bytes": size,
        "PUT ms": put,
        "GET ms": get,
        "PUT + GET ms": put + get,
        "bare exchange ms": bare,
        "ratio": (put + get) / bare,
    }


async def _timed(work: Callable[[], Awaitable[None]]) -> float:
    start = time.perf_counter()
    await work()
    return time.perf_counter() - start


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, blob: bytes) -> None:
    writer.write(len(blob).to_bytes(8, "little"))
    writer.write(blob)
    await reader.readexactly(len(blob))


async def node(sizes: dict[int, int], *, as_json: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="tutti-bench-") as folder:
        root = Path(folder)
        async with coordinator_process(root / "blobs") as (url, port):
            rows = [await measure(url, port, size, repeats) for size, repeats in sizes.items()]
    show(rows, as_json=as_json, notes={"event loop": "uvloop in both processes"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a few small blobs: does it work at all?")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        http, bare, root = options.serve
        uvloop.run(coordinator(socket.socket(fileno=int(http)), socket.socket(fileno=int(bare)), Path(root)))
    else:
        uvloop.run(node(QUICK if options.quick else SIZES, as_json=options.json))


if __name__ == "__main__":
    main()
