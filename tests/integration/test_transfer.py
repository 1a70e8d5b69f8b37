"""Blobs over HTTP: a uvicorn server in this process, HubLink clients, and plain HTTP where a link is too polite."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import aiohttp
import pytest
import zstandard
from blake3 import blake3
from hub_server import SECRET, Cable, Hub, running_hub

from tutti.adapters.fabrics.hub_link import HubLink, LinkTimes
from tutti.apps.api import transfer
from tutti.core.errors import Conflict, CorruptBlob, NotFound
from tutti.ports import LinkLost, LinkRefused
from tutti.ports.blobs import TooLarge

SMALL = Random(1).randbytes(31_000)
LARGE = Random(2).randbytes(6_600_000)
NODE = {"Authorization": f"Bearer anna:{SECRET}"}


def digest_of(blob: bytes) -> str:
    return blake3(blob).hexdigest()


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    async with running_hub(tmp_path / "blobs") as running:
        yield running


@pytest.fixture
async def http(hub: Hub) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(f"{hub.url}/", auto_decompress=False) as session:
        yield session


async def put(hub: Hub, blob: bytes) -> str:
    return await hub.blobs.put(blob)


def address(blob: bytes) -> str:
    return f"api/v1/blobs/{digest_of(blob)}"


ASKED_FOR = b"HTTP/1.1 100 Continue\r\n\r\n"
"""What comes before the answer to a large upload."""


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("blob", [b"", b"x", SMALL, LARGE], ids=len)
async def test_what_one_node_stores_another_fetches(hub: Hub, tmp_path: Path, blob: bytes, compress: bool) -> None:
    async with hub.link(compress=compress) as anna, hub.link("berta", compress=compress) as berta:
        await anna.store(memoryview(bytearray(blob)), digest_of(blob))
        assert hub.blobs.path(digest_of(blob)).read_bytes() == blob
        assert await berta.fetch(digest_of(blob)) == blob
    assert hub.requests == {"PUT": 1, "GET": 1}


async def test_traffic_is_counted(hub: Hub, tmp_path: Path) -> None:
    async with hub.link() as link:
        await link.store(SMALL, digest_of(SMALL))
        await link.fetch(digest_of(SMALL))
    assert (hub.keeper.stats.bytes_in, hub.keeper.stats.bytes_out) == (31_000, 31_000)


async def test_a_cut_download_goes_on_where_it_ended(hub: Hub, tmp_path: Path) -> None:
    digest = await put(hub, LARGE)
    async with Cable(hub).plugged() as cable:
        cable.down = 3_000_000
        hub.url = cable.url
        async with hub.link() as link:
            with pytest.raises(LinkLost):
                await link.fetch(digest)
            assert await link.fetch(digest) == LARGE
    (wanted,) = hub.ranges
    assert 0 < int(wanted.removeprefix("bytes=").removesuffix("-")) < 3_000_000


async def test_a_cut_upload_goes_on_where_it_ended(hub: Hub) -> None:
    digest = digest_of(LARGE)
    async with Cable(hub).plugged() as cable:
        cable.up = 3_000_000
        hub.url = cable.url
        async with hub.link() as link:
            with pytest.raises(LinkLost):
                await link.store(LARGE, digest)
            await hub.until(lambda: hub.running == 0)
            arrived = hub.blobs.partial(digest, "anna").size
            assert 0 < arrived < 3_000_000
            before = hub.keeper.stats.bytes_in
            await link.store(LARGE, digest)
            assert hub.requests == {"PUT": 2, "HEAD": 1}
    assert hub.blobs.path(digest).read_bytes() == LARGE
    assert hub.keeper.stats.bytes_in == before + len(LARGE) - arrived


async def test_an_upload_whose_answer_was_lost_is_not_sent_again(hub: Hub) -> None:
    async with Cable(hub).plugged() as cable:
        cable.down = 1 + len(ASKED_FOR)
        hub.url = cable.url
        async with hub.link() as link:
            with pytest.raises(LinkLost):
                await link.store(LARGE, digest_of(LARGE))
            await link.store(LARGE, digest_of(LARGE))
    assert hub.requests == {"PUT": 1, "HEAD": 1}


@pytest.mark.parametrize(("part", "puts"), [(bytes(1000), 3), (LARGE, 2)], ids=["damaged", "complete"])
async def test_a_resumed_upload_ends_well_whatever_lies_there(hub: Hub, part: bytes, puts: int) -> None:
    digest = digest_of(LARGE)
    async with Cable(hub).plugged() as cable:
        cable.up = 3_000_000
        hub.url = cable.url
        async with hub.link() as link:
            with pytest.raises(LinkLost):
                await link.store(LARGE, digest)
            await hub.until(lambda: hub.running == 0)
            (place,) = (hub.blobs.root / "partial").iterdir()
            place.write_bytes(part)
            await link.store(LARGE, digest)
    assert hub.requests == {"PUT": puts, "HEAD": 1}
    assert hub.blobs.path(digest).read_bytes() == LARGE


async def test_a_part_that_was_damaged_is_fetched_again_from_the_start(hub: Hub) -> None:
    digest = await put(hub, LARGE)
    place = hub.blobs.path(digest)
    place.chmod(0o600)
    place.write_bytes(b"?" + LARGE[1:])
    async with Cable(hub).plugged() as cable:
        cable.down = 3_000_000
        hub.url = cable.url
        async with hub.link() as link:
            with pytest.raises(LinkLost):
                await link.fetch(digest)
            place.write_bytes(LARGE)
            assert await link.fetch(digest) == LARGE
    assert hub.requests == {"GET": 3}


@pytest.mark.parametrize("compress", [False, True])
async def test_a_blob_with_other_bytes_than_named_is_corrupt(hub: Hub, compress: bool) -> None:
    wrong = digest_of(b"other bytes")
    async with hub.link(compress=compress) as link:
        with pytest.raises(CorruptBlob, match=f"expected bytes with digest {wrong}"):
            await link.store(LARGE, wrong)
    assert await hub.blobs.digests() == []
    assert hub.blobs.partial(wrong, "anna").size == 0


@pytest.mark.parametrize("blob", [SMALL, LARGE], ids=len)
async def test_a_blob_damaged_on_the_coordinators_disk_is_not_accepted(hub: Hub, tmp_path: Path, blob: bytes) -> None:
    digest = await put(hub, blob)
    place = hub.blobs.path(digest)
    place.chmod(0o600)
    place.write_bytes(blob[:-1] + b"?")
    async with hub.link() as link:
        with pytest.raises(CorruptBlob, match="thrown away"):
            await link.fetch(digest)


async def test_uploads_that_are_not_expected_or_too_large_are_refused(hub: Hub) -> None:
    async with hub.link() as link:
        hub.keeper.limit = len(LARGE) - 1
        with pytest.raises(TooLarge, match="at most 6599999 bytes are allowed here, 6600000 were announced"):
            await link.store(LARGE, digest_of(LARGE))
        hub.keeper.limit = 0
        with pytest.raises(Conflict, match="no update of anna is expected now"):
            await link.store(LARGE, digest_of(LARGE))
        assert await hub.blobs.digests() == []


async def test_only_nodes_and_the_operator_read(hub: Hub, http: aiohttp.ClientSession, tmp_path: Path) -> None:
    await put(hub, SMALL)
    async with hub.link(secret="wrong") as link:
        with pytest.raises(LinkRefused, match="the token is not that of node"):
            await link.fetch(digest_of(SMALL))
    expected = {(): 401, (("operator", "yes"),): 200, tuple(NODE.items()): 200}
    for headers, status in expected.items():
        async with http.get(address(SMALL), headers=dict(headers)) as response:
            assert response.status == status
    async with http.put(address(SMALL), data=SMALL, headers={"operator": "yes"}) as response:
        assert response.status == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["content-type"] == "application/problem+json"
        problem = await response.json(content_type=None)
        assert (problem["status"], problem["title"]) == (401, "Unauthorized")


async def test_what_is_not_there_is_not_found(hub: Hub, tmp_path: Path) -> None:
    async with hub.link() as link:
        with pytest.raises(NotFound, match="there is no blob"):
            await link.fetch(digest_of(SMALL))


@pytest.mark.parametrize(
    ("wanted", "first", "stop"),
    [("bytes=0-0", 0, 1), ("bytes=100-", 100, 31_000), ("bytes=-10", 30_990, 31_000), ("bytes=5-99999", 5, 31_000)],
)
async def test_a_range_is_cut_out(hub: Hub, http: aiohttp.ClientSession, wanted: str, first: int, stop: int) -> None:
    await put(hub, SMALL)
    async with http.get(address(SMALL), headers={**NODE, "Range": wanted}) as response:
        assert response.status == 206
        assert response.headers["content-range"] == f"bytes {first}-{stop - 1}/31000"
        assert await response.read() == SMALL[first:stop]


@pytest.mark.parametrize("wanted", ["bytes=31000-", "bytes=-0", "bytes=9-3"])
async def test_an_empty_range_is_refused(hub: Hub, http: aiohttp.ClientSession, wanted: str) -> None:
    await put(hub, SMALL)
    async with http.get(address(SMALL), headers={**NODE, "Range": wanted}) as response:
        assert response.status == 416
        assert response.headers["content-range"] == "bytes */31000"


@pytest.mark.parametrize(
    "headers", [{"Range": "bytes=1-2,5-6"}, {"Range": "lines=1-2"}, {"Range": "bytes=1-2", "If-Range": '"other"'}]
)
async def test_other_ranges_get_the_whole(hub: Hub, http: aiohttp.ClientSession, headers: dict[str, str]) -> None:
    await put(hub, SMALL)
    async with http.get(address(SMALL), headers={**NODE, **headers}) as response:
        assert (response.status, await response.read()) == (200, SMALL)


async def test_a_blob_never_changes(hub: Hub, http: aiohttp.ClientSession) -> None:
    digest = await put(hub, SMALL)
    async with http.get(address(SMALL), headers=NODE) as response:
        etag = response.headers["etag"]
        assert etag == f'"{digest}"'
        assert "immutable" in response.headers["cache-control"]
    async with http.get(address(SMALL), headers={**NODE, "If-None-Match": f'"x", {etag}'}) as response:
        assert (response.status, await response.read()) == (304, b"")
    async with http.head(address(SMALL), headers=NODE) as response:
        assert (response.status, response.headers["content-length"]) == (200, "31000")


async def test_downloads_are_compressed_only_on_request(hub: Hub, http: aiohttp.ClientSession) -> None:
    blob = bytes(1_000_000)
    await put(hub, blob)
    async with http.get(address(blob), headers={**NODE, "Accept-Encoding": "gzip, zstd"}) as response:
        assert await response.read() == blob
    async with http.get(address(blob), headers={**NODE, "Accept-Encoding": "zstd"}) as response:
        body = await response.read()
        assert response.headers["content-encoding"] == "zstd"
        assert len(body) < 1000
        assert zstandard.ZstdDecompressor().decompressobj().decompress(body) == blob


@pytest.mark.parametrize("announced", [1000, 256 << 20])
async def test_a_zstd_bomb_is_refused(hub: Hub, http: aiohttp.ClientSession, announced: int) -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(200 << 20))
    headers = {**NODE, "Content-Encoding": "zstd", "Upload-Length": str(announced)}
    async with http.put(address(bomb), data=bomb, headers=headers) as response:
        assert response.status == 413
    assert hub.blobs.partial(digest_of(bomb), "anna").size <= 1000


async def test_a_zstd_window_that_takes_much_memory_is_refused(hub: Hub, http: aiohttp.ClientSession) -> None:
    wide = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    encoder = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    headers = {**NODE, "Content-Encoding": "zstd", "Upload-Length": str(len(LARGE))}
    body = encoder.compress(LARGE) + encoder.flush()
    async with http.put(address(LARGE), data=body, headers=headers) as response:
        assert response.status == 422
        assert "zstd" in await response.text()


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Upload-Offset": "-1"}, b"x", 422),
        ({"Upload-Offset": "9" * 30}, b"x", 422),
        ({"Upload-Offset": "5"}, b"x", 409),
        ({"Content-Encoding": "zstd"}, b"x", 422),
        ({"Content-Encoding": "zstd", "Upload-Length": "9"}, b"garbage", 422),
        ({"Upload-Length": "9"}, b"short", 409),
        ({"Upload-Length": "3"}, b"long", 413),
    ],
)
async def test_uploads_that_contradict_themselves_are_refused(
    hub: Hub, http: aiohttp.ClientSession, headers: dict[str, str], body: bytes, status: int
) -> None:
    async with http.put(address(SMALL), data=body, headers={**NODE, **headers}) as response:
        assert response.status == status
        assert response.headers["content-type"] == "application/problem+json"


async def test_a_body_without_a_length_is_refused(hub: Hub, http: aiohttp.ClientSession) -> None:
    async def chunked() -> AsyncIterator[bytes]:
        yield SMALL

    async with http.put(address(SMALL), data=chunked(), headers=NODE) as response:
        assert response.status == 422
        assert "Upload-Length" in await response.text()


async def test_a_bad_digest_names_no_blob(hub: Hub, http: aiohttp.ClientSession) -> None:
    async with http.get("api/v1/blobs/..%2f..%2fetc", headers=NODE) as response:
        assert response.status in (404, 422)
    async with http.get("api/v1/blobs/XYZ", headers=NODE) as response:
        assert response.status == 422


async def test_head_tells_each_node_of_its_own_upload_only(hub: Hub, http: aiohttp.ClientSession) -> None:
    headers = {**NODE, "Upload-Length": "31000"}
    async with http.put(address(SMALL), data=SMALL[:1000], headers=headers) as response:
        assert (response.status, response.headers["upload-offset"]) == (409, "1000")
    async with http.head(address(SMALL), headers=NODE) as response:
        assert (response.status, response.headers["upload-offset"]) == (204, "1000")
    async with http.head(address(SMALL), headers={"Authorization": f"Bearer berta:{SECRET}"}) as response:
        assert response.status == 404


async def test_a_large_upload_waits_for_its_turn_only_so_long(
    hub: Hub, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While others hold all places, small uploads pass, and large ones are told to come back."""
    monkeypatch.setattr(transfer, "QUEUE_SECONDS", 0.01)
    held = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield LARGE[:1000]
        await held.wait()

    headers = {**NODE, "Upload-Length": str(len(LARGE))}
    others = [
        asyncio.create_task(_put(http, address(LARGE[: -1 - n]), endless(), headers))
        for n in range(transfer.LARGE_UPLOADS)
    ]
    await hub.until(lambda: hub.keeper.stats.bytes_in == 1000 * transfer.LARGE_UPLOADS)
    async with hub.link() as link:
        await link.store(SMALL, digest_of(SMALL))
        with pytest.raises(LinkLost, match="too many large uploads"):
            await link.store(LARGE, digest_of(LARGE))
        held.set()
        assert set(await asyncio.gather(*others)) == {409}
        await link.store(LARGE, digest_of(LARGE))


