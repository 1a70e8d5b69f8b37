"""Who may call: a guard before every route. Unless a path is listed as open, callers must have the role it takes.

Bound to loopback and without accounts, the operator is whoever sits at the machine and needs no token; then the
guard checks instead that no web page speaks for them: the Host must name this machine (else DNS could be rebound
to it). Everywhere, a request that a browser sends for another site (its Origin is not the Host) is refused.
"""

import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tutti.apps.api.identify import Identify, bearer
from tutti.apps.api.problems import problem
from tutti.apps.api.settings import is_loopback
from tutti.core.errors import Forbidden, StorageError
from tutti.domain.accounts import Identity, Role, allows, check_may
from tutti.services.accounts import Accounts

log = logging.getLogger(__name__)

PAGES = re.compile(r"/|/dashboard(/.*)?")
"""Paths of the dashboard: it is the same page everywhere, and looks at the address itself."""

NODE_PAGES = re.compile(r"/join|/node|/assets/.*\.js|/node-worker\.js")
"""Paths of the browser node, and of scripts: a worker has the policy with which its script came."""

READING = frozenset({"GET", "HEAD", "OPTIONS", "WS"})

OPEN = re.compile(
    r"(GET|HEAD) (/|/join|/node|/dashboard(/.*)?|/assets/[\w.-]+|/favicon\.svg|"
    r"/icon-\d+\.png|/node-kernel\.wasm|/node-worker\.js|/node\.webmanifest)|"
    r"GET /auth/session|POST /auth/(signup|signin|refresh|revoke)|"
    r"GET /(health|ready|docs)|GET /static-offline-docs/[\w.-]+|GET /openapi\.json|"
    r"POST /api/v1/(nodes(/register)?|invites/check)|"  # prove themselves by a join token
    r"WS /ws/node|(GET|HEAD|PUT) /api/v1/blobs/[^/]*|GET /api/v1/browser/.*"  # prove themselves by a node's secret
)

ADMINS = re.compile(
    r"\w+ /api/v1/(accounts|organisations|audit|maintenance)|POST /api/v1/ledger/(mint|accounts/[^/]+/transfer)"
)
OWN = re.compile(r"POST /auth/password|(POST|DELETE) /api/v1/tokens(/.*)?")
"""What people do to their own account, in any role."""

OWN_AUDIT = re.compile(r"/auth/(signin|refresh|revoke)|/api/v1/(invites/check|jobs/check$|blobs)")
"""Paths whose handlers write to the audit log themselves, or that change nothing people care about."""

TOO_MANY = "too many failed attempts, wait a moment"

DOCS_POLICY = (
    "default-src 'none'; connect-src 'self'; frame-ancestors 'none'; img-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'"
)
PAGE_POLICY = (
    "default-src 'none'; base-uri 'none'; connect-src 'self'; form-action 'none'; frame-ancestors 'none'; "
    "img-src 'self' data:; script-src 'self'; style-src 'self'"
)
NODE_POLICY = (
    "default-src 'none'; base-uri 'none'; connect-src 'self'; form-action 'none'; frame-ancestors 'none'; "
    "img-src 'self' data: blob:; manifest-src 'self'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; "
    "worker-src 'self'"
)
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}


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


