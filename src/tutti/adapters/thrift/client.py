"""Calls to Thrift services: one connection to each address, any number of calls on it at once."""

import asyncio
import ssl
from typing import Any

from tutti.adapters.thrift.frames import Frames
from tutti.core.errors import TuttiError, UserError
from tutti.wire.thrift import LENGTH, MAX_FRAME, BadFrame, Buffer, Kind, Message, decode, encode

SUCCESS = 0
"""The number of the field of a call's result that is not an exception."""


class Unreachable(TuttiError):
    """No answer in time, or none that can be read: the process is dead, the network is cut, or it speaks otherwise.

    `refused`: nobody listens there.
    """

    refused = False


class UnknownCall(UserError):
    """The other side has no such call, or could not read it."""


class Channel:
    """A connection to one service at one address, opened by the first call and again after it was lost."""

    def __init__(self, service: Any, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        self._service, self._host, self._port, self._tls = service, host, port, tls
        self._frames: Frames | None = None
        self._reading: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._last = 0

    async def call(self, name: str, *arguments: Any, within: float) -> Any:
        """What the service answers; raises what the IDL says it throws, Unreachable after `within` seconds."""
        arguments_of, result_of = getattr(self._service, f"{name}_args"), getattr(self._service, f"{name}_result")
        self._last = seqid = (self._last + 1) % 2**31
        frame = encode(name, Kind.CALL, seqid, arguments_of(*arguments))
        if (size := sum(map(len, frame)) - LENGTH) > MAX_FRAME:
            raise UserError(f"a call may have {MAX_FRAME} bytes, {name!r} has {size}: send less at once")
        try:
            async with asyncio.timeout(within):
                message = await self._exchange(seqid, frame)
        except TimeoutError:
            raise Unreachable(f"{self._host}:{self._port} gave no answer to {name!r} within {within:g} s") from None
        except (OSError, ValueError) as error:  # resolvers raise ValueError for hosts that cannot be
            unreachable = Unreachable(f"cannot reach {self._host}:{self._port}: {error}")
            unreachable.refused = isinstance(error, ConnectionRefusedError)
            raise unreachable from None
        finally:
            self._waiting.pop(seqid, None)
        try:
            return _outcome(message, result_of)
        except BadFrame as error:
            raise Unreachable(f"{self._host}:{self._port} gave no answer to {name!r}: {error}") from None

    async def close(self) -> None:
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            await asyncio.wait([reading])
        self._lose(Unreachable("the connection was closed here"))

    async def _exchange(self, seqid: int, frame: list[Buffer]) -> Message:
        async with self._opening:
            if self._frames is None or self._frames.over:
                await self._open()
        assert self._frames is not None
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[seqid] = answer
        await self._frames.write(frame)
        return await answer

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        _, self._frames = await loop.create_connection(Frames, self._host.strip("[]"), self._port, ssl=self._tls)
        self._reading = asyncio.create_task(self._read(self._frames))

    async def _read(self, frames: Frames) -> None:
        """Hand answers to those who wait for them, until the connection ends."""
        hint = "" if self._tls else "; if it wants TLS, give --tls-cert, --tls-key and --tls-ca"
        lost: Exception = Unreachable(f"{self._host}:{self._port} closed the connection{hint}")
        try:
            while (frame := await frames.read()) is not None:
                message = decode(frame)
                waiting = self._waiting.pop(message.seqid, None)
                if waiting is not None and not waiting.done():  # else nobody waits for it any more
                    waiting.set_result(message)
        except (OSError, BadFrame) as error:
            lost = Unreachable(f"the connection to {self._host}:{self._port} broke: {error}")
        finally:
            frames.close()
            if self._frames is frames:
                self._lose(lost)

    def _lose(self, reason: Exception) -> None:
        frames, self._frames = self._frames, None
        if frames is not None:
            frames.close()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(reason)


def _outcome(message: Message, result_of: Any) -> Any:
    """What was answered; raises what was thrown, UnknownCall, and BadFrame if neither is there."""
    if message.kind is Kind.EXCEPTION:
        failure = message.struct(ApplicationException)
        raise UnknownCall(f"{message.name!r}: {failure.message or 'refused without a reason'}")
    result = message.struct(result_of)
    for _, name, *_ in result.thrift_spec.values():
        if name != "success" and (thrown := getattr(result, name)) is not None:
            raise thrown
    if SUCCESS not in result_of.thrift_spec:  # a call that returns nothing
        return None
    if result.success is None:
        raise BadFrame(f"{result_of.__name__} has neither a result nor an exception")
    return result.success


class ApplicationException:
    """TApplicationException: the call itself could not be made."""

    thrift_spec = {1: (11, "message", False), 2: (8, "type", False)}  # noqa: RUF012 - never changed

    def __init__(self, message: str | None = None, type: int | None = None) -> None:
        self.message, self.type = message, type
