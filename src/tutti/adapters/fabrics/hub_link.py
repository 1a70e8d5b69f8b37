"""The node's side of the hub: one WebSocket for messages, HTTP on kept-alive connections for blobs.

Uploads follow the idea of https://datatracker.ietf.org/doc/draft-ietf-httpbis-resumable-upload/: after an
interruption HEAD tells in `Upload-Offset` how much has arrived, and PUT goes on from there. Downloads go on by Range.
"""

import asyncio
import socket as sockets
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec
import zstandard
from aiohttp import ClientResponse, ClientWebSocketResponse, WSMsgType
from aiohttp.abc import AbstractStreamWriter
from yarl import URL

from tutti.adapters.fabrics.download import Download
from tutti.core.errors import Conflict, CorruptBlob, NotFound, TuttiError, UserError
from tutti.domain.events import Digest, NodeId
from tutti.ports import LinkBusy, LinkLost, LinkRefused
from tutti.ports.blobs import Buffer, TooLarge
from tutti.wire import tensors
from tutti.wire.messages import (
    MAX_ATTACHED,
    MAX_FRAME,
    MAX_MESSAGE,
    BadMessage,
    Computed,
    CoordinatorMessage,
    NodeMessage,
    Refusal,
    Registered,
    Registration,
    Start,
    Submission,
    attach,
    decode_from_coordinator,
    detach,
    encode,
)

PIECE = 1 << 18
"""Bytes of an upload that are written at once; a longer one is sent once the coordinator asks for it."""

READ_BUFFER = 1 << 20
GOING_AWAY = 1001
MAX_PROBLEM = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkTimes:
    """Deadlines in seconds: to connect, without any progress, and between two signs of life on a silent WebSocket."""

    connect: float = 10.0
    stall: float = 30.0
    ping: float = 30.0
    goodbye: float = 2.0


