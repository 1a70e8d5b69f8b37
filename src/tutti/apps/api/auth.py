"""Who may call: a guard before every route. Unless a path is listed as open, only the operator comes through.

Bound to loopback, the operator is whoever sits at the machine and needs no token; then the guard checks
instead that no web page speaks for them: the Host must name this machine (else DNS could be rebound to it).
Everywhere, a request that a browser sends for another site (its Origin is not the Host) is refused.
"""

import ipaddress
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from hmac import compare_digest
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tutti.apps.api.problems import problem
from tutti.core.errors import UserError
from tutti.services.coordinator import fingerprint

OPEN = re.compile(
    r"GET /health|GET /docs|GET /static-offline-docs/[\w.-]+|GET /openapi\.json|"
    r"POST /api/v1/(nodes(/register)?|invites/check)|"  # prove themselves by a join token
    r"WS /ws/node|(GET|HEAD|PUT) /api/v1/blobs/[^/]*"  # prove themselves by a node's secret
)

TOO_MANY = "too many failed attempts, wait a moment"

DOCS_POLICY = (
    "default-src 'none'; connect-src 'self'; frame-ancestors 'none'; img-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'"
)
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """Where the API listens and who may use it.

    Attributes:
        token: Fingerprint of the operator's token; None if there is none.
        authenticate: Whether the operator must show it; None: unless bound to loopback.
        url: The address by which nodes reach the coordinator; empty if only a request's own is known.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    authenticate: bool | None = None
    url: str = ""

    def __post_init__(self) -> None:
        if self.needs_token and self.token is None:
            raise UserError(f"an operator token is required to listen on {self.host}: give one, or bind to 127.0.0.1")

    @property
    def needs_token(self) -> bool:
        return not is_loopback(self.host) if self.authenticate is None else self.authenticate


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


@lru_cache(maxsize=256)
def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class Failures:
    """A token bucket per client for failed proofs: `burst` at once, then `rate` a second. Bounded in memory.

    Ask after the proof has failed, not before: people behind one address share a bucket, and whoever shows the
    right token must not pay for the others. Tokens are too long to be guessed.
    """

    def __init__(
        self,
        burst: float = 20.0,
        rate: float = 1.0,
        clients: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._burst, self._rate, self._clients, self._clock = burst, rate, clients, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> (tokens, at)

    def allows(self, client: str) -> bool:
        """Whether this client may try again."""
        return self._tokens(client) >= 1.0

    def count(self, client: str) -> None:
        """The client has failed once more."""
        tokens = self._tokens(client)
        self._buckets[client] = (max(0.0, tokens - 1.0), self._clock())
        self._buckets.move_to_end(client)
        if len(self._buckets) > self._clients:
            self._buckets.popitem(last=False)

    def _tokens(self, client: str) -> float:
        tokens, at = self._buckets.get(client, (self._burst, 0.0))
        return min(self._burst, tokens + (self._clock() - at) * self._rate)


class Guard:
    """ASGI middleware: refuses what may not come in, and puts the security headers on what goes out.

    Leaves `operator` (bool) in the connection's state for the routes that are open.
    """

    def __init__(self, app: ASGIApp, settings: ApiSettings, failures: Failures) -> None:
        self._app, self._settings, self._failures = app, settings, failures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        app = self._app if refusal is None else refusal
        if scope["type"] == "http" or refusal is not None:  # the frames of a WebSocket have no headers
            send = _with_headers(send, DOCS_POLICY if scope["path"] == "/docs" else None)
        await app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        connection = HTTPConnection(scope)
        if reason := self._foreign(connection):
            return problem(403, reason)
        scope.setdefault("state", {})["operator"] = operator = self._is_operator(connection)
        method = "WS" if scope["type"] == "websocket" else scope["method"]
        if operator or OPEN.fullmatch(f"{method} {scope['path']}"):
            return None
        return self._unproven(connection)

    def _foreign(self, connection: HTTPConnection) -> str | None:
        """Why the request cannot have been meant for this coordinator by its operator."""
        host, origin = connection.headers.get("host", ""), connection.headers.get("origin")
        if origin is not None and _netloc(origin) != host.lower():
            return f"a page of {origin[:200]} may not call {host[:200]}"
        if self._settings.needs_token:
            return None
        if not is_loopback(_hostname(host)):
            return f"this coordinator listens on {self._settings.host} only; it is not called {host[:200]!r}"
        if "forwarded" in connection.headers or "x-forwarded-for" in connection.headers:
            return "the request came through a proxy, and this coordinator asks for no token: switch tokens on"
        return None

    def _is_operator(self, connection: HTTPConnection) -> bool:
        if not self._settings.needs_token:
            return True
        token = bearer(connection)
        return bool(token) and compare_digest(fingerprint(token), self._settings.token or "")

    def _unproven(self, connection: HTTPConnection) -> Response:
        client = client_of(connection)
        if not self._failures.allows(client):
            return problem(429, TOO_MANY, headers={"retry-after": "5"})
        if not bearer(connection):
            return problem(401, "the operator's token is missing", headers={"www-authenticate": "Bearer"})
        self._failures.count(client)
        return problem(401, "this is not the operator's token", headers={"www-authenticate": "Bearer"})


def bearer(connection: HTTPConnection) -> str:
    """The token of an `Authorization: Bearer` header; empty if there is none."""
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def client_of(connection: HTTPConnection) -> str:
    return connection.client.host if connection.client else ""


_RAW_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]


def _with_headers(send: Send, policy: str | None) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            headers = message.setdefault("headers", [])
            present = {name for name, _ in headers}
            headers.extend(pair for pair in _RAW_HEADERS if pair[0] not in present)
            if policy is not None:
                MutableHeaders(scope=message)["content-security-policy"] = policy
        await send(message)

    return send_with_headers
