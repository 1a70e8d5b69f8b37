"""Blobs by addresses that are good for a while, as S3 stores give them: read in ranges, written in one go."""

import asyncio
import re
from pathlib import Path

import aiohttp

from tutti.adapters.fabrics.download import Download
from tutti.adapters.fabrics.hub_link import READ_BUFFER, Body, lost_when_broken, trust
from tutti.core.errors import NotFound, TuttiError
from tutti.ports import LinkLost
from tutti.ports.blobs import Buffer

SAID = 4096
"""Bytes of an answer among which the store's own word for an error is looked for."""

_CODE = re.compile(rb"<Code>(\w{1,64})</Code>")


def open_session(connect: float, stall: float, ca: Path | None) -> aiohttp.ClientSession:
    """Deadlines in seconds: to connect, and without any progress."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=trust(ca) if ca else True, limit=8, keepalive_timeout=30.0),
        headers={"Accept-Encoding": "identity"},
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect, sock_read=stall),
        auto_decompress=False,
        read_bufsize=READ_BUFFER,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def read(session: aiohttp.ClientSession, link: str, download: Download) -> Buffer:
    """The bytes, verified; goes on where an earlier attempt ended. Raises LinkLost, NotFound, CorruptBlob."""
    wanted = {"Range": f"bytes={download.size}-"} if download.size else {}
    with lost_when_broken(f"read blob {download.digest}"):
        async with session.get(link, headers=wanted) as response:
            if response.status != 416:
                await _check(response, f"read blob {download.digest}")
                download.begin(response.content_length, from_start=response.status == 200, zstd=False)
                async for chunk, _ in response.content.iter_chunks():
                    await download.add(chunk)
            return await download.finish()


async def write(session: aiohttp.ClientSession, link: str, blob: memoryview, stall: float) -> None:
    """Raises LinkLost."""
    now = asyncio.get_running_loop().time
    with lost_when_broken("store a blob"):
        async with asyncio.timeout(stall) as deadline:
            body = Body(blob, lambda: deadline.reschedule(now() + stall))
            async with session.put(link, data=body) as response:
                await _check(response, "store a blob")


async def _check(response: aiohttp.ClientResponse, what: str) -> None:
    if response.status < 300:
        return
    code = _CODE.search(await response.content.read(SAID))
    error: type[TuttiError] = NotFound if response.status == 404 else LinkLost  # an address that expired is asked anew
    said = f" ({code[1].decode()})" if code else ""
    raise error(f"cannot {what}: the store answered {response.status} {response.reason}{said}")
