"""What nodes use all the time: their WebSocket, and blobs by digest. Plain ASGI, for every round waits for these.

Downloads are immutable files with ETag and Range; uploads can be resumed, in the manner of
https://datatracker.ietf.org/doc/draft-ietf-httpbis-resumable-upload/ (HEAD tells `Upload-Offset`, PUT continues).
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Protocol

import zstandard
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.adapters.fabrics.hub import HubFabric, Traffic
from tutti.apps.api.blob_response import BlobResponse, lasting
from tutti.apps.api.problems import MEDIA_TYPE, problem, problem_of
from tutti.apps.sockets import DETACH
from tutti.core.errors import Conflict, CorruptBlob, NotFound, TuttiError, Unproven, UserError
from tutti.domain.events import Digest, NodeId

log = logging.getLogger(__name__)

SMALL_UPLOAD = 1 << 18
LARGE_UPLOADS = 64
"""Uploads above SMALL_UPLOAD bytes that are received at the same time; each may hold some 3 MiB in memory."""

QUEUE_SECONDS = 20.0
"""How long one more large upload waits for its turn: less than what a node waits without any progress."""

STALL_SECONDS = 60.0
"""How long an upload may pause before it is given up; it can be resumed."""

ZSTD_WINDOW = 8 << 20
"""Bytes a decoder may keep; enough for every normal level."""

ZSTD_SLICE = 1024
"""Compressed bytes decoded at once: a block of 4 bytes can stand for 128 KiB, so this makes 32 MiB at worst."""

ZSTD_ENOUGH = 1 << 18
"""Decoded bytes after which a thread hands over what it has."""


class Doorkeeper(Protocol):
    """Knows the nodes; services.members.Members is one."""

    def authenticate(self, node: NodeId, secret: str, use: str) -> None:
        """Raises Forbidden; `use` is the request, as `GET /api/v1/blobs/<digest>`, which nodes with a key sign."""
        ...


class Access(Protocol):
    """Knows what nodes may do now; services.access.Access is one."""

    def may_read(self, node: NodeId, digest: Digest) -> bool:
        """Whether the blob is a model of a round that the node belongs to."""
        ...

    def update_limit(self, node: NodeId) -> int:
        """The largest blob in bytes that the node may store now; 0 if none is expected."""
        ...


def routes(
    fabric: HubFabric,
    doorkeeper: Doorkeeper,
    access: Access,
    traffic: Traffic,
    blobs: DirectoryBlobs,
    operator_allowed: Callable[[Request], bool],
) -> list[BaseRoute]:
    """Routes for any Starlette or FastAPI application; OPENAPI_PATHS describes them."""
    transfer = NodeBlobs(doorkeeper, access, traffic, blobs, operator_allowed)
    return [
        WebSocketRoute("/ws/node", NodeSocket(fabric), name="node_socket"),
        Route("/api/v1/blobs/{digest}", transfer, methods=["GET", "HEAD", "PUT"], name="blob"),
    ]


class NodeSocket:
    def __init__(self, fabric: HubFabric) -> None:
        self._fabric = fabric

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await send({"type": "websocket.accept"})
        except OSError:  # uvicorn's word for a peer that is gone already
            return
        detach: Callable[..., None] | None = scope["extensions"].get(DETACH)
        if detach is None:  # another server than ours: it works, and takes more memory
            await self._fabric.serve(receive, send)
        else:
            detach(self._fabric.serve)


class NodeBlobs:
    def __init__(
        self,
        doorkeeper: Doorkeeper,
        access: Access,
        traffic: Traffic,
        blobs: DirectoryBlobs,
        operator_allowed: Callable[[Request], bool],
    ) -> None:
        self._doorkeeper, self._access, self._traffic = doorkeeper, access, traffic
        self._blobs = blobs
        self._operator_allowed = operator_allowed
        self._large_uploads = asyncio.Semaphore(LARGE_UPLOADS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        respond = {"GET": self._get, "HEAD": self._head, "PUT": self._put}[request.method]
        try:
            response = await respond(request, request.path_params["digest"])
        except _Gone:
            return
        except TuttiError as error:
            if not isinstance(error, UserError):
                log.error("%s %s: %s", request.method, request.url.path, error)
            response = problem_of(error)
        await response(scope, receive, send)

    # -- who asks ------------------------------------------------------------------------------------------

    def _node(self, request: Request) -> NodeId:
        """The node that sends this; raises Forbidden."""
        return proven_node(request, self._doorkeeper)

    def _reader(self, request: Request) -> NodeId | None:
        """The node that reads, or None for the operator; raises Forbidden for anybody else."""
        as_node = ":" in request.headers.get("authorization", "")
        if not as_node and self._operator_allowed(request):
            return None
        return self._node(request)

    # -- download ------------------------------------------------------------------------------------------

    async def _get(self, request: Request, digest: Digest) -> ASGIApp:
        node = self._reader(request)
        if node is not None and not self._access.may_read(node, digest):
            raise _no_blob(digest)
        return BlobResponse.of(request, await self._blobs.fetched(digest), digest, self._traffic)

    async def _head(self, request: Request, digest: Digest) -> ASGIApp:
        """Of a complete blob its length; of one that is being uploaded by this node, how much has arrived.

        A node that may upload may ask of any blob: perhaps the answer to its upload was lost.
        """
        node, access = self._reader(request), self._access
        if node is not None and not (access.may_read(node, digest) or access.update_limit(node)):
            raise _no_blob(digest)
        try:
            path = await self._blobs.fetched(digest)
            return Response(headers={**lasting(digest), "content-length": str(path.stat().st_size)})
        except NotFound:
            arrived = self._blobs.partial(digest, node).size if node is not None else 0
            if not arrived:
                raise
            return Response(status_code=204, headers={"upload-offset": str(arrived)})

    # -- upload --------------------------------------------------------------------------------------------

    async def _put(self, request: Request, digest: Digest) -> ASGIApp:
        node = self._node(request)
        limit = self._access.update_limit(node)
        if limit == 0:
            raise Conflict(f"no update of {node} is expected now: its round has closed, or it was not asked")
        partial = self._blobs.partial(digest, node)
        offset = _number(request, "upload-offset") or 0
        total, deadline = _announced(request, offset), asyncio.timeout(None)
        chunks = self._body(request, deadline)
        if request.headers.get("content-encoding") == "zstd":
            chunks = _decoded(chunks)
        try:
            async with self._turn(total - offset), deadline:
                done = await partial.write(chunks, offset=offset, total=total, limit=limit)
        except CorruptBlob as error:
            return problem(422, str(error))
        except _Busy:
            return problem(503, "too many large uploads at once: try again soon", headers={"retry-after": "5"})
        except TimeoutError:
            return problem(408, f"nothing came for {STALL_SECONDS:g} s: the upload can be resumed")
        if not done:
            detail = f"{partial.size} of the announced {total} bytes have arrived: continue there"
            return problem(409, detail, headers={"upload-offset": str(partial.size)})
        return Response(status_code=201, headers={"etag": f'"{digest}"'})

    async def _body(self, request: Request, deadline: asyncio.Timeout) -> AsyncIterator[bytes]:
        more, now = True, asyncio.get_running_loop().time
        zstd = request.headers.get("content-encoding") == "zstd"
        while more:
            deadline.reschedule(now() + STALL_SECONDS)
            message = await request.receive()
            deadline.reschedule(None)
            if message["type"] == "http.disconnect":
                raise _Gone
            more = message.get("more_body", False)
            if body := message.get("body"):
                self._traffic.bytes_in += len(body)
                self._traffic.zstd_in += len(body) if zstd else 0
                yield body

    @asynccontextmanager
    async def _turn(self, size: int) -> AsyncIterator[None]:
        """Small uploads never wait."""
        if size <= SMALL_UPLOAD:
            yield
            return
        try:
            await asyncio.wait_for(self._large_uploads.acquire(), QUEUE_SECONDS)
        except TimeoutError:
            raise _Busy from None
        try:
            yield
        finally:
            self._large_uploads.release()


def proven_node(request: Request, doorkeeper: Doorkeeper) -> NodeId:
    """The node that sends a request, by the secret in its header; raises Forbidden."""
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    node, colon, secret = credentials.partition(":")
    if scheme.lower() != "bearer" or not colon:
        raise Unproven("expected the header `Authorization: Bearer <node>:<secret>`")
    doorkeeper.authenticate(node, secret, f"{request.method} {request.scope['path']}")
    return node


def _no_blob(digest: Digest) -> NotFound:
    """As for a blob that is not there: a node does not learn what others have."""
    return NotFound(f"there is no blob {digest}")


class _Gone(Exception):
    """The client went away; what had come is kept."""


class _Busy(Exception):
    """No turn for a large upload came in time."""


def _number(request: Request, name: str) -> int | None:
    text = request.headers.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise UserError(f"expected a number of bytes in the header {name}, got {text[:80]!r}")
    return int(text)


def _announced(request: Request, offset: int) -> int:
    """Bytes of the whole blob: what lies here, and what follows."""
    if (total := _number(request, "upload-length")) is not None:
        return total
    length = _number(request, "content-length")
    if length is None or "content-encoding" in request.headers:
        raise UserError("expected the blob's whole length in the header Upload-Length")
    return offset + length


async def _decoded(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Undo zstd; raises CorruptBlob for anything else."""
    decoder = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj()
    async for chunk in chunks:
        start = 0
        while start < len(chunk):
            pieces, start = await asyncio.to_thread(_decode_some, decoder, chunk, start)
            for piece in pieces:
                yield piece


