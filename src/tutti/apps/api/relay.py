"""What a replica answers that does not own the log: nodes and live events itself, all else as the owner does.

Requests go to the owner as they came, with the caller's own proof; so the owner decides who may do what, and an answer
is never older than the request. While nobody owns the log, requests wait for a moment.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime

import aiohttp
import msgspec
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from yarl import URL

from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.adapters.fabrics.hub import HubFabric
from tutti.apps.api import live
from tutti.apps.api.auth import with_headers
from tutti.apps.api.blob_response import BlobResponse
from tutti.apps.api.problems import problem
from tutti.apps.api.replayed import ReplayedBody
from tutti.apps.api.settings import is_loopback
from tutti.apps.api.transfer import NodeBlobs, NodeSocket
from tutti.core.errors import NotFound, StorageError
from tutti.domain.events import Digest, NodeId
from tutti.ports.blobs import is_digest
from tutti.ports.post import Post
from tutti.services.coordinator import Coordinator
from tutti.services.relay import Relay
from tutti.services.stats import Stats
from tutti.services.views import Health
from tutti.version import __version__

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 5.0
"""How long a request waits for an owner."""

LINK_SECONDS = 2.0
"""How long a node that wants to connect does; then it is sent elsewhere."""

RETRY_SECONDS = 0.1
READ_SECONDS = 120.0
STILL_SECONDS = 5.0
"""How often the owner is asked whether somebody who listens still may."""

RELAYED = b"x-tutti-relayed"
"""Says that a request comes from a relay, and an answer that whoever was asked is none but a relay itself."""

FORWARDED_FOR = b"x-forwarded-for"
HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", RELAYED)
)
WHO_ASKS = frozenset((b"authorization", b"cookie", b"host", b"origin"))
BLOBS = "/api/v1/blobs/"


class RelayApp:
    """An ASGI application. `owned`: the one of a coordinator, once the log is ours."""

    def __init__(
        self,
        relay: Relay,
        hub: HubFabric,
        blobs: DirectoryBlobs,
        coordinator: Coordinator,
        post: Post,
        owned: Callable[[], ASGIApp | None],
        updates: DirectoryBlobs,
    ) -> None:
        """`coordinator` has not been started: its log is what the owner has written.

        `updates` has those that are kept here.
        """
        self._relay, self._blobs, self._post, self._owned = relay, blobs, post, owned
        self._traffic = hub.traffic = Stats()
        self._nodes = NodeSocket(hub)
        self._updates = NodeBlobs(_Door(relay), _Uploads(relay), self._traffic, updates, lambda request: False)
        self._live = FastAPI(openapi_url=None)
        live.add_routes(self._live, live.LiveRoutes(coordinator))
        self._client: aiohttp.ClientSession | None = None
        self._metrics = CollectorRegistry()
        self._metrics.register(_RelayCollector(relay, hub, post, self._traffic))
        ProcessCollector(registry=self._metrics)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app_for(scope)
        if scope["type"] == "http" and app != self._forward:  # what the owner answers has its headers
            send = with_headers(send, None, secure=scope["scheme"] == "https")
        await app(scope, receive, send)

    def _app_for(self, scope: Scope) -> ASGIApp:
        path = scope["path"]
        if scope["type"] == "websocket":
            return self._node if path == "/ws/node" else self._listener
        if scope["method"] == "GET":
            if path in ("/health", "/ready"):
                return self._health(path)
            if path == "/metrics":
                return self._exposition
            if path.startswith(BLOBS):
                return self._blob
        if scope["method"] in ("HEAD", "PUT") and path.startswith(BLOBS):
            return self._upload
        return self._forward

    # -- here ------------------------------------------------------------------------------------------------

    def _health(self, path: str) -> Response:
        if path == "/ready" and not self._relay.linked:
            return problem(503, self._post.trouble or "this replica has no owner to work for: it waits for one")
        word = "ready" if path == "/ready" else "healthy"
        view = Health(status=word, timestamp=datetime.now(UTC).isoformat())
        return Response(msgspec.json.encode(view), media_type="application/json")

    async def _exposition(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = await self._asked(scope)
        answer: Response = problem(status, "the owner of the log does not let you see this")
        if status == 200:
            answer = Response(generate_latest(self._metrics), media_type=CONTENT_TYPE_PLAIN_0_0_4)
        await answer(scope, receive, send)

    async def _node(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A node connects here, if this relay is heard, or will be in a moment; else elsewhere."""
        await self._relay.until_linked(LINK_SECONDS)
        if (owned := self._owned()) is not None:
            await owned(scope, receive, send)
        elif self._relay.linked:
            await self._nodes(scope, receive, send)
        else:
            await problem(503, self._post.trouble or "no coordinator is in charge: try again")(scope, receive, send)

    async def _listener(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Live events, of what the owner tells and what is in the log."""
        status = await self._asked(scope)
        if status != 200:
            await problem(status, "the owner of the log does not let you listen")(scope, receive, send)
            return
        may = [True]
        scope.setdefault("state", {})["still"] = lambda: may[0]
        asking = asyncio.create_task(self._ask_again(scope, may))
        try:
            await self._live(scope, receive, send)
        finally:
            asking.cancel()

    async def _ask_again(self, scope: Scope, may: list[bool]) -> None:
        while may[0]:
            await asyncio.sleep(STILL_SECONDS)
            may[0] = await self._asked(scope) not in (401, 403)

    async def _blob(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A model, for a node that is connected here and was told to fetch it."""
        request, digest = Request(scope, receive), scope["path"].removeprefix(BLOBS)
        if is_digest(digest) and self._relay.may_read(*_shown(request), digest):
            with suppress(NotFound, StorageError):  # then the owner says what is wrong
                path = await self._blobs.fetched(digest)
                await BlobResponse.of(request, path, digest, self._traffic)(scope, receive, send)
                return
        await self._forward(scope, receive, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An update, by a node that is connected here, if its sum is made here too."""
        if not await self._relay.keeps_update_of(*_shown(Request(scope))):
            await self._forward(scope, receive, send)
            return
        scope["path_params"] = {"digest": scope["path"].removeprefix(BLOBS)}
        await self._updates(scope, receive, send)

    # -- at the owner ----------------------------------------------------------------------------------------

    async def _asked(self, scope: Scope) -> int:
        """Which status the owner answers with to somebody who wants to look at something."""
        headers = [
            (key.decode("latin-1"), value.decode("latin-1")) for key, value in scope["headers"] if key in WHO_ASKS
        ]
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                url = URL(f"{await self._address()}/api/v1/config", encoded=True)
                async with self._session.get(url, headers=headers, allow_redirects=False) as answer:
                    return answer.status
        except (TimeoutError, aiohttp.ClientError):
            return 503

    async def _address(self) -> str:
        """Of the owner, once there is one."""
        return (await self._relay.until_owned()).url

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask the owner; another one, if it turns out to be gone before it heard of the request, or not in charge."""
        if any(name == RELAYED for name, _ in scope["headers"]):
            await _not_in_charge(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        until, body = loop.time() + PATIENCE_SECONDS, ReplayedBody(receive)
        asked = _Asked(scope, body, send)
        while loop.time() < until and body.whole:  # else only the caller can send all of it again
            if (owned := self._owned()) is not None:
                await owned(scope, body.again(), send)
                return
            if self._relay.owner is not None and await asked.at(self._session, self._relay.owner.url):
                return
            await asyncio.sleep(RETRY_SECONDS)
        await problem(503, "no coordinator is in charge: try again in a moment", headers={"retry-after": "1"})(
            scope, receive, send
        )

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._client is None:
            timeout = aiohttp.ClientTimeout(total=None, connect=PATIENCE_SECONDS, sock_read=READ_SECONDS)
            self._client = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=timeout,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            )
        return self._client


def _shown(request: Request) -> tuple[NodeId, str]:
    """The node that somebody says to be, and the secret that is shown for it."""
    scheme, _, shown = request.headers.get("authorization", "").partition(" ")
    node, _, secret = shown.partition(":") if scheme.lower() == "bearer" else ("", "", "")
    return node, secret


class _Door:
    """For whoever uploads here."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def authenticate(self, node: NodeId, secret: str, use: str) -> None:
        self._relay.check_secret(node, secret)


class _Uploads:
    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def may_read(self, node: NodeId, digest: Digest) -> bool:
        return False

    def update_limit(self, node: NodeId) -> int:
        return self._relay.sums.access.update_limit(node) if self._relay.sums else 0


async def _not_in_charge(scope: Scope, receive: Receive, send: Send) -> None:
    headers = {RELAYED.decode(): "1", "retry-after": "1"}
    await problem(503, "this replica is not in charge: ask again in a moment", headers=headers)(scope, receive, send)


class _Asked:
    """A request on its way to the owner."""

    def __init__(self, scope: Scope, body: ReplayedBody, send: Send) -> None:
        self._scope, self._body, self._send = scope, body, send
        self._begun = False
        raw = scope.get("raw_path") or scope["path"].encode()
        self._target = raw.decode("latin-1") + (
            f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else ""
        )
        names = {name for name, _ in scope["headers"]}
        self._has_body = b"content-length" in names or b"transfer-encoding" in names

    async def at(self, session: aiohttp.ClientSession, address: str) -> bool:
        """Ask there, and answer; False if nobody there has heard of it, or it may be asked again."""
        if not address:
            return False
        method = self._scope["method"]
        headers = [*_passed(self._scope), (RELAYED.decode(), "1")]
        try:
            async with session.request(
                method,
                URL(address + self._target, encoded=True),
                headers=headers,
                data=self._body.parts() if self._has_body else None,
                allow_redirects=False,
            ) as answer:
                if RELAYED.decode() in answer.headers:
                    return self._begun
                await self._pass_on(answer)
                return True
        except aiohttp.ClientConnectorError:
            return False
        except (aiohttp.ClientError, TimeoutError) as error:
            if self._body.left:
                return True
            if self._begun:
                raise  # half an answer: the connection is all that can tell
            if method in ("GET", "HEAD"):
                return False
            detail = (
                f"the coordinator in charge did not answer ({error}): perhaps it was done, look before you ask again"
            )
            await problem(502, detail)(self._scope, self._body.again(), self._send)
            return True

    async def _pass_on(self, answer: aiohttp.ClientResponse) -> None:
        headers = [(name.lower(), value) for name, value in answer.raw_headers if name.lower() not in HOP_BY_HOP]
        await self._send({"type": "http.response.start", "status": answer.status, "headers": headers})
        self._begun = True
        async for chunk in answer.content.iter_any():
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


def _passed(scope: Scope) -> list[tuple[str, str]]:
    """The headers for the owner, which trusts us: for whom we ask is what we know, and not what the caller says."""
    headers = [(name, value) for name, value in scope["headers"] if name not in HOP_BY_HOP and name != FORWARDED_FOR]
    caller = scope["client"][0] if scope["client"] else ""
    if not is_loopback(caller) or any(name == FORWARDED_FOR for name, _ in scope["headers"]):
        headers.append((FORWARDED_FOR, caller.encode()))
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


class _RelayCollector(Collector):
    def __init__(self, relay: Relay, hub: HubFabric, post: Post, traffic: Stats) -> None:
        self._relay, self._hub, self._post, self._traffic = relay, hub, post, traffic

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("tutti_relay_linked", "Whether the owner hears this replica.", self._relay.linked)
        yield GaugeMetricFamily("tutti_relay_nodes", "Nodes connected to this replica.", self._relay.nodes)
        made = self._relay.sums.made if self._relay.sums else 0
        yield CounterMetricFamily("tutti_relay_sums", "Sums of updates that the owner was given.", made)
        yield GaugeMetricFamily("tutti_redis_up", "Whether Redis answers.", not self._post.trouble)
        queues = GaugeMetricFamily("tutti_queue_depth", "Messages that wait.", labels=["queue"])
        for queue, depth in self._hub.depths().items():
            queues.add_metric([queue], depth)
        yield queues
        moved = CounterMetricFamily(
            "tutti_relay_bytes", "Bytes of models and updates moved here.", labels=["direction"]
        )
        moved.add_metric(["in"], self._traffic.bytes_in)
        moved.add_metric(["out"], self._traffic.bytes_out)
        yield moved
        info = GaugeMetricFamily("tutti_build_info", "1, with the version.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