async def _put(http: aiohttp.ClientSession, url: str, body: AsyncIterator[bytes], headers: dict[str, str]) -> int:
    async with http.put(url, data=body, headers=headers) as response:
        return response.status


async def test_a_large_upload_is_sent_once_it_is_asked_for() -> None:
    """Else a thousand that wait for their turn would fill the coordinator's memory."""
    came = asyncio.get_running_loop().create_future()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 409 Conflict\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        came.set_result(await reader.read())
        writer.close()

    blob = Random(1).randbytes(1 << 20)
    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with HubLink(f"http://127.0.0.1:{port}", "anna", "secret") as link:
            with pytest.raises(Conflict):
                await link.store(blob, blake3(blob).hexdigest())
        assert await came == b""


async def test_a_stalled_upload_is_given_up(
    hub: Hub, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "STALL_SECONDS", 0.05)

    async def stalling() -> AsyncIterator[bytes]:
        yield SMALL[:100]
        await asyncio.Event().wait()

    headers = {**NODE, "Upload-Length": str(len(SMALL))}
    assert await _put(http, address(SMALL), stalling(), headers) == 408


async def test_a_coordinator_that_does_not_answer_is_link_lost(hub: Hub, tmp_path: Path) -> None:
    """A server that takes connections and then says, and reads, nothing."""
    silent = await asyncio.start_server(lambda reader, writer: asyncio.Event().wait(), "127.0.0.1", 0, limit=1)
    hub.url = f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    async with silent, hub.link(times=LinkTimes(stall=0.1)) as link:
        with pytest.raises(LinkLost, match="no answer in time"):
            await link.fetch(digest_of(LARGE))
        with pytest.raises(LinkLost, match="no answer in time"):
            await link.store(LARGE * 3, digest_of(LARGE * 3))