def _decode_some(decoder: "zstandard.ZstdDecompressionObj", chunk: bytes, start: int) -> tuple[list[bytes], int]:
    """Decode from `start` on until there is ZSTD_ENOUGH; returns the pieces, and where to go on."""
    pieces, size = [], 0
    while start < len(chunk) and size < ZSTD_ENOUGH:
        try:
            piece = decoder.decompress(chunk[start : start + ZSTD_SLICE])
        except zstandard.ZstdError as error:
            raise CorruptBlob(f"expected a body compressed with zstd: {error}") from None
        start, size = start + ZSTD_SLICE, size + len(piece)
        if piece:
            pieces.append(piece)
    return pieces, start


def _problems(*statuses: int) -> dict[str, Any]:
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {str(status): {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def _header(name: str, description: str, kind: str = "string") -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": {"type": kind}}


_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_OFFSET = _header("Upload-Offset", "Where an interrupted upload continues, as HEAD told.", "integer")
_LENGTH = _header("Upload-Length", "Bytes of the whole blob; required with a Content-Encoding.", "integer")
_CODING = _header("Content-Encoding", "`zstd`, or nothing.")
_RANGE = _header("Range", "One range of bytes.")
_ACCEPT = _header("Accept-Encoding", "Exactly `zstd` compresses the download; by default it is plain.")

OPENAPI_PATHS: dict[str, Any] = {
    "/api/v1/blobs/{digest}": {
        "parameters": [
            {
                "name": "digest",
                "in": "path",
                "required": True,
                "description": "BLAKE3 of the bytes, in hexadecimal.",
                "schema": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
            }
        ],
        "get": {
            "tags": ["models"],
            "summary": "Download a blob: a model or an update. For the operator and for nodes",
            "operationId": "get_blob",
            "parameters": [_RANGE, _ACCEPT],
            "responses": {
                "200": {"description": "The bytes; ETag is the digest.", "content": _BYTES},
                "206": {"description": "The range asked for.", "content": _BYTES},
                "304": {"description": "You have it."},
                **_problems(401, 403, 404, 416, 422),
            },
        },
        "head": {
            "tags": ["models"],
            "summary": "Ask for the length of a blob, or how much of your own upload has arrived",
            "operationId": "head_blob",
            "responses": {
                "200": {"description": "Complete; Content-Length tells its size."},
                "204": {"description": "Incomplete; Upload-Offset tells how many bytes are here."},
                **_problems(401, 403, 404, 422),
            },
        },
        "put": {
            "tags": ["nodes"],
            "summary": "Upload an update, or the rest of one. For nodes that were asked for one",
            "operationId": "put_blob",
            "parameters": [_OFFSET, _LENGTH, _CODING],
            "requestBody": {"required": True, "content": _BYTES},
            "responses": {"201": {"description": "Stored."}, **_problems(401, 403, 408, 409, 413, 422, 503, 507)},
        },
    }
}
"""What OpenAPI should say of the routes here: a fragment for its `paths`."""
