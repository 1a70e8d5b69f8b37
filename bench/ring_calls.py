"""Small calls and blobs over the ring's Thrift transport, against Apache's own client and server in the same run.

The peer is Apache's TThreadedServer with framed transport and its accelerated protocol in a process of its own, called
by Apache's client: what one has who writes a Thrift service in Python. Ours is a member of a ring in a process of its
own, called by our client (and by Apache's). Blobs go in the protocol's chunks of 1 MiB, one call after another.

    python bench/ring_calls.py [--quick] [--json]
"""

import argparse
import asyncio
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

from blake3 import blake3

from _common import show

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "stock_thrift"))

from thrift.protocol.TBinaryProtocol import TBinaryProtocolAccelerated, TBinaryProtocolAcceleratedFactory
from thrift.server.TServer import TThreadedServer
from thrift.transport.TSocket import TServerSocket, TSocket
from thrift.transport.TTransport import TFramedTransport, TFramedTransportFactory
from tutti_ring.compute_node import ComputeNode as Stock
from tutti_ring.compute_node import ttypes as stock

from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.adapters.blobs.held import HeldBlobs
from tutti.adapters.thrift.client import Channel
from tutti.adapters.thrift.idl import CHUNK, PROTOCOL, compute_node, key_bytes
from tutti.adapters.thrift.node import ComputeNode, ThriftPeers, peer_at
from tutti.adapters.thrift.server import Server
from tutti.services.ring import RingMember

WITHIN = 60.0


class Memory:
    """Apache's handler: a view of one member, and one blob in memory."""

    def __init__(self, blob: bytes) -> None:
        self.blob = blob
        self.view = stock.View(stock.Peer(bytes(20), "127.0.0.1:1", 0), None, [], [], [])

    def ask(self, protocol: int, key: bytes, asker: object) -> object:
        return self.view

    def fetch(self, digest: bytes, offset: int) -> object:
        return stock.Part(len(self.blob), self.blob[offset : offset + CHUNK])


def serve_apache(told: Connection, blob: bytes) -> None:
    socket = TServerSocket("127.0.0.1", 0)
    socket.listen()
    told.send(socket.handle.getsockname()[1])
    socket.listen = lambda: None  # serve() listens again, at another port
    server = TThreadedServer(
        Stock.Processor(Memory(blob)), socket, TFramedTransportFactory(), TBinaryProtocolAcceleratedFactory()
    )
    server.serve()


def serve_ours(told: Connection, blob: bytes) -> None:
    async def main() -> None:
        with tempfile.TemporaryDirectory() as root:
            blobs = HeldBlobs(DirectoryBlobs(Path(root)))
            await blobs.put(blob)
            peers = ThriftPeers()
            member = RingMember(peer_at("127.0.0.1:1"), peers)
            server = Server(compute_node.ComputeNode, ComputeNode(member, blobs))
            told.send(await server.start("127.0.0.1", 0))
            await asyncio.Event().wait()

    asyncio.run(main())


def by_apache(port: int, calls: int, digest: bytes, size: int) -> tuple[float, float]:
    """Seconds for one small call (median), and bytes a second."""
    transport = TFramedTransport(TSocket("127.0.0.1", port))
    transport.open()
    client = Stock.Client(TBinaryProtocolAccelerated(transport))
    small = median(_timed(lambda: client.ask(PROTOCOL, key_bytes(1), None)) for _ in range(calls))
    whole = _timed(lambda: [client.fetch(digest, offset) for offset in range(0, size, CHUNK)])
    transport.close()
    return small, size / whole


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


async def by_ours(port: int, calls: int, digest: bytes, size: int) -> tuple[float, float]:
    channel = Channel(compute_node.ComputeNode, "127.0.0.1", port)
    durations = []
    for _ in range(calls):
        start = time.perf_counter()
        await channel.call("ask", PROTOCOL, key_bytes(1), None, within=WITHIN)
        durations.append(time.perf_counter() - start)
    start = time.perf_counter()
    for offset in range(0, size, CHUNK):
        await channel.call("fetch", digest, offset, within=WITHIN)
    whole = time.perf_counter() - start
    await channel.close()
    return median(durations), size / whole


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="only show that it works")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    calls, size = (20, 2 * CHUNK) if options.quick else (3000, 64 * 1024 * 1024)
    blob = os.urandom(size)
    digest = blake3(blob).digest()
    context = multiprocessing.get_context("spawn")
    ports, processes = {}, []
    for name, serve in (("apache", serve_apache), ("ours", serve_ours)):
        here, there = context.Pipe()
        process = context.Process(target=serve, args=(there, blob), daemon=True)
        process.start()
        processes.append(process)
        ports[name] = here.recv()
    measured = {
        "apache client, apache server": by_apache(ports["apache"], calls, digest, size),
        "apache client, our server": by_apache(ports["ours"], calls, digest, size),
        "our client, our server": asyncio.run(by_ours(ports["ours"], calls, digest, size)),
    }
    for process in processes:
        process.kill()
    peer = measured["apache client, apache server"]
    rows = [
        {
            "what": what,
            "call us": small * 1e6,
            "MB/s": speed / 1e6,
            "call / apache": small / peer[0],
            "MB/s / apache": speed / peer[1],
        }
        for what, (small, speed) in measured.items()
    ]
    show(rows, as_json=options.json, notes={"calls": calls, "MB": size / 1e6})


if __name__ == "__main__":
    main()
