"""Blobs: bytes named by their BLAKE3 digest (64 hex characters), written once and never changed."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol, TypeAlias

from tutti.core.errors import UserError
from tutti.domain.events import Digest

Chunks: TypeAlias = AsyncIterator[bytes | bytearray | memoryview]
"""A stream of bytes in pieces of any size; a piece must not change after it was handed over."""


class TooLarge(UserError):
    """More bytes came, or were announced, than are allowed here."""


class BadDigest(UserError):
    """Not 64 lower-case hex digits, so it names no blob."""


class BlobStore(Protocol):
    async def put(self, chunks: Chunks, *, digest: Digest | None = None, limit: int | None = None) -> Digest:
        """Store a stream; it is visible whole or not at all, and survives loss of power once this returns.

        Raises CorruptBlob if `digest` is given and the bytes have another one, TooLarge past `limit` bytes,
        StorageError if the disk fails. Storing what is there already costs nothing and changes nothing: to mend
        a damaged blob, delete it first.
        """
        ...

    async def path(self, digest: Digest) -> Path:
        """A local file with the blob's bytes, to map or stream; raises NotFound. It is not verified here."""
        ...

    async def delete(self, *digests: Digest) -> None:
        """Forget blobs; one that is not there is no error."""
        ...

    async def digests(self) -> list[Digest]:
        """All blobs, in no order."""
        ...
