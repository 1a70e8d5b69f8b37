"""Calls to Thrift services: one connection to each address, any number of calls on it at once."""

import asyncio
import socket
import ssl
from typing import Any

from tutti.core.errors import TuttiError, UserError
from tutti.wire.thrift import MAX_FRAME, BadFrame, Kind, Message, decode, encode


class Unreachable(TuttiError):
    """No answer in time: the process is dead, the network is cut, or it does not speak this protocol.

    `refused`: nobody listens there.
    """

    refused = False


class UnknownCall(UserError):
    """The other side has no such call, or could not read it."""


class Channel:
    """A connection to one service at one address, opened by the first call and again after it was lost."""

    def __init__(self, service: Any, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        self._service, self._host, self._port, self._tls = service, host, port, tls
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._last = 0

    async def call(self, name: str, *arguments: Any, within: float) -> Any:
        """What the service answers; raises what the IDL says it throws, Unreachable after `within` seconds."""
        arguments_of, result_of = getattr(self._service, f"{name}_args"), getattr(self._service, f"{name}_result")
        self._last = seqid = (self._last + 1) % 2**31
        frame = encode(name, Kind.CALL, seqid, arguments_of(*arguments))
        if len(frame) > MAX_FRAME:
            raise UserError(f"a call may have {MAX_FRAME} bytes, {name!r} has {len(frame)}: send less at once")
        try:
            async with asyncio.timeout(within):
                message = await self._exchange(seqid, frame)
        except TimeoutError:
            raise Unreachable(f"{self._host}:{self._port} gave no answer to {name!r} within {within:g} s") from None
        except (OSError, ssl.SSLError) as error:
            unreachable = Unreachable(f"cannot reach {self._host}:{self._port}: {error}")
            unreachable.refused = isinstance(error, ConnectionRefusedError)
            raise unreachable from None
        finally:
            self._waiting.pop(seqid, None)
        return _outcome(message, result_of)

    async def close(self) -> None:
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            await asyncio.wait([reading])
        self._lose(Unreachable("the connection was closed here"))

    async def _exchange(self, seqid: int, frame: bytes) -> Message:
        async with self._opening:
            if self._writer is None or self._writer.is_closing():
                await self._open()
        assert self._writer is not None
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[seqid] = answer
        self._writer.write(len(frame).to_bytes(4) + frame)
        await self._writer.drain()
        return await answer

    async def _open(self) -> None:
        reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls)
        undelayed(writer)
        self._writer = writer
        self._reading = asyncio.create_task(self._read(reader, writer))

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hand answers to those who wait for them, until the connection ends."""
        lost: Exception = Unreachable(f"{self._host}:{self._port} closed the connection")
        try:
            while (frame := await read_frame(reader)) is not None:
                message = decode(frame)
                waiting = self._waiting.pop(message.seqid, None)
                if waiting is not None and not waiting.done():  # else nobody waits for it any more
                    waiting.set_result(message)
        except (OSError, BadFrame) as error:
            lost = Unreachable(f"the connection to {self._host}:{self._port} broke: {error}")
        finally:
            writer.close()
            if self._writer is writer:
                self._lose(lost)

    def _lose(self, reason: Exception) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(reason)


def _outcome(message: Message, result_of: type) -> Any:
    if message.kind is Kind.EXCEPTION:
        failure = message.struct(ApplicationException)
        raise UnknownCall(f"{message.name!r}: {failure.message or 'refused without a reason'}")
    result = message.struct(result_of)
    for _, name, *_ in result.thrift_spec.values():
        if name != "success" and (thrown := getattr(result, name)) is not None:
            raise thrown
    return getattr(result, "success", None)


class ApplicationException:
    """TApplicationException: the call itself could not be made."""

    thrift_spec = {1: (11, "message", False), 2: (8, "type", False)}  # noqa: RUF012 - never changed

    def __init__(self, message: str | None = None, type: int | None = None) -> None:
        self.message, self.type = message, type


async def read_frame(reader: asyncio.StreamReader) -> bytes | None:
    """The next frame, or None at the end; raises BadFrame for one that is too long or cut short."""
    try:
        size = int.from_bytes(await reader.readexactly(4))
        if size > MAX_FRAME:
            raise BadFrame(f"a frame may have {MAX_FRAME} bytes, one announces {size}; is framed transport in use?")
        return await reader.readexactly(size)
    except asyncio.IncompleteReadError as cut:
        if cut.partial:
            raise BadFrame("the connection ended in the middle of a frame") from None
        return None


def undelayed(writer: asyncio.StreamWriter) -> None:
    """Small calls go out at once (TCP_NODELAY)."""
    if (sock := writer.get_extra_info("socket")) is not None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
