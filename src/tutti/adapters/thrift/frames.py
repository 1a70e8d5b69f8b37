"""Frames on a connection: four bytes of length, then so many bytes. Each is received into a place of its own."""

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from tutti.adapters.thrift.tls import Certificate
from tutti.wire.thrift import LENGTH, MAX_FRAME, BadFrame, Buffer

SCRATCH = 1 << 16
"""Bytes that are read at once while it is not known how long the next frame is."""

WAITING = 16
"""Frames that may wait to be read; what comes beyond them waits in the sender's network buffer."""


class Frames(asyncio.BufferedProtocol):
    """One connection, for one reader and any number of writers. `opened` is told when it is there."""

    def __init__(self, opened: "Callable[[Frames], None]" = lambda frames: None) -> None:
        self._opened = opened
        self._scratch, self._filled = memoryview(bytearray(SCRATCH)), 0
        self._frame: memoryview | None = None
        self._got = 0
        self._come: deque[memoryview] = deque()
        self._news, self._room = asyncio.Event(), asyncio.Event()
        self._turn = asyncio.Lock()
        self._over = False
        self._error: Exception | None = None

    async def read(self) -> memoryview | None:
        """The next frame, or None at the end; raises BadFrame for one that is too long or cut short, OSError."""
        while not self._come:
            if self._over:
                if self._error is not None:
                    raise self._error
                return None
            self._news.clear()
            await self._news.wait()
        frame = self._come.popleft()
        if len(self._come) == WAITING - 1 and not self._over:
            self._transport.resume_reading()
        return frame

    async def write(self, frame: Sequence[Buffer]) -> None:
        """Send the pieces of a frame, its length included, when those before it have gone; raises OSError."""
        async with self._turn:
            await self._room.wait()
            if self._over:
                raise ConnectionResetError("the connection has ended")
            for piece in frame:
                self._transport.write(piece)

    def close(self) -> None:
        """What was written still goes out."""
        self._transport.close()

    @property
    def over(self) -> bool:
        return self._over

    @property
    def peer(self) -> object:
        """The address of the other side."""
        return self._transport.get_extra_info("peername")

    @property
    def certificate(self) -> Certificate | None:
        """That of the other side, if it had to show one."""
        return self._transport.get_extra_info("peercert") or None

    # -- asyncio.BufferedProtocol --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if (sock := transport.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(high=1)  # what waits here is copied; what waits in `write` is not
        self._room.set()
        self._opened(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._scratch[self._filled :] if self._frame is None else self._frame[self._got :]

    def buffer_updated(self, count: int) -> None:
        if self._frame is None:
            self._filled += count
            self._cut()
        else:
            self._got += count
            if self._got == len(self._frame):
                self._deliver(self._frame)
                self._frame = None

    def eof_received(self) -> None:
        """The transport closes itself."""

    def connection_lost(self, error: Exception | None) -> None:
        if error is None and (self._filled or self._frame is not None):
            error = BadFrame("the connection ended in the middle of a frame")
        self._end(error)

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    # -- the cutting ---------------------------------------------------------------------------------------

    def _cut(self) -> None:
        """Take the frames out of what has been read."""
        at = 0
        while self._frame is None and self._filled - at >= LENGTH:
            size = int.from_bytes(self._scratch[at : at + LENGTH])
            if size > MAX_FRAME:
                self._end(BadFrame(f"a frame may have {MAX_FRAME} bytes, one announces {size}; framed transport?"))
                self._transport.abort()
                return
            at += LENGTH
            frame = np.empty(size, np.uint8).data  # takes no memory until bytes come
            there = min(size, self._filled - at)
            frame[:there] = self._scratch[at : at + there]
            at += there
            if there == size:
                self._deliver(frame)
            else:
                self._frame, self._got = frame, there
        rest = self._filled - at
        self._scratch[:rest] = self._scratch[at : self._filled]
        self._filled = rest

    def _deliver(self, frame: memoryview) -> None:
        self._come.append(frame.toreadonly())
        if len(self._come) == WAITING:
            self._transport.pause_reading()
        self._news.set()

    def _end(self, error: Exception | None) -> None:
        if not self._over:
            self._over, self._error = True, error
        self._news.set()
        self._room.set()
