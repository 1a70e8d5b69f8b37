"""Responses with the bytes of a blob: whole, a range, or compressed on the way. Memory stays at a few chunks."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tutti.adapters.fabrics.hub import Traffic
from tutti.apps.api.problems import problem
from tutti.core.errors import NotFound
from tutti.domain.events import Digest
from tutti.ports.blobs import Buffer

CHUNK = 1 << 18
"""Bytes read and sent at once; a smaller blob goes out in one piece."""

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)


def lasting(digest: Digest) -> dict[str, str]:
    """Headers of what never changes, and is not for everybody."""
    return {"etag": f'"{digest}"', "accept-ranges": "bytes", "cache-control": "private, max-age=31536000, immutable"}


class BlobResponse:
    """A response with a blob or a range of it, plain or compressed on the way."""

    def __init__(self, file: int, digest: Digest, traffic: Traffic) -> None:
        self._file = file
        self._size = os.fstat(file).st_size
        self._start, self._stop = 0, self._size
        self._status = 200
        self._headers = {**lasting(digest), "content-type": "application/octet-stream"}
        self._traffic = traffic
        self._zstd = False

    @classmethod
    def of(cls, request: Request, path: Path, digest: Digest, traffic: Traffic) -> ASGIApp:
        """The answer to a GET of the blob that lies in `path`; raises NotFound if it went away meanwhile."""
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"there is no blob {digest}") from None
        response = cls(file, digest, traffic)
        instead = response._prepare(request)
        if instead is not None:
            os.close(file)
        return instead or response

    def _prepare(self, request: Request) -> Response | None:
        """Settle what to send; a response if it is not (a part of) the blob."""
        etag = self._headers["etag"]
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=self._headers)
        wanted = _RANGE.fullmatch(request.headers.get("range", ""))
        if wanted and wanted.group() != "bytes=-" and request.headers.get("if-range", etag) == etag:
            return self._cut(*wanted.groups())
        self._zstd = request.headers.get("accept-encoding") == "zstd"
        return None

    def _cut(self, first: str, last: str) -> Response | None:
        """One range, as in https://www.rfc-editor.org/rfc/rfc9110#section-14.1.2."""
        if first:
            self._start = int(first)
            self._stop = min(int(last) + 1, self._size) if last else self._size
        else:
            self._start = max(0, self._size - int(last))
        if self._start >= self._stop:
            here = {"content-range": f"bytes */{self._size}"}
            return problem(416, f"the blob has {self._size} bytes", headers=here)
        self._status = 206
        self._headers["content-range"] = f"bytes {self._start}-{self._stop - 1}/{self._size}"
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if self._zstd:
                etag = self._headers["etag"][:-1] + '-zstd"'
                headers = self._headers | {"etag": etag, "content-encoding": "zstd", "vary": "accept-encoding"}
                await self._send(send, headers, self._compressed())
            else:
                headers = self._headers | {"content-length": str(self._stop - self._start)}
                await self._send(send, headers, self._chunks())
        finally:
            os.close(self._file)

    async def _send(self, send: Send, headers: dict[str, str], chunks: AsyncIterator[Any]) -> None:
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": self._status, "headers": raw})
        async for chunk in chunks:
            self._traffic.bytes_out += len(chunk)
            self._traffic.zstd_out += len(chunk) if self._zstd else 0
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _chunks(self) -> AsyncIterator[Buffer]:
        position = self._start
        while position < self._stop:
            chunk = await _read(self._file, min(CHUNK, self._stop - position), position)
            if not chunk:
                raise OSError(f"the file of a blob ends at {position} bytes instead of {self._stop}")
            position += len(chunk)
            yield chunk

    async def _compressed(self) -> AsyncIterator[bytes]:
        encoder = zstandard.ZstdCompressor(level=1).compressobj()
        async for chunk in self._chunks():
            yield await asyncio.to_thread(encoder.compress, chunk)
        yield encoder.flush()


async def _read(file: int, size: int, offset: int) -> Buffer:
    """At once if the page cache has it (a hop to a thread takes twenty times as long); else in a thread."""
    if _NOWAIT is not None:
        chunk = np.empty(size, np.uint8).data  # a bytearray would be filled with zeros first
        try:
            got = os.preadv(file, [chunk], offset, _NOWAIT)
        except OSError:  # not cached, or a file system that cannot tell
            got = 0
        if got:
            return chunk[:got]
    return await asyncio.to_thread(os.pread, file, size, offset)
