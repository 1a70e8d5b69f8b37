"""The frames of a connection that was let go, against the `websockets` library: however they are cut, and bad ones."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.server import ServerState
from websockets.client import ClientProtocol
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from tutti.apps import sockets
from tutti.apps.sockets import DETACH, Channel, Sockets

MOST = 1000


class Line(asyncio.Transport):
    """What is written, and whether there is reading."""

    def __init__(self) -> None:
        super().__init__()
        self._protocol: asyncio.BaseProtocol | None = None
        self.written, self.reading, self.closed = b"", True, False

    def write(self, data: Any) -> None:
        assert not self.closed
        self.written += bytes(data)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        self.closed = True

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def is_closing(self) -> bool:
        return self.closed


def peer() -> ClientProtocol:
    return ClientProtocol(parse_uri("ws://here/ws/node"), state=State.OPEN)


def masked(*frames: Frame) -> bytes:
    return b"".join(frame.serialize(mask=True) for frame in frames)


def heard(line: Line) -> list[Frame]:
    """What the library's client understands of what was written."""
    client = peer()
    client.receive_data(line.written)
    assert client.parser_exc is None
    return [event for event in client.events_received() if isinstance(event, Frame)]


def opened() -> tuple[Line, Channel, set[Channel]]:
    line, counted = Line(), set[Channel]()
    return line, Channel(line, MOST, counted), counted


async def received(channel: Channel, count: int) -> list[str | bytes]:
    frames = [await channel.receive() for _ in range(count)]
    return [frame["text"] if "text" in frame else frame["bytes"] for frame in frames]


MESSAGES = st.lists(st.one_of(st.text(max_size=60), st.binary(max_size=200)), max_size=6)