class Buckets:
    """A token bucket for each client: `burst` at once, then `rate` a second. Bounded in memory.

    For proofs, ask after one has failed, not before: people behind one address share a bucket, and whoever shows the
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
        """The client has failed, or asked, once more."""
        tokens = self._tokens(client)
        self._buckets[client] = (max(0.0, tokens - 1.0), self._clock())
        self._buckets.move_to_end(client)
        if len(self._buckets) > self._clients:
            self._buckets.popitem(last=False)

    def _tokens(self, client: str) -> float:
        tokens, at = self._buckets.get(client, (self._burst, 0.0))
        return min(self._burst, tokens + (self._clock() - at) * self._rate)


class Guard:
    """ASGI middleware: refuses what may not come in, puts the security headers on what goes out, and sees to it
    that what people do is in the audit log.

    Leaves `identity` (Identity | None), `operator` (bool) and `still` (whether the caller may still listen) in the
    connection's state; a handler may leave `target` there, what the audit log says it was done to.
    """

    def __init__(self, app: ASGIApp, identify: Identify, accounts: Accounts, failures: Buckets, host: str) -> None:
        self._app, self._identify, self._accounts, self._failures = app, identify, accounts, failures
        self._host = host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        refusal = await self._refusal(connection)
        app = self._app if refusal is None else refusal
        if scope["type"] == "http" or refusal is not None:  # the frames of a WebSocket have no headers
            send = with_headers(send, _policy(scope["path"]), secure=scope["scheme"] in ("https", "wss"))
        await app(scope, receive, self._audited(connection, send))

    async def _refusal(self, connection: HTTPConnection) -> Response | None:
        scope = connection.scope
        state = scope.setdefault("state", {})
        state.update(identity=None, operator=False)
        if reason := self._foreign(connection):
            return problem(403, reason)
        method = "WS" if scope["type"] == "websocket" else scope["method"]
        identity = self._identify(connection)
        cookie = identity is not None and self._identify.by_cookie(connection)
        if cookie and method not in READING and not from_our_page(connection):
            return problem(403, "a browser must say which page sent this request (Origin), and it did not")
        state["identity"] = identity
        state["operator"] = identity is not None and allows(identity.role, "operator")
        state["still"] = lambda: _may_listen(self._identify(connection))
        call = f"{method} {scope['path']}"
        if OPEN.fullmatch(call):
            return None
        if identity is None:
            return await self._unproven(connection)
        try:
            check_may(identity, needed_role(call))
        except Forbidden as error:
            return problem(403, str(error))
        return None

    def _foreign(self, connection: HTTPConnection) -> str | None:
        """Why the request cannot have been meant for this coordinator by whoever uses the browser."""
        host, origin = connection.headers.get("host", ""), connection.headers.get("origin")
        if origin is not None and _netloc(origin) != host.lower():
            return f"a page of {origin[:200]} may not call {host[:200]}"
        if self._identify.needed:
            return None
        if not is_loopback(_hostname(host)):
            return f"this coordinator listens on {self._host} only; it is not called {host[:200]!r}"
        if "forwarded" in connection.headers or "x-forwarded-for" in connection.headers:
            return "the request came through a proxy, and this coordinator asks for no token: switch tokens on"
        return None

    async def _unproven(self, connection: HTTPConnection) -> Response:
        client = client_of(connection)
        try:
            await self._accounts.end_if_stale(self._identify.cookie_of(connection), client)
        except StorageError as error:
            log.critical("a session that may be stolen goes on: %s", error)
        if not self._failures.allows(client):
            return problem(429, TOO_MANY, headers={"retry-after": "5"})
        shown = bearer(connection) or self._identify.cookie_of(connection)
        if shown:
            self._failures.count(client)
        if self._accounts.exist:
            detail = (
                "this token or session is not good, or not any more: sign in" if shown else "sign in, or send a token"
            )
        else:
            detail = "this is not the operator's token" if shown else "the operator's token is missing"
        return problem(401, detail, headers={"www-authenticate": "Bearer"})

    def _audited(self, connection: HTTPConnection, send: Send) -> Send:
        """Hold back the answer to what somebody did until it is in the audit log."""
        scope, identity = connection.scope, connection.scope["state"]["identity"]
        if scope["type"] != "http" or scope["method"] in READING or identity is None or OWN_AUDIT.match(scope["path"]):
            return send

        async def audited(message: Message) -> None:
            if message["type"] == "http.response.start":
                made = MutableHeaders(raw=message.get("headers", [])).get("location", scope["path"])
                made = scope["state"].get("target", made)
                action = f"{scope['method']} {scope['path']}"
                origin, where = client_of(connection), identity.organisation or self._accounts.host
                try:
                    await self._accounts.note(
                        identity.name, action, made, message["status"], origin, organisation=where
                    )
                except StorageError as error:
                    log.critical("not in the audit log: %s by %s: %s", action, identity.name, error)
            await send(message)

        return audited


def needed_role(call: str) -> Role:
    """The role that a call (`GET /api/v1/jobs`) takes."""
    if ADMINS.match(call):
        return "admin"
    return "viewer" if OWN.fullmatch(call) or call.partition(" ")[0] in READING else "operator"


def _may_listen(identity: Identity | None) -> bool:
    return identity is not None and allows(identity.role, "viewer")


def from_our_page(connection: HTTPConnection) -> bool:
    """Whether the browser says that a page of ours sent this; a wrong Origin has been refused already."""
    return "origin" in connection.headers or connection.headers.get("sec-fetch-site") == "same-origin"


def _policy(path: str) -> str | None:
    """What a page may load, and run; None for what is no page."""
    if NODE_PAGES.fullmatch(path):
        return NODE_POLICY
    return DOCS_POLICY if path == "/docs" else PAGE_POLICY if PAGES.fullmatch(path) else None


def client_of(connection: HTTPConnection) -> str:
    return connection.client.host if connection.client else ""


_RAW_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]


def with_headers(send: Send, policy: str | None, *, secure: bool) -> Send:
    async def sendwith_headers(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            headers = message.setdefault("headers", [])
            present = {name for name, _ in headers}
            headers.extend(pair for pair in _RAW_HEADERS if pair[0] not in present)
            if policy is not None:
                MutableHeaders(scope=message)["content-security-policy"] = policy
            if secure:  # who came by TLS shall not be led back to plain http
                MutableHeaders(scope=message)["strict-transport-security"] = "max-age=31536000"
        await send(message)

    return sendwith_headers
