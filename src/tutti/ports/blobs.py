"""Blobs: bytes named by their BLAKE3 digest (64 hex characters), written once and never changed."""

import re
from contextlib import AbstractAsyncContextManager
from mmap import mmap
from pathlib import Path
from typing import Protocol, TypeAlias

from tutti.core.errors import UserError
from tutti.domain.events import Digest

Buffer: TypeAlias = bytes | bytearray | memoryview
Mapped: TypeAlias = bytes | mmap | memoryview


class TooLarge(UserError):
    """More bytes came, or were announced, than are allowed here."""


class BadDigest(UserError):
    """Not 64 lower-case hex digits, so it names no blob."""


_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_digest(name: str) -> bool:
    """Whether this can name a blob."""
    return _DIGEST.fullmatch(name) is not None


def check_digest(digest: Digest) -> None:
    """Raises BadDigest."""
    if not is_digest(digest):
        raise BadDigest(f"a blob is named by 64 hex digits (BLAKE3, lower case), not by {digest[:80]!r}")


class BlobStore(Protocol):
    async def put(self, data: Buffer, *, digest: Digest | None = None, sync: bool = True) -> Digest:
        """Store bytes; they are visible whole or not at all, and survive loss of power once this returns.

        Without `sync` they survive the end of this process, not a loss of power: that is enough for an update, which
        its node keeps until the round is closed, and it never reaches the disk if it is deleted soon.
        Raises CorruptBlob if `digest` is given and the bytes have another one, StorageError if the disk fails.
        Storing what is there already changes nothing: to mend a damaged blob, delete it first. One that is
        cancelled may or may not have been stored.
        """
        ...

    async def read(self, digest: Digest) -> Mapped:
        """A blob's bytes, mapped or loaded, and verified at least once in the life of this process.

        Raises NotFound, CorruptBlob if the bytes are not those that were stored, StorageError.
        """
        ...

    async def size(self, digest: Digest) -> int:
        """How many bytes a blob has, before anything of it is read; raises NotFound, StorageError."""
        ...

    def file(self, digest: Digest) -> AbstractAsyncContextManager[Path]:
        """A local file with the blob's bytes, for another process, as long as the block lasts. Not to be written to.

        A directory gives its own file, a store far away a copy. Entering raises NotFound, StorageError. Not verified.
        """
        ...

    async def delete(self, *digests: Digest) -> None:
        """Forget blobs; one that is not there is no error."""
        ...

    async def digests(self) -> list[Digest]:
        """All blobs, in no order."""
        ...