class HubLink:
    """Link to the coordinator at `url` (http or https), as `node` with the secret it got when it joined.

    `ca` is a PEM file to trust instead of the system's authorities; `compress` asks for and sends zstd. Close it at
    the end: the coordinator then knows that the node left on purpose, and does not wait for it.
    """

    def __init__(
        self,
        url: str,
        node: NodeId,
        token: str,
        *,
        ca: Path | None = None,
        compress: bool = False,
        times: LinkTimes | None = None,
    ) -> None:
        self._url = _base(url)
        self._headers = {"Authorization": f"Bearer {node}:{token}"}
        self._ssl = trust(ca) if ca else True
        self._compress = compress
        self._times = times or LinkTimes()
        self._session: aiohttp.ClientSession | None = None
        self._socket: ClientWebSocketResponse | None = None
        self._interrupted: set[Digest] = set()
        self._download: Download | None = None
        self._came_along: tuple[Digest, bytes] = ("", b"")
        self._goes_along: tuple[Digest, Buffer] = ("", b"")
        self._attached = 0  # bytes that the coordinator takes with a message

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Say goodbye and close every connection."""
        if self._socket is not None:
            await self._socket.close(code=GOING_AWAY)
        if self._session is not None:
            await self._session.close()
            self._session = None

    def drop(self) -> None:
        """Lose the connection, as when a cable is pulled: nobody says goodbye, and the link may connect again."""
        line = None if self._socket is None else self._socket.get_extra_info("socket")
        if line is not None:
            with suppress(OSError):  # it is gone already
                line.shutdown(sockets.SHUT_RDWR)

    # -- messages ------------------------------------------------------------------------------------------

    async def connect(self, registration: Registration) -> AsyncIterator[CoordinatorMessage]:
        if self._socket is not None:
            await self._socket.close()
        with lost_when_broken(f"connect to {self._url}"):
            self._socket = socket = await self._open_socket()
            try:
                async with asyncio.timeout(self._times.stall):
                    registration = msgspec.structs.replace(registration, attached=MAX_ATTACHED)
                    await socket.send_frame(encode(registration), WSMsgType.TEXT)
                    first = await self._receive(socket)
                if isinstance(first, Refusal):
                    raise LinkBusy(f"the coordinator did not take this node in: {first.detail}")
                self._attached = first.attached if isinstance(first, Registered) else 0
            except BaseException:
                await socket.close()
                raise
        return self._messages(socket, first)

    async def _open_socket(self) -> ClientWebSocketResponse:
        try:
            async with asyncio.timeout(self._times.connect):
                return await self._open_session().ws_connect(
                    self._url / "ws/node",
                    timeout=aiohttp.ClientWSTimeout(ws_close=self._times.goodbye),
                    heartbeat=self._times.ping,
                    max_msg_size=MAX_FRAME,
                )
        except aiohttp.WSServerHandshakeError as error:
            if error.status >= 500:
                raise
            raise LinkRefused(
                f"expected a coordinator at {self._url}, got the answer {error.status}: check the address"
            ) from None

    async def _messages(
        self, socket: ClientWebSocketResponse, first: CoordinatorMessage
    ) -> AsyncIterator[CoordinatorMessage]:
        try:
            yield first
            while True:
                with lost_when_broken("receive a message"):
                    message = await self._receive(socket)
                yield message
        except asyncio.CancelledError:
            await socket.close(code=GOING_AWAY)  # the node stops: a goodbye, so that nobody waits for it
            raise
        finally:
            await socket.close()

    async def send(self, message: NodeMessage) -> None:
        frame = encode(message)
        if len(frame) > MAX_MESSAGE:
            raise UserError(f"a message may have {MAX_MESSAGE} bytes, this {type(message).__name__} has {len(frame)}")
        if self._socket is None or self._socket.closed:
            raise LinkLost("there is no connection to the coordinator")
        kind = WSMsgType.TEXT
        if isinstance(message, Submission | Computed) and message.digest and message.digest == self._goes_along[0]:
            frame, kind = attach(message, self._goes_along[1]), WSMsgType.BINARY
        with lost_when_broken("send a message"):
            async with asyncio.timeout(self._times.stall):
                await self._socket.send_frame(frame, kind)

    async def _receive(self, socket: ClientWebSocketResponse) -> CoordinatorMessage:
        """The next message; raises LinkLost at the end of the channel, LinkRefused for what only a person can mend."""
        frame = await socket.receive()
        if frame.type is WSMsgType.ERROR:
            raise LinkLost(f"the connection to the coordinator broke: {frame.data}")
        try:
            match frame.type:
                case WSMsgType.TEXT:
                    message = decode_from_coordinator(frame.data)
                case WSMsgType.BINARY:
                    text, blob = detach(frame.data)
                    message = decode_from_coordinator(text)
                    if isinstance(message, Start):
                        self._came_along = message.weights, blob
                case _:
                    why = f": {frame.extra}" if frame.extra else ""
                    raise LinkLost(f"the coordinator closed the connection{why}")
        except BadMessage as error:
            raise LinkRefused(
                f"the coordinator said what this version does not understand, update it: {error}"
            ) from None
        if isinstance(message, Refusal) and message.fatal:
            raise LinkRefused(message.detail)
        return message

    # -- blobs ---------------------------------------------------------------------------------------------

    async def fetch(self, digest: Digest) -> Buffer:
        known, blob = self._came_along
        self._came_along = ("", b"")
        if known == digest and tensors.digest(blob) == digest:
            return blob
        if self._download is None or self._download.digest != digest:
            self._download = Download(digest)
        download = self._download
        try:
            whole = await self._get(download)
        except CorruptBlob:
            if not download.resumed:
                raise
            # What had come in an earlier attempt was damaged, and is gone now: once more, from the start.
            whole = await self._get(download)
        self._download = None
        return whole

    async def _get(self, download: Download) -> Buffer:
        wanted = {"Range": f"bytes={download.size}-"} if download.size else {}
        if self._compress and not wanted:
            wanted = {"Accept-Encoding": "zstd"}
        async with self._request("GET", download.digest, wanted) as response:
            if response.status != 416:
                zstd = response.headers.get("Content-Encoding") == "zstd"
                download.begin(response.content_length, from_start=response.status == 200, zstd=zstd)
                async for chunk, _ in response.content.iter_chunks():
                    await download.add(chunk)
            return await download.finish()

    async def store(self, blob: Buffer, digest: Digest) -> None:
        body, offset = memoryview(blob).cast("B"), 0
        if 0 < len(body) <= self._attached:
            self._goes_along = digest, blob
            return
        if digest in self._interrupted:
            arrived = await self._arrived(digest)
            self._interrupted.discard(digest)
            if arrived is None:
                return
            offset = min(arrived, len(body))
        try:
            await self._put(body, digest, offset)
        except LinkLost:
            self._interrupted.add(digest)
            raise
        except CorruptBlob:
            if not offset:
                raise
            # What had arrived before was damaged, and is gone now: once more, from the start.
            await self._put(body, digest, 0)

    async def _arrived(self, digest: Digest) -> int | None:
        """How many bytes of an interrupted upload the coordinator holds; None if it holds all."""
        try:
            async with self._request("HEAD", digest, {}) as response:
                return int(response.headers["Upload-Offset"]) if "Upload-Offset" in response.headers else None
        except NotFound:
            return 0

    async def _put(self, blob: memoryview, digest: Digest, offset: int) -> None:
        rest, headers = blob[offset:], {"Upload-Offset": str(offset)} if offset else {}
        if self._compress:
            headers |= {"Content-Encoding": "zstd", "Upload-Length": str(len(blob))}
            rest = memoryview(await asyncio.to_thread(zstandard.compress, rest, 1))
        with lost_when_broken(f"store blob {digest}"):
            async with asyncio.timeout(self._times.stall) as deadline:
                body = Body(rest, lambda: deadline.reschedule(asyncio.get_running_loop().time() + self._times.stall))
                async with self._request("PUT", digest, headers, body):
                    return

    # -- HTTP ----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _request(
        self, method: str, digest: Digest, headers: Mapping[str, str], body: "Body | None" = None
    ) -> AsyncIterator[ClientResponse]:
        """A response that is not an error; raises what the error means."""
        with lost_when_broken(f"{method} blob {digest}"):
            url = self._url / "api/v1/blobs" / digest
            waits = body is not None and (body.size or 0) > PIECE
            call = self._open_session().request(method, url, headers=headers, data=body, expect100=waits)
            async with call as response:
                if response.status >= 400 and response.status != 416:
                    raise meaning(response.status, await _detail(response))
                yield response

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            times = aiohttp.ClientTimeout(
                total=None, sock_connect=self._times.connect, sock_read=self._times.stall, ceil_threshold=60.0
            )
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._ssl, limit=0, keepalive_timeout=30.0),
                headers={**self._headers, "Accept-Encoding": "identity"},
                timeout=times,
                auto_decompress=False,
                read_bufsize=READ_BUFFER,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


class Body(aiohttp.Payload):
    """Bytes sent in pieces, with a call after each: a small body is one write, a large one is never copied whole.

    aiohttp sends a body again by itself if the connection was dead; after more than one piece, resuming is cheaper.
    """

    _value: memoryview
    _autoclose = True

    def __init__(self, value: memoryview, progress: Callable[[], None]) -> None:
        super().__init__(value, content_type="application/octet-stream")
        self._size = len(value)
        self._progress = progress

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return bytes(self._value).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        for start in range(0, len(self._value), PIECE):
            self._consumed = start > 0
            await writer.write(self._value[start : start + PIECE])
            self._progress()


_MEANINGS: dict[int, type[TuttiError]] = {
    401: LinkRefused,
    403: LinkRefused,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    422: CorruptBlob,
    429: LinkLost,
    507: LinkLost,
}


def meaning(status: int, detail: str) -> TuttiError:
    """The error that an HTTP status stands for."""
    return _MEANINGS.get(status, UserError if status < 500 else LinkLost)(f"the coordinator answered: {detail}")


async def _detail(response: ClientResponse) -> str:
    """What a problem document (https://www.rfc-editor.org/rfc/rfc9457) says, or the bare status."""
    body = await response.content.read(MAX_PROBLEM)
    try:
        return str(msgspec.json.decode(body, type=dict[str, Any])["detail"])
    except (msgspec.DecodeError, KeyError):
        return f"{response.status} {response.reason}"


@contextmanager
def lost_when_broken(what: str) -> Iterator[None]:
    """Errors of sockets and deadlines, as LinkLost; a certificate that is not trusted, as LinkRefused."""
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as error:
        raise LinkRefused(f"cannot {what}: its certificate is not trusted ({error.certificate_error})") from error
    except TimeoutError as error:
        raise LinkLost(f"cannot {what}: no answer in time") from error
    except (aiohttp.ClientError, ConnectionError) as error:
        raise LinkLost(f"cannot {what}: {error or type(error).__name__}") from error


def _base(url: str) -> URL:
    base = URL(url)
    if base.scheme not in ("http", "https") or not base.host:
        raise UserError(f"expected the coordinator's address, such as https://host:8000, got {url!r}")
    return base


def trust(ca: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise UserError(f"expected certificates in PEM format in {ca}: {error}") from None
