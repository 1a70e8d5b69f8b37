"""Connected nodes in few bytes: once a WebSocket is open, the HTTP server's objects and the ASGI stack let go of it.

uvicorn's protocol makes the handshake, with all that the application asks of it; then an endpoint may `detach` the
connection, and a `Channel` takes its place that knows nothing but frames (RFC 6455, section 5,
https://www.rfc-editor.org/rfc/rfc6455#section-5). Ten thousand silent nodes take a third of the memory.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, cast

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.speedups import apply_mask

from tutti.adapters.fabrics.hub import Frame, Receive, Send

Speak: TypeAlias = Callable[[Receive, Send], Awaitable[None]]

DETACH = "tutti.detach"
"""The extension in a connection's ASGI scope: call it with what is to speak with the peer, once it is accepted."""

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
PROTOCOL_ERROR, NO_TEXT, TOO_LARGE, NO_CODE, LOST, RESTARTS = 1002, 1007, 1009, 1005, 1006, 1012
MOST_OF_CONTROL = 125
CLOSE_SECONDS = 10.0
"""How long the peer may take to answer our farewell."""


class Sockets(WebSocketsSansIOProtocol):
    """uvicorn's protocol for WebSockets, which can let a connection go: `uvicorn.Config(ws=Sockets)`."""

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        if self.handshake_initiated and not self.close_sent:
            cast(dict[str, Any], self.scope["extensions"])[DETACH] = self._detach

    def _detach(self, speak: Speak) -> None:
        """Give the open connection to a Channel, if it is still there, and forget all that the handshake took."""
        if self.disconnected or self.transport.is_closing():
            self.handshake_complete = True  # the peer did not wait for it: uvicorn would answer 500
            return
        transport, rest = self.transport, bytes(self.conn.reader.buffer)
        channel = Channel(transport, self.config.ws_max_size, self.connections)
        task = self.loop.create_task(channel.run(speak))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        self.connections.discard(self)
        self.transport = _Nothing()  # type: ignore[assignment]  # uvicorn closes it when the application returns
        self.scope["extensions"] = {}
        self.conn.parser.close()
        transport.set_protocol(channel)
        if rest:
            channel.data_received(rest)


class _Nothing:
    def close(self) -> None:
        """There is nothing to close."""


