"""Blobs between members on one machine: handed over as open files that both map, and not copied.

Each member listens at an abstract Unix socket that is named by its address in the ring. Whoever finds nobody at such a
name is on another machine (or in another network namespace, or not on Linux), and uses the network. Only processes of
the same user are served: they could read everything here anyway. A request is one packet, its answer another:

| request | file with it | answer | file with it |
| --- | --- | --- | --- |
| G, digest: have this | in memory, sealed | `+` when it is held and its digest is right, or `-` and why | |
| T, digest: give me this | | `+`, or `-` if it is not in a file here | the blob's |
"""

import asyncio
import contextlib
import fcntl
import mmap
import os
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from struct import Struct
from typing import TypeVar

from blake3 import blake3

from tutti.adapters.blobs.held import HeldBlobs
from tutti.core.errors import CorruptBlob, NotFound, TuttiError
from tutti.domain.events import Digest
from tutti.ports.blobs import Buffer, TooLarge, check_digest

LARGE = 1 << 20
"""Bytes from which on a blob is handed over: smaller ones are sent sooner."""

SILENT = 1.0
"""Seconds for which a connection may say nothing."""

WITHIN, SOON = 30.0, 2.0
"""Seconds for an answer to G, for which the other side reads the whole blob first, and for one to T."""

_asking, _asked = ThreadPoolExecutor(16, "tutti-asks"), ThreadPoolExecutor(16, "tutti-asked")
"""Threads that wait for others: who is frozen must not hold up those in which votes are saved, and two members that ask
much of one another must still hear what they are asked."""

_PACKET = 1024
_CREDENTIALS = Struct("3i")
"""Process, user, group."""

_NAME = "\0tutti-ring/"
POSSIBLE = sys.platform == "linux"
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW if POSSIBLE else 0

T = TypeVar("T")


class NotHandedOver(TuttiError):
    """A member on this machine does not take the file of a blob; its bytes are sent instead."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """Bytes in memory, as a file that nobody can change any more."""

    file: int

    def close(self) -> None:
        os.close(self.file)


def sealed(data: Buffer) -> Sealed:
    """A copy of the bytes."""
    file = os.memfd_create("tutti-blob", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
    return Sealed(file)


async def near(address: str) -> bool:
    """Whether the member of this address is on this machine."""
    if not POSSIBLE:
        return False
    try:
        (await _waiting(_asking, lambda: _connected(address))).close()
    except OSError:
        return False
    return True


async def give(address: str, digest: Digest, blob: Sealed) -> None:
    """Have the member hold the blob; raises OSError if there is none here, NotHandedOver."""
    answer, file = await _waiting(_asking, lambda: _exchange(address, b"G" + bytes.fromhex(digest), blob.file, WITHIN))
    if file is not None:
        os.close(file)
    if answer[:1] != b"+":
        raise NotHandedOver(f"{address}: {answer[1:].decode(errors='replace')}")


async def take(address: str, digest: Digest) -> memoryview | None:
    """The blob of a member on this machine; None if it has none, or there is no such member. Raises CorruptBlob."""
    if not POSSIBLE:
        return None
    try:
        answer, file = await _waiting(_asking, lambda: _exchange(address, b"T" + bytes.fromhex(digest), None, SOON))
    except OSError:
        return None
    if file is None:
        return None
    try:
        return await asyncio.to_thread(_mapped, file, digest) if answer == b"+" else None
    finally:
        os.close(file)


class Handover:
    """The side that is asked. `limit`: the largest blob that is taken, in bytes."""

    def __init__(self, address: str, blobs: HeldBlobs, *, limit: int = 2**31) -> None:
        self._address, self._blobs, self._limit = address, blobs, limit
        self._serving: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen, where that is possible; a name that another process has taken is left to it."""
        if not POSSIBLE:
            return
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.setblocking(False)
        try:
            listener.bind(_NAME + self._address)
            listener.listen()
        except OSError:
            listener.close()
            return
        self._serving = asyncio.create_task(self._serve(listener))

    async def close(self) -> None:
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.wait([self._serving])

    async def _serve(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            async with asyncio.TaskGroup() as calls:
                while True:
                    connection, _ = await loop.sock_accept(listener)
                    calls.create_task(self._answer(connection))

    async def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(SILENT)
        with connection, contextlib.suppress(OSError):
            if _user(connection) != os.getuid():
                return
            request, file = await _waiting(_asked, lambda: _receive(connection))
            try:
                answer, given = await self._outcome(request[:1], request[1:].hex(), file)
            except (TuttiError, ValueError, OSError) as error:  # as if it was deleted just now
                answer, given = b"-" + str(error).encode()[: _PACKET - 1], None
            finally:
                if file is not None:
                    os.close(file)
            try:
                _send(connection, answer, given)
            finally:
                if given is not None:
                    os.close(given)

    async def _outcome(self, what: bytes, digest: Digest, file: int | None) -> tuple[bytes, int | None]:
        """The answer and the file with it."""
        check_digest(digest)
        if what == b"T":
            return b"+", os.open(self._blobs.disk.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        if what != b"G" or file is None:
            raise NotFound("expected a request to have a blob, with its file, or to give one")
        if (size := os.fstat(file).st_size) > self._limit:
            raise TooLarge(f"at most {self._limit} bytes are allowed here, {size} came")
        if not self._blobs.has(digest):
            if fcntl.fcntl(file, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
                raise CorruptBlob("the file can still be changed: seal it against writing, shrinking and growing")
            await self._blobs.hold(digest, await asyncio.to_thread(_mapped, file, digest))
        return b"+", None


async def _waiting(threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, work)


def _mapped(file: int, digest: Digest) -> memoryview:
    """The bytes of a file, which stay when it is closed; raises CorruptBlob."""
    size = os.fstat(file).st_size
    view = memoryview(mmap.mmap(file, size, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ) if size else b"")
    if (found := blake3(view).hexdigest()) != digest:
        raise CorruptBlob(f"expected bytes with digest {digest}, those that came have {found}")
    return view


def _exchange(address: str, request: bytes, file: int | None, within: float) -> tuple[bytes, int | None]:
    """Raises OSError."""
    with _connected(address) as connection:
        if _user(connection) != os.getuid():
            raise ConnectionRefusedError("a process of another user listens there")
        connection.settimeout(within)
        _send(connection, request, file)
        return _receive(connection)


def _connected(address: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(SILENT)
    try:
        connection.connect(_NAME + address)
    except OSError:
        connection.close()
        raise
    return connection


def _send(connection: socket.socket, packet: bytes, file: int | None) -> None:
    socket.send_fds(connection, [packet], [] if file is None else [file])


def _receive(connection: socket.socket) -> tuple[bytes, int | None]:
    """A packet, and the file that came with it; of several the first."""
    packet, files, _, _ = socket.recv_fds(connection, _PACKET, 4)
    for file in files[1:]:
        os.close(file)
    if not packet:
        raise ConnectionResetError("the other side said nothing")
    return packet, files[0] if files else None


def _user(connection: socket.socket) -> int:
    """Whose process is on the other side."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(found)
    return int(user)
