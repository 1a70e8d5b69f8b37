"""What a message broker costs: messages a second, rounds beside the hub, large models through S3, many queues.

    python bench/broker.py [--json] [--quick] [--gigabyte]

Needs RabbitMQ and an S3 store (`make services`). A round is what the fabric has to do with it: n nodes hear of their
work, get a model of 100 kB, put an update of the same size, hand it in, and all of it is heard. Messages are compared
with bare aio-pika, rounds with the hub in the same run, the model through S3 with the bytes copied in memory.
"""

import argparse
import asyncio
import os
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import aio_pika
import pytest
import uvicorn
from blake3 import blake3
from starlette.applications import Starlette

from _common import copy_bandwidth, peak_anonymous, show
from transfer import Doorkeeper
from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.adapters.blobs.mirrored import MirroredBlobs
from tutti.adapters.blobs.s3 import S3Blobs
from tutti.adapters.fabrics import amqp, presigned
from tutti.adapters.fabrics.amqp import Address
from tutti.adapters.fabrics.broker import BrokerFabric
from tutti.adapters.fabrics.broker_link import BrokerLink
from tutti.adapters.fabrics.bucket import BucketDepot
from tutti.adapters.fabrics.download import Download
from tutti.adapters.fabrics.hub import HubFabric
from tutti.adapters.fabrics.hub_link import HubLink
from tutti.apps.api.transfer import routes
from tutti.ports import Arrived, Fabric, Link, Said
from tutti.testing.fabrics import authenticate, registration, token_of, work
from tutti.wire import broker as wire
from tutti.wire.messages import Start, Submission

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.services import bucket, coordinator_uid

PAYLOAD = 100_000
AT_ONCE = 64
Row: TypeAlias = dict[str, object]


def row(what: str, measured: float, beside: float) -> Row:
    return {"what": what, "measured": measured, "beside": beside, "ratio": measured / beside}


async def messages(address: Address, count: int) -> Row:
    """Confirmed messages of a progress report's size a second, ours and bare."""
    connection = await amqp.connect(address)
    async with connection, connection.channel() as bare:
        ours = await amqp.open_channel(connection)
        await amqp.declare_events(ours, address)
        letter = wire.Leave(session="s" * 48, seq=1)
        body = aio_pika.Message(wire.encode(letter), delivery_mode=aio_pika.DeliveryMode.PERSISTENT)

        async def rate(publish) -> float:
            turns, began = asyncio.Semaphore(AT_ONCE), time.perf_counter()

            async def one() -> None:
                async with turns:
                    await publish()

            await asyncio.gather(*(one() for _ in range(count)))
            return count / (time.perf_counter() - began)

        ours_rate = await rate(lambda: amqp.publish(ours, address.events, letter))
        bare_rate = await rate(lambda: bare.default_exchange.publish(body, address.events))
    return row("confirmed messages/s, beside bare aio-pika", ours_rate, bare_rate)


class Node:
    """Does what a round asks of a node, without computing."""

    def __init__(self, name: str, link: Link) -> None:
        self.name, self.link = name, link

    async def live(self) -> None:
        async for message in await self.link.connect(registration(self.name)):
            if isinstance(message, Start):
                await self.link.fetch(message.weights)
                update = os.urandom(PAYLOAD)
                digest = blake3(update).hexdigest()
                await self.link.store(update, digest)
                await self.link.send(Submission(job=message.job, round=message.round, attempt=0, digest=digest))


async def rounds(fabric: Fabric, model: str, nodes: list[Node], count: int) -> float:
    """Seconds a round."""
    living = [asyncio.create_task(node.live()) for node in nodes]
    events, here = fabric.events(), 0
    while here < len(nodes):
        here += isinstance(await anext(events), Arrived)
    began = time.perf_counter()
    for _ in range(count):
        for node in nodes:
            assert fabric.send(node.name, work(model))
        heard = 0
        while heard < len(nodes):
            event = await anext(events)
            heard += isinstance(event, Said) and isinstance(event.message, Submission)
    seconds = (time.perf_counter() - began) / count
    for task in living:
        task.cancel()
    await asyncio.gather(*living, return_exceptions=True)
    return seconds


@asynccontextmanager
async def hub(root: Path) -> AsyncIterator[tuple[HubFabric, str, DirectoryBlobs]]:
    keeper, blobs = Doorkeeper(), DirectoryBlobs(root)
    fabric = HubFabric(authenticate)
    app = Starlette(routes=routes(fabric, keeper, keeper, keeper.stats, blobs, lambda request: True))
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, ws="websockets-sansio", lifespan="off", log_level="error", access_log=False)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve([listener]))
    yield fabric, f"http://127.0.0.1:{listener.getsockname()[1]}", blobs
    server.should_exit = True
    await serving


