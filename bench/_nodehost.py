"""A process that hosts nodes for a benchmark. One line of JSON when all are connected, one for each question.

    python _nodehost.py nodes|links|sockets <join link or ws url> <first> <last> <folder>

`nodes` are whole node runtimes, `links` only connections that register and send heartbeats, `sockets` bare WebSockets.
"""

import asyncio
import contextlib
import json
import os
import socket
import stat
import struct
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import uvloop

import _nowork
from tutti.adapters.fabrics.hub_link import HubLink
from tutti.apps.client import Client
from tutti.domain.nodes import Capabilities, DataSummary
from tutti.domain.policy import Policy
from tutti.ports import Link
from tutti.ports.machine import Load
from tutti.ports.training import models
from tutti.services.node import NodeRuntime
from tutti.wire.messages import PROTOCOL, Heartbeat, Registered, Registration, Submission, Verdict

SECRET = "a-secret-for-a-benchmark-on-loopback"
AT_ONCE = 64
Answer = Callable[[str], Awaitable[dict[str, object]]]


class Idle:
    """Implements ports.machine.Host: nobody looks at the machine here, for 32 nodes share it."""

    def capabilities(self) -> Capabilities:
        return Capabilities()

    def load(self) -> Load:
        return Load(0.0, 0.0)


async def nodes(link: str, names: list[str], folder: Path) -> AsyncIterator[Answer]:
    url, _, token = link.partition("/join#")
    await asyncio.to_thread(join, url, token, names)
    port = urlsplit(url).port
    async with contextlib.AsyncExitStack() as stack:
        links = [await stack.enter_async_context(Noticing(url, name, SECRET)) for name in names]
        running = [
            asyncio.create_task(runtime(each, name, folder).run()) for each, name in zip(links, names, strict=True)
        ]
        for each in links:
            await each.registered.wait()

        async def answer(question: str) -> dict[str, object]:
            if question.startswith("back "):
                since = float(question.removeprefix("back "))
                return {"seconds": [each.back(since) for each in links]}
            return await traffic(port)

        yield answer
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


class Noticing(HubLink):
    """A link that says when it is through."""

    def __init__(self, *args: str) -> None:
        super().__init__(*args)
        self.registered = asyncio.Event()
        self._at = 0.0

    async def connect(self, registration: Registration):  # type: ignore[no-untyped-def]
        messages = await super().connect(registration)
        self._at = time.time()
        self.registered.set()
        return messages

    def back(self, since: float) -> float:
        """Seconds from then until it was through once more; 0 if its connection has stayed."""
        return max(0.0, self._at - since)


def join(url: str, token: str, names: list[str]) -> None:
    with Client(url) as client:
        for name in names:
            client.join(token, name, SECRET)


def runtime(link: Link, name: str, folder: Path) -> NodeRuntime:
    return NodeRuntime(
        name=name,
        token=SECRET,
        link=link,
        data=_nowork.data(),
        policy=Policy(),
        machine=Idle(),
        workdir=folder / name,
        trainer_for=lambda model, schema: models.build(model, data=schema),
    )


# -- connections without a runtime -----------------------------------------------------------------------


async def links(link: str, names: list[str], folder: Path) -> AsyncIterator[Answer]:
    url, _, token = link.partition("/join#")
    await asyncio.to_thread(join, url, token, names)
    gate, beating = asyncio.Semaphore(AT_ONCE), set()
    opened: list[tuple[HubLink, AsyncIterator[object]]] = []

    async def connect(name: str, number: int) -> None:
        data = _nowork.data()
        registration = Registration(
            protocol=PROTOCOL,
            node=name,
            token=SECRET,
            capabilities=Capabilities(cpus=8, memory=16 << 30, platform="Linux x86_64", versions={"tutti": "0.1.0"}),
            data=DataSummary("idle", data.schema, 1000),  # no job trains on it
        )
        one = HubLink(url, name, SECRET)
        async with gate:
            messages = await one.connect(registration)
            welcome = await anext(messages)
        assert isinstance(welcome, Registered)
        opened.append((one, messages))
        beating.add(asyncio.create_task(beat(one, welcome.heartbeat, number / len(names))))

    async def answer(question: str) -> dict[str, object]:
        if question == "connect":
            start = time.perf_counter()
            await asyncio.gather(*(connect(name, number) for number, name in enumerate(names)))
            return {"seconds": time.perf_counter() - start}
        one, messages = opened[0]
        return {"seconds": [await round_trip(one, messages) for _ in range(int(question))]}

    yield answer
    for task in beating:
        task.cancel()
    await asyncio.gather(*(one.close() for one, _ in opened))