@given(messages=MESSAGES, cuts=st.lists(st.integers(1, 80), max_size=40), parts=st.integers(1, 4), pinged=st.booleans())
async def test_messages_arrive_however_they_are_cut(
    messages: list[str | bytes], cuts: list[int], parts: int, pinged: bool
) -> None:
    """Into frames, with a ping between them, and into what a read brings."""
    line, channel, _ = opened()
    stream = b""
    for message in messages:
        data = message.encode() if isinstance(message, str) else message
        size = -(-len(data) // parts) or 1
        pieces = [data[start : start + size] for start in range(0, len(data), size)] or [b""]
        for number, piece in enumerate(pieces):
            kind = Opcode.CONT if number else Opcode.TEXT if isinstance(message, str) else Opcode.BINARY
            stream += masked(Frame(kind, piece, fin=number == len(pieces) - 1))
            stream += masked(Frame(Opcode.PING, b"there?")) if pinged else b""
    for cut in [*cuts, len(stream) + 1]:
        channel.data_received(stream[:cut])
        stream = stream[cut:]
    assert await received(channel, len(messages)) == messages
    assert line.reading
    assert not line.closed
    assert all((frame.opcode, bytes(frame.data)) == (Opcode.PONG, b"there?") for frame in heard(line))


@given(messages=MESSAGES)
async def test_what_is_said_is_understood(messages: list[str | bytes]) -> None:
    line, channel, _ = opened()
    long: list[str | bytes] = [*messages, b"x" * 70_000, "y" * 300]
    for message in long:
        key = "text" if isinstance(message, str) else "bytes"
        await channel.send({"type": "websocket.send", key: message})
    came = [bytes(f.data).decode() if f.opcode is Opcode.TEXT else bytes(f.data) for f in heard(line)]
    assert came == long


FAULTS = {
    "not masked": (Frame(Opcode.TEXT, b"hi").serialize(mask=False), 1002),
    "an extension": (bytes((0xC1, 0x80, 0, 0, 0, 0)), 1002),
    "an unknown kind": (bytes((0x83, 0x80, 0, 0, 0, 0)), 1002),
    "a long ping": (bytes((0x89, 0xFE, 0, 126, 0, 0, 0, 0)), 1002),
    "half a ping": (bytes((0x09, 0x80, 0, 0, 0, 0)), 1002),
    "the rest of nothing": (masked(Frame(Opcode.CONT, b"hi")), 1002),
    "one within another": (masked(Frame(Opcode.TEXT, b"a", fin=False), Frame(Opcode.TEXT, b"b")), 1002),
    "too large": (masked(Frame(Opcode.BINARY, b"x" * (MOST + 1))), 1009),
    "too large in all": (masked(Frame(Opcode.BINARY, b"x" * MOST, fin=False), Frame(Opcode.CONT, b"x")), 1009),
    "gigantic": (bytes((0x82, 0xFF)) + (2**62).to_bytes(8, "big"), 1009),
    "no UTF-8": (masked(Frame(Opcode.TEXT, b"\xff")), 1007),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_whoever_breaks_the_rules_is_told_and_gone(fault: str) -> None:
    data, code = FAULTS[fault]
    line, channel, _ = opened()
    channel.data_received(data + masked(Frame(Opcode.TEXT, b"what comes after")))
    assert (await channel.receive())["code"] == code
    assert [Close.parse(bytes(frame.data)).code for frame in heard(line)] == [code]
    assert line.closed
    with pytest.raises(ClientDisconnected):
        await channel.send({"type": "websocket.send", "text": "hi"})


async def test_the_peer_says_goodbye() -> None:
    line, channel, counted = opened()
    channel.data_received(masked(Frame(Opcode.CLOSE, Close(1001, "bye").serialize())))
    assert await channel.receive() == {"type": "websocket.disconnect", "code": 1001}
    assert Close.parse(bytes(heard(line)[0].data)).code == 1001
    assert line.closed
    assert counted == {channel}
    channel.connection_lost(None)
    assert not counted


async def test_we_say_goodbye_and_wait_for_the_answer() -> None:
    line, channel, _ = opened()

    async def speak(receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        await send({"type": "websocket.close", "code": 1013, "reason": "later"})

    await channel.run(speak)
    (said,) = heard(line)
    assert Close.parse(bytes(said.data)) == Close(1013, "later")
    channel.data_received(masked(Frame(Opcode.TEXT, b"still talking")))
    assert not line.closed
    channel.data_received(masked(Frame(Opcode.CLOSE, bytes(said.data))))
    assert line.closed


async def test_a_peer_that_never_answers_our_goodbye_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "CLOSE_SECONDS", 0.0)
    line, channel, _ = opened()
    closed = asyncio.Event()
    line.close = closed.set  # type: ignore[method-assign]
    await channel.send({"type": "websocket.close"})
    async with asyncio.timeout(10):
        await closed.wait()


async def test_neither_side_drowns_the_other() -> None:
    """No more is read while a message waits; nothing is written while the peer does not read."""
    line, channel, _ = opened()
    channel.data_received(masked(Frame(Opcode.TEXT, b"one"), Frame(Opcode.TEXT, b"two")))
    assert not line.reading
    assert await received(channel, 1) == ["one"]
    assert not line.reading
    assert await received(channel, 1) == ["two"]
    assert line.reading
    channel.pause_writing()
    sending = asyncio.create_task(channel.send({"type": "websocket.send", "text": "hi"}))
    await asyncio.sleep(0)
    assert not line.written
    channel.resume_writing()
    await sending
    assert len(heard(line)) == 1


UPGRADE = (
    b"GET /ws/node HTTP/1.1\r\nHost: hub\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


@pytest.mark.parametrize("gone", [False, True])
async def test_a_peer_may_be_gone_before_it_is_accepted(gone: bool, caplog: pytest.LogCaptureFixture) -> None:
    """As many are in a storm: that is nobody's mistake, and nobody speaks with them."""
    spoken = []

    async def speak(receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        spoken.append(receive)

    async def accept(scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        scope["extensions"][DETACH](speak)

    config, state, line = uvicorn.Config(accept, ws=Sockets, log_config=None), ServerState(), Line()
    config.load()
    its = Sockets(config, state, {})
    its.connection_made(line)
    its.data_received(UPGRADE)
    if gone:
        line.close()
    while state.tasks:
        await asyncio.gather(*state.tasks)
    assert len(spoken) == (not gone)
    assert line.written.startswith(b"" if gone else b"HTTP/1.1 101")
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_connection_that_breaks_or_a_server_that_stops_ends_it() -> None:
    line, channel, _ = opened()
    waiting = asyncio.create_task(channel.receive())
    await asyncio.sleep(0)
    channel.connection_lost(ConnectionResetError())
    assert (await waiting)["code"] == 1006
    line, channel, _ = opened()
    channel.shutdown()
    assert (await channel.receive())["code"] == 1012
    assert line.closed