class Channel(asyncio.Protocol):
    """One open WebSocket, whose peer is a client: what it says comes from `receive`, what `send` is given goes to it.

    Like uvicorn it reads no further while a message waits to be received. A peer that breaks the rules is told so by
    a code, and is gone then.
    """

    __slots__ = (
        "__weakref__",
        "_buffer",
        "_closing",
        "_connections",
        "_drained",
        "_fragments",
        "_most",
        "_ready",
        "_text",
        "_timer",
        "_transport",
        "_waiter",
    )

    def __init__(self, transport: asyncio.Transport, most: int, connections: "set[Any]") -> None:
        """`most`: bytes of a message; `connections`: where it is counted as long as it lasts."""
        self._transport, self._most, self._connections = transport, most, connections
        self._buffer = b""
        self._fragments: list[bytes] | None = None
        self._text = False
        self._ready: list[Frame] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False
        connections.add(self)

    # -- for the application -------------------------------------------------------------------------------

    async def run(self, speak: Speak) -> None:
        try:
            await speak(self.receive, self.send)
        finally:
            if self._timer is None:
                self._transport.close()

    async def receive(self) -> Frame:
        while not self._ready:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        frame = self._ready.pop(0)
        if not self._ready:
            self._ready = None
            if not self._transport.is_closing():
                self._transport.resume_reading()
        return frame

    async def send(self, frame: Frame) -> None:
        if self._drained is not None:
            await asyncio.shield(self._drained)
        if self._closing or self._transport.is_closing():
            raise ClientDisconnected
        if frame["type"] == "websocket.close":
            self._farewell(frame.get("code", 1000), frame.get("reason") or "")
            self._transport.resume_reading()
            self._timer = asyncio.get_running_loop().call_later(CLOSE_SECONDS, self._transport.close)
            return
        data, text = frame.get("bytes"), frame.get("text")
        if data is None:
            assert text is not None
            self._write(TEXT, text.encode())
        else:
            self._write(BINARY, data)

    # -- for the server ------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """The server stops."""
        if not self._closing:
            self._farewell(RESTARTS, "")
            self._deliver({"type": "websocket.disconnect", "code": RESTARTS})
        self._transport.close()

    # -- for the event loop --------------------------------------------------------------------------------

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        self.resume_writing()
        self._deliver({"type": "websocket.disconnect", "code": LOST if exc else NO_CODE})

    def pause_writing(self) -> None:
        self._drained = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else bytes(data)
        at = 0
        while (frame := self._frame_at(data, at)) is not None:
            fin, opcode, payload, at = frame
            self._take(fin, opcode, payload)
            if self._transport.is_closing():
                return
        self._buffer = data[at:]

    # -- frames --------------------------------------------------------------------------------------------

    def _frame_at(self, data: bytes, at: int) -> tuple[bool, int, bytes, int] | None:
        """Whether it ends a message, its kind, what is in it, and where it ends; None if it is not whole, or bad."""
        if len(data) < at + 2:
            return None
        first, second = data[at], data[at + 1]
        opcode, length, start = first & 15, second & 127, at + 2
        if first & 0x70 or not second & 0x80:
            self._fail(PROTOCOL_ERROR, "frames of a client are masked, and have no extensions")
            return None
        if opcode >= CLOSE and (length > MOST_OF_CONTROL or not first & 0x80):
            self._fail(PROTOCOL_ERROR, "control frames are short and whole")
            return None
        if length > MOST_OF_CONTROL:
            width = 2 if length == MOST_OF_CONTROL + 1 else 8
            if len(data) < start + width:
                return None
            length, start = int.from_bytes(data[start : start + width], "big"), start + width
        if length + sum(map(len, self._fragments or ())) > self._most:
            self._fail(TOO_LARGE, f"a message may have {self._most} bytes")
            return None
        stop = start + 4 + length
        if len(data) < stop:
            return None
        payload = apply_mask(data[start + 4 : stop], data[start : start + 4])
        return bool(first & 0x80), opcode, payload, stop

    def _take(self, fin: bool, opcode: int, payload: bytes) -> None:
        match opcode:
            case 0 | 1 | 2:
                self._take_message(fin, opcode, payload)
            case 8:
                self._take_farewell(payload)
            case 9:
                self._write(PONG, payload)
            case 10:
                pass
            case _:
                self._fail(PROTOCOL_ERROR, f"there are no frames of kind {opcode}")

    def _take_message(self, fin: bool, opcode: int, payload: bytes) -> None:
        if (opcode == CONTINUATION) != (self._fragments is not None):
            self._fail(PROTOCOL_ERROR, "a message ends before another begins")
            return
        if opcode != CONTINUATION:
            self._text = opcode == TEXT
        if not fin:
            self._fragments = [*(self._fragments or ()), payload]
            return
        whole, self._fragments = b"".join((*(self._fragments or ()), payload)), None
        if self._closing:
            return
        if not self._text:
            self._deliver({"type": "websocket.receive", "bytes": whole})
            return
        try:
            self._deliver({"type": "websocket.receive", "text": whole.decode()})
        except UnicodeDecodeError:
            self._fail(NO_TEXT, "text is UTF-8")

    def _take_farewell(self, payload: bytes) -> None:
        code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else NO_CODE
        if not self._closing:
            self._write(CLOSE, payload[:2])
            self._closing = True
            self._deliver({"type": "websocket.disconnect", "code": code})
        self._transport.close()

    def _fail(self, code: int, reason: str) -> None:
        if not self._closing:
            self._farewell(code, reason)
            self._deliver({"type": "websocket.disconnect", "code": code})
        self._transport.close()

    def _farewell(self, code: int, reason: str) -> None:
        self._write(CLOSE, code.to_bytes(2, "big") + reason.encode()[: MOST_OF_CONTROL - 2])
        self._closing = True

    def _write(self, opcode: int, payload: bytes) -> None:
        length = len(payload)
        if length <= MOST_OF_CONTROL:
            head = bytes((0x80 | opcode, length))
        elif length < 1 << 16:
            head = bytes((0x80 | opcode, MOST_OF_CONTROL + 1)) + length.to_bytes(2, "big")
        else:
            head = bytes((0x80 | opcode, MOST_OF_CONTROL + 2)) + length.to_bytes(8, "big")
        self._transport.write(head + payload)

    def _deliver(self, frame: Frame) -> None:
        """Nothing more is read until it is received."""
        if self._ready is None:
            self._ready = []
            if not self._transport.is_closing():
                self._transport.pause_reading()
        self._ready.append(frame)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