async def test_a_node_reads_only_the_models_of_its_rounds(
    hub: Hub, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Another node's update is not there for it, as if it were no blob at all; the operator reads everything."""
    model, update = await put(hub, SMALL), await put(hub, LARGE)
    hub.keeper.models, hub.keeper.limit = {model}, 0
    async with hub.link() as link:
        await link.fetch(model)
        with pytest.raises(NotFound, match=f"there is no blob {update}"):
            await link.fetch(update)
    async with http.head(address(LARGE), headers=NODE) as response:
        assert response.status == 404
    async with http.get(address(LARGE), headers={"operator": "yes"}) as response:
        assert (response.status, len(await response.read())) == (200, len(LARGE))


async def test_decoding_leaves_the_event_loop_to_others(hub: Hub, http: aiohttp.ClientSession) -> None:
    """All that an upload decodes, it decodes in a thread: the loop's own thread never enters the decoder."""
    blob, entered = bytes(4_000_000), set()
    decode_some = transfer._decode_some

    def watched(*arguments: object) -> tuple[list[bytes], int]:
        entered.add(threading.get_ident())
        pieces, at = decode_some(*arguments)  # type: ignore[arg-type]
        assert sum(map(len, pieces)) < transfer.ZSTD_ENOUGH + (32 << 20)
        return pieces, at

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "_decode_some", watched)
        async with hub.link(compress=True) as link:
            await link.store(blob, digest_of(blob))
    assert entered
    assert threading.get_ident() not in entered
    assert hub.blobs.path(digest_of(blob)).read_bytes() == blob


@pytest.mark.parametrize("wanted", [f"bytes={'9' * 5000}-", f"bytes=-{'9' * 5000}", "bytes=1-٣"])
async def test_a_range_that_is_no_number_gets_the_whole(hub: Hub, http: aiohttp.ClientSession, wanted: str) -> None:
    await put(hub, SMALL)
    async with http.get(address(SMALL), headers={**NODE, "Range": wanted}) as response:
        assert (response.status, await response.read()) == (200, SMALL)