async def beat(link: HubLink, every: float, phase: float) -> None:
    """Heartbeats, spread over the interval as those of nodes are that came at different times."""
    await asyncio.sleep(every * phase)
    while True:
        await link.send(Heartbeat(cpu=0.5, memory=0.5))
        await asyncio.sleep(every)


async def round_trip(link: HubLink, messages: AsyncIterator[object]) -> float:
    """A heartbeat has no answer; a submission to no job behind it has one, once the heartbeat is processed."""
    start = time.perf_counter()
    await link.send(Heartbeat(cpu=0.5, memory=0.5))
    await link.send(Submission(job="none", round=1, attempt=0))
    assert isinstance(await anext(messages), Verdict)
    return time.perf_counter() - start


async def sockets(url: str, names: list[str], folder: Path) -> AsyncIterator[Answer]:
    """The peer of `links`: as many WebSockets of the same client library, to a server that only echoes."""
    opened: list[aiohttp.ClientWebSocketResponse] = []
    gate = asyncio.Semaphore(AT_ONCE)
    async with contextlib.AsyncExitStack() as stack:

        async def connect() -> None:
            connector = aiohttp.TCPConnector(limit=0)
            session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
            async with gate:
                opened.append(await session.ws_connect(url))

        async def answer(question: str) -> dict[str, object]:
            if question == "connect":
                start = time.perf_counter()
                await asyncio.gather(*(connect() for _ in names))
                return {"seconds": time.perf_counter() - start}
            return {"seconds": [await echo(opened[0]) for _ in range(int(question))]}

        yield answer


async def echo(one: aiohttp.ClientWebSocketResponse) -> float:
    start = time.perf_counter()
    await one.send_str('{"type":"device:heartbeat","cpu":0.5,"memory":0.5}')
    await one.receive()
    return time.perf_counter() - start


# -- what travels ----------------------------------------------------------------------------------------


async def traffic(port: int | None) -> dict[str, object]:
    """Bytes in TCP's payload, both ways, over this process's open connections to a port."""
    sent = received = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.stat(int(name)).st_mode):
                with socket.socket(fileno=os.dup(int(name))) as one:
                    if one.family is not socket.AF_UNIX and one.getpeername()[1] == port:
                        info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                        acknowledged, came = struct.unpack_from("=QQ", info, 120)  # tcpi_bytes_acked, _received
                        sent, received = sent + acknowledged, received + came
    return {"sent": sent, "received": received}


async def serve(kind: str, address: str, first: int, last: int, folder: Path) -> None:
    names = [f"node-{number:05d}" for number in range(first, last)]
    questions = lines()
    async with contextlib.aclosing(
        {"nodes": nodes, "links": links, "sockets": sockets}[kind](address, names, folder)
    ) as it:
        answer = await anext(it)
        print(json.dumps({"ready": len(names)}), flush=True)
        while (question := await questions.get()) is not None:
            print(json.dumps(await answer(question)), flush=True)
        with contextlib.suppress(StopAsyncIteration):
            await anext(it)


def lines() -> "asyncio.Queue[str | None]":
    """The lines of standard input, then None."""
    queue: asyncio.Queue[str | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(queue.put_nowait, line.strip())
        loop.call_soon_threadsafe(queue.put_nowait, None)

    threading.Thread(target=read, daemon=True).start()
    return queue


if __name__ == "__main__":
    kind, address, first, last, folder = sys.argv[1:]
    uvloop.run(serve(kind, address, int(first), int(last), Path(folder)))
