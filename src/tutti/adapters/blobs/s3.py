"""Blobs in a bucket of an S3-compatible store: `<prefix>/blobs/<digest>`.

Addresses are `s3://bucket/prefix?endpoint=https://host:9000&region=eu-central-1`; without an endpoint it is Amazon's.
Key and secret come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), never from an address.

Nodes may be given pre-signed addresses: to read one blob, and to upload one to a place of their own,
`<prefix>/incoming/<node>/<name>`, where `uploaded` reads it. So nobody can write over what is there.
"""

import asyncio
import mmap
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, TypeVar
from urllib.parse import parse_qsl, urlsplit

import obstore
from blake3 import blake3
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError
from obstore.store import S3Store

from tutti.adapters.addresses import shown
from tutti.core.errors import CorruptBlob, NotFound, StorageError, TuttiError, UserError
from tutti.domain.events import Digest, NodeId
from tutti.ports.blobs import Buffer, Mapped, check_digest

if TYPE_CHECKING:
    from obstore import GetResult
    from obstore.store import S3Config

MAPPED = 1 << 20
"""Bytes from which on a blob is read into a temporary file and mapped, so that memory stays bounded."""

PART = 8 << 20
PARTS_AT_ONCE = 4
FULL = re.compile("QuotaExceeded|InsufficientCapacity|507 Insufficient Storage")
"""What stores say without room: Ceph's word comes with status 403, as if the key was wrong."""

INCOMING_KEPT = timedelta(hours=24)
T = TypeVar("T")


class S3Blobs:
    """A BlobStore, made by `open`."""

    def __init__(self, url: str) -> None:
        self._where = url.partition("?")[0]
        self._store = _store(url)
        self._sound: set[Digest] = set()

    @classmethod
    async def open(cls, url: str) -> "S3Blobs":
        """Raises UserError if the bucket is missing or refuses the key, StorageError if the store is away."""
        blobs = cls(url)
        await blobs.forget_old_uploads()
        return blobs

    async def put(self, data: Buffer, *, digest: Digest | None = None, sync: bool = True) -> Digest:
        if digest is not None:
            check_digest(digest)
        data = memoryview(data).cast("B")
        found = await _off_loop(len(data), lambda: _digest(data))
        if digest is not None and found != digest:
            raise CorruptBlob(f"expected bytes with digest {digest}, those that came have {found}: send them again")
        with self._errors(f"store blob {found}"):
            if len(data) > PART and not await self._is_there(found):
                await obstore.put_async(
                    self._store, _key(found), data, chunk_size=PART, max_concurrency=PARTS_AT_ONCE
                )  # whole or not at all, and over a rival's only with the same bytes
            elif len(data) <= PART:
                with suppress(AlreadyExistsError):
                    await obstore.put_async(self._store, _key(found), data, mode="create", use_multipart=False)
        return found

    async def read(self, digest: Digest) -> Mapped:
        check_digest(digest)
        with self._errors(f"read blob {digest}", digest):
            stream = await obstore.get_async(self._store, _key(digest))
            if stream.meta["size"] < MAPPED:
                data: Mapped = bytes(await stream.bytes_async())
            else:
                data = await _mapped(stream)
        if digest not in self._sound:
            found = await _off_loop(len(data), lambda: _digest(data))
            if found != digest:
                raise CorruptBlob(f"blob {digest} has been damaged in {self._where}: its bytes now have digest {found}")
            self._sound.add(digest)
        return data

    async def size(self, digest: Digest) -> int:
        check_digest(digest)
        with self._errors(f"look at blob {digest}", digest):
            return (await obstore.head_async(self._store, _key(digest)))["size"]

    @asynccontextmanager
    async def file(self, digest: Digest) -> AsyncIterator[Path]:
        """A copy in the temporary directory, for as long as the block lasts."""
        check_digest(digest)
        with tempfile.NamedTemporaryFile(prefix="tutti-blob-") as file:
            with self._errors(f"read blob {digest}", digest):
                await _fill(file, await obstore.get_async(self._store, _key(digest)))
            yield Path(file.name)

    async def delete(self, *digests: Digest) -> None:
        for digest in digests:
            check_digest(digest)
        self._sound.difference_update(digests)
        if digests:
            with self._errors("delete blobs"):
                await obstore.delete_async(self._store, [_key(digest) for digest in digests])

    async def digests(self) -> list[Digest]:
        with self._errors("list the blobs"):
            batches = obstore.list(self._store, "blobs/", chunk_size=1000)
            return [meta["path"].rpartition("/")[2] async for batch in batches for meta in batch]

    # -- for nodes, which reach the store themselves ---------------------------------------------------------

    async def link(self, digest: Digest, seconds: float) -> str:
        """An address from which anybody can read the blob for a while, in ranges too; raises NotFound."""
        check_digest(digest)
        with self._errors(f"find blob {digest}", digest):
            await obstore.head_async(self._store, _key(digest))
            return await self._sign("GET", _key(digest), seconds)

    async def upload_link(self, node: NodeId, name: str, seconds: float) -> str:
        """An address to which this node can PUT bytes for a while; `uploaded` reads them."""
        with self._errors(f"make room for an upload of {node}"):
            return await self._sign("PUT", _incoming(node, name), seconds)

    async def uploaded(self, node: NodeId, name: str) -> tuple[int, AsyncIterator[Buffer]]:
        """What a node uploaded, which nobody has looked at: its size, and its bytes; raises NotFound."""
        with self._errors(f"read an upload of {node}", name):
            stream = await obstore.get_async(self._store, _incoming(node, name))
        return stream.meta["size"], self._chunks(stream, node)

    async def forget_upload(self, node: NodeId, name: str) -> None:
        with self._errors(f"delete an upload of {node}"):
            await obstore.delete_async(self._store, [_incoming(node, name)])

    async def forget_old_uploads(self) -> None:
        """Those that were not read for a day: never handed in, or by a node that was gone."""
        with self._errors("look after old uploads"):
            old = datetime.now(UTC) - INCOMING_KEPT
            async for batch in obstore.list(self._store, "incoming/", chunk_size=1000):
                if stale := [meta["path"] for meta in batch if meta["last_modified"] < old]:
                    await obstore.delete_async(self._store, stale)

    # -- within ----------------------------------------------------------------------------------------------

    async def _is_there(self, digest: Digest) -> bool:
        try:
            await obstore.head_async(self._store, _key(digest))
        except FileNotFoundError:
            return False
        return True

    async def _sign(self, method: Literal["GET", "PUT"], key: str, seconds: float) -> str:
        return await obstore.sign_async(self._store, method, key, timedelta(seconds=seconds))

    async def _chunks(self, stream: "GetResult", node: NodeId) -> AsyncIterator[Buffer]:
        with self._errors(f"read an upload of {node}"):
            async for chunk in stream.stream(min_chunk_size=MAPPED):
                yield memoryview(chunk)

    @contextmanager
    def _errors(self, doing: str, digest: Digest = "") -> Iterator[None]:
        """What the store refuses, as errors that say what to do about it."""
        try:
            yield
        except (obstore.exceptions.BaseError, OSError) as error:
            raise self._meaning(error, f"cannot {doing} in {self._where}", digest) from error

    def _meaning(self, error: Exception, what: str, digest: Digest) -> TuttiError:
        if "NoSuchBucket" in str(error):
            return UserError(f"{what}: there is no such bucket: make it first")
        if FULL.search(str(error)):
            return StorageError(f"{what}: the store is full: raise its quota, or free some space")
        if "RequestTimeTooSkewed" in str(error):
            return StorageError(f"{what}: the store's clock is another: set this machine's clock right")
        if isinstance(error, PermissionDeniedError) or "403 Forbidden" in str(error):  # listing says it in words only
            keys = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what this key may do"
            return UserError(f"{what}: access denied ({_said(error)}): check {keys}")
        if isinstance(error, FileNotFoundError) and digest:
            return NotFound(f"there is no blob {digest}")
        return StorageError(f"{what}: {_said(error)}: look after the store")