async def round_of(peers: int, count: int, address: Address, store: S3Blobs, root: Path) -> Row:
    async with hub(root / str(peers)) as (fabric, url, blobs):
        links = [HubLink(url, f"n{i}", token_of(f"n{i}")) for i in range(peers)]
        model = await blobs.put(os.urandom(PAYLOAD))
        by_hub = await rounds(fabric, model, [Node(f"n{i}", link) for i, link in enumerate(links)], count)
        await asyncio.gather(*(link.close() for link in links))
    model = await store.put(os.urandom(PAYLOAD))
    mirrored = MirroredBlobs(root / f"broker-{peers}", store)
    depot = BucketDepot(mirrored, lambda node, digest: True, lambda node: 1 << 30)
    async with BrokerFabric(address, authenticate, depot=depot) as broker:
        running = asyncio.create_task(broker.run())
        peers_links = [BrokerLink(address, f"n{i}", token_of(f"n{i}")) for i in range(peers)]
        nodes = [Node(f"n{i}", link) for i, link in enumerate(peers_links)]
        by_broker = await rounds(broker, model, nodes, count)
        await asyncio.gather(*(link.close() for link in peers_links))
        running.cancel()
        await asyncio.wait([running])
    return row(f"seconds a round of {peers} peers, beside the hub", by_broker, by_hub)


async def large(store: S3Blobs, size: int) -> tuple[list[Row], dict[str, object]]:
    """Put, got by a pre-signed address as a node does, and read as the coordinator does; memory beyond one model."""
    model = bytearray(os.urandom(1 << 20) * (size >> 20))
    bound, name, megabytes = copy_bandwidth() / 1e6, f"model of {size >> 20} MiB", size / 1e6
    with peak_anonymous() as putting:
        began = time.perf_counter()
        digest = await store.put(model)
        put = megabytes / (time.perf_counter() - began)
    del model
    with peak_anonymous() as getting:
        async with presigned.open_session(10, 60, None) as http:
            began = time.perf_counter()
            await presigned.read(http, await store.link(digest, 600), Download(digest))
            got = megabytes / (time.perf_counter() - began)
    with peak_anonymous() as reading:
        began = time.perf_counter()
        await store.read(digest)
        read = megabytes / (time.perf_counter() - began)
    rows = [
        row(f"{name}, put in MB/s, beside a copy in memory", put, bound),
        row(f"{name}, got by a node in MB/s, beside the same", got, bound),
        row(f"{name}, read by the coordinator in MB/s, beside the same", read, bound),
    ]
    peaks = {"put": putting, "get (holds the model)": getting, "read (maps it)": reading}
    return rows, {f"peak memory of {what}, MB": (peak.bytes or 0) / 1e6 for what, peak in peaks.items()}


async def queues(address: Address, count: int) -> Row:
    """Make so many peers' queues, say something to each, and remove them; beside saying it all to one."""
    connection = await amqp.connect(address)
    names = [address.commands(f"many{i}") for i in range(count)]
    letter = wire.Leave(session="s" * 48, seq=1)
    async with connection, connection.channel() as channel:
        saying = await amqp.open_channel(connection)
        for name in names:
            await amqp.declare_commands(channel, name)

        async def told(chosen: list[str]) -> float:
            began = time.perf_counter()
            await asyncio.gather(*(amqp.publish(saying, name, letter) for name in chosen))
            return time.perf_counter() - began

        many, one = await told(names), await told(names[:1] * count)
        for name in names:
            await channel.queue_delete(name)
    return row(f"seconds to tell {count} peers something, beside one queue", many, one)


async def measured(quick: bool, gigabyte: bool) -> tuple[list[Row], dict[str, object]]:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        async with bucket(patch) as url, coordinator_uid() as address:
            store = await S3Blobs.open(url)
            rows = [await messages(address, 200 if quick else 10_000)]
            for peers in (2,) if quick else (2, 10, 50):
                rows.append(await round_of(peers, 2 if quick else 10, address, store, Path(folder)))
            rows.append(await queues(address, 10 if quick else 1000))
            of_large, notes = await large(store, (1 << 30) if gigabyte else (2 << 20) if quick else (128 << 20))
    return rows + of_large, notes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="so small that the figures mean nothing")
    parser.add_argument("--gigabyte", action="store_true", help="a model of 1 GiB instead of 128 MiB")
    options = parser.parse_args()
    rows, notes = asyncio.run(measured(options.quick, options.gigabyte))
    show(rows, as_json=options.json, notes=notes)


if __name__ == "__main__":
    main()
