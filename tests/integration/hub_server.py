"""A real server with the node routes, on a port of the operating system's choice, and a cable that can be cut."""

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.adapters.fabrics.hub import HubFabric, HubLimits
from tutti.adapters.fabrics.hub_link import HubLink
from tutti.apps.api.transfer import routes
from tutti.apps.sockets import Sockets
from tutti.core.errors import Forbidden
from tutti.domain.nodes import Capabilities, DataSummary
from tutti.domain.spec import DataSchema
from tutti.services.stats import Stats
from tutti.wire.messages import PROTOCOL, Registration

SECRET = "the secret of every node here"


def one_secret(node: str, secret: str) -> None:
    if secret != SECRET:
        raise Forbidden(f"the token is not that of node {node!r}")


@dataclass
class Doorkeeper:
    """What the hub and the routes ask of a coordinator: one secret for all nodes, one limit for all updates.

    `models` are the digests that nodes may read; None for every one.
    """

    check: Callable[[str, str], None] = one_secret
    limit: int = 64 << 20
    models: set[str] | None = None
    stats: Stats = field(default_factory=Stats)
    turned_away: list[tuple[str, str]] = field(default_factory=list)

    def authenticate(self, node: str, secret: str, use: str = "") -> None:
        self.check(node, secret)

    def may_read(self, node: str, digest: str) -> bool:
        return self.models is None or digest in self.models

    def update_limit(self, node: str) -> int:
        return self.limit

    async def turn_away(self, node: str, reason: str) -> None:
        self.turned_away.append((node, reason))


@dataclass
class Hub:
    """A running server. `requests` counts HTTP requests by method, `ranges` has the Range headers that came."""

    url: str
    fabric: HubFabric
    keeper: Doorkeeper
    blobs: DirectoryBlobs
    requests: Counter[str] = field(default_factory=Counter)
    ranges: list[str] = field(default_factory=list)
    running: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def link(self, node: str = "anna", secret: str = SECRET, **options: object) -> HubLink:
        return HubLink(self.url, node, secret, **options)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until it holds; looked at whenever a request begins, ends, or brings a piece of its body."""
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(condition)

    async def tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()


class _Server(uvicorn.Server):
    capture_signals = nullcontext


@asynccontextmanager
async def running_hub(
    root: Path,
    *,
    keeper: Doorkeeper | None = None,
    limits: HubLimits | None = None,
    tls: tuple[Path, Path] | None = None,
) -> AsyncIterator[Hub]:
    keeper, blobs = keeper or Doorkeeper(), DirectoryBlobs(root)
    fabric = HubFabric(keeper.authenticate, turned_away=keeper.turn_away, limits=limits)
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
    hub = Hub(url, fabric, keeper, blobs)
    blob_routes = routes(fabric, keeper, keeper, keeper.stats, blobs, lambda request: "operator" in request.headers)
    app = Starlette(routes=blob_routes)
    config = uvicorn.Config(
        _counted(app, hub),
        http="httptools",
        ws=Sockets,
        ws_per_message_deflate=False,
        ws_max_size=1 << 20,
        ws_ping_interval=None,
        lifespan="off",
        log_level="error",
        access_log=False,
        timeout_graceful_shutdown=1,
        ssl_certfile=tls[0] if tls else None,
        ssl_keyfile=tls[1] if tls else None,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield hub
    finally:
        server.should_exit = True
        await serving


def _counted(app: ASGIApp, hub: Hub) -> ASGIApp:
    async def counting(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return

        async def receive_and_tell() -> Message:
            await hub.tell()
            return await receive()

        hub.requests[scope["method"]] += 1
        hub.ranges.extend(value.decode() for name, value in scope["headers"] if name == b"range")
        hub.running += 1
        try:
            await app(scope, receive_and_tell, send)
        finally:
            hub.running -= 1
            await hub.tell()

    return counting


class Cable:
    """A TCP relay to the server that breaks, once, after so many bytes in one direction."""

    def __init__(self, hub: Hub) -> None:
        self._port = int(hub.url.rpartition(":")[2])
        self.up: int | None = None
        self.down: int | None = None
        self.url = ""

    @asynccontextmanager
    async def plugged(self) -> AsyncIterator["Cable"]:
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        ways = [
            asyncio.create_task(self._carry(reader, far_writer, "up")),
            asyncio.create_task(self._carry(far_reader, writer, "down")),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        writer.transport.abort()
        far_writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        while data := await reader.read(1 << 16):
            left = getattr(self, way)
            if left is not None and len(data) >= left:
                setattr(self, way, None)
                return
            if left is not None:
                setattr(self, way, left - len(data))
            writer.write(data)
            await writer.drain()


def registration(node: str = "anna", *, secret: str = SECRET, protocol: int = PROTOCOL) -> Registration:
    data = DataSummary("digits", DataSchema("classification", (64,), 10), examples=100)
    return Registration(protocol=protocol, node=node, token=secret, capabilities=Capabilities(), data=data)