def _store(url: str) -> S3Store:
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    endpoint, region = options.pop("endpoint", None), options.pop("region", "us-east-1")
    if parts.scheme != "s3" or not parts.netloc or options or "@" in parts.netloc:
        raise UserError(f"expected a bucket such as s3://bucket/prefix?endpoint=https://host:9000, came {shown(url)!r}")
    config: S3Config = {"region": region, "virtual_hosted_style_request": endpoint is None}
    if endpoint is not None:  # else AWS itself
        config["endpoint"] = endpoint
    try:
        return S3Store(
            parts.netloc,
            prefix=parts.path.strip("/") or None,
            config=config,
            client_options={"allow_http": True, "timeout": "10m", "connect_timeout": "5s"},
            retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=20)},
        )
    except BaseError as error:
        said = str(error).partition("\n")[0]
        raise UserError(
            f"cannot use the bucket {shown(url)}: {said}: is its key in AWS_ACCESS_KEY_ID and so on?"
        ) from None


def _key(digest: Digest) -> str:
    return f"blobs/{digest}"


def _incoming(node: NodeId, name: str) -> str:
    return f"incoming/{_digest(node.encode())[:32]}/{name}"


def _digest(data: Buffer | mmap.mmap) -> Digest:
    found: Digest = blake3(data).hexdigest()
    return found


async def _off_loop(size: int, work: Callable[[], T]) -> T:
    return work() if size < MAPPED else await asyncio.to_thread(work)


async def _fill(file: IO[bytes], stream: "GetResult") -> None:
    async for chunk in stream.stream(min_chunk_size=MAPPED):
        await asyncio.to_thread(file.write, chunk)
    file.flush()


async def _mapped(stream: "GetResult") -> Mapped:
    """The bytes in a file that has no name, which goes when nobody uses them any more."""
    with tempfile.TemporaryFile(prefix="tutti-blob-") as file:
        await _fill(file, stream)
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _said(error: Exception) -> str:
    """The first line: what follows is for the library's authors."""
    return (str(error) or type(error).__name__).splitlines()[0][:300]
