"""A Thrift service on asyncio: stock Apache clients with framed transport and the binary protocol can call it."""

import asyncio
import logging
import ssl
from typing import Any

from tutti.adapters.thrift.client import ApplicationException
from tutti.adapters.thrift.frames import Frames
from tutti.adapters.thrift.tls import caller
from tutti.core.errors import Conflict, UserError
from tutti.wire.thrift import BadFrame, Buffer, Kind, Message, decode, encode

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 512
MAX_CALLS = 32
"""Calls that one connection may have under way; what comes beyond them waits in the sender's network buffer."""

_UNKNOWN_METHOD, _INTERNAL_ERROR, _PROTOCOL_ERROR = 1, 6, 7


class PortTaken(Conflict):
    """Another process listens there already."""


class Server:
    """Serves the methods of `handler`, one coroutine for each call of the IDL's service.

    A method may raise the exceptions that the IDL declares for it. Any other UserError of its is said to the caller
    as TApplicationException; anything else too, without its text, which goes to the log.

    Args:
        idle: Seconds after which a connection without a call is closed; its owner opens another when it needs one.
    """

    def __init__(
        self, service: Any, handler: object, *, tls: ssl.SSLContext | None = None, idle: float = 300.0
    ) -> None:
        self._service, self._handler, self._tls, self._idle = service, handler, tls, idle
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen; the port, which the system chooses for 0. Raises PortTaken."""
        try:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(lambda: Frames(self._opened), host, port, ssl=self._tls)
        except OSError as error:
            raise PortTaken(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another port") from None
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening, and cut every connection."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    def _opened(self, frames: Frames) -> None:
        task = asyncio.create_task(self._on_connection(frames))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _on_connection(self, frames: Frames) -> None:
        caller.set(frames.certificate)
        try:
            if len(self._connections) <= MAX_CONNECTIONS:
                await self._serve(frames)
        except (OSError, BadFrame, TimeoutError) as error:
            log.info("a connection from %s ended: %s", frames.peer, error or "idle")
        finally:
            frames.close()

    async def _serve(self, frames: Frames) -> None:
        room = asyncio.Semaphore(MAX_CALLS)
        try:
            async with asyncio.TaskGroup() as calls:
                while True:
                    async with asyncio.timeout(self._idle):
                        frame = await frames.read()
                    if frame is None:
                        return
                    message = decode(frame)
                    await room.acquire()
                    calls.create_task(self._answer(message, frames, room))
        except BaseExceptionGroup as failed:  # the first failure ended the connection, the others followed from it
            raise failed.exceptions[0] from None

    async def _answer(self, message: Message, frames: Frames, room: asyncio.Semaphore) -> None:
        try:
            reply = await self._outcome(message)
            if message.kind is not Kind.ONEWAY:
                async with asyncio.timeout(self._idle):
                    await frames.write(reply)
        finally:
            room.release()

    async def _outcome(self, message: Message) -> list[Buffer]:
        name = message.name
        if message.kind not in (Kind.CALL, Kind.ONEWAY):
            raise BadFrame(f"expected a call, came {message.kind.name.lower()} {name!r}")
        if name not in self._service.thrift_services:
            return _failure(message, f"there is no call {name!r}", _UNKNOWN_METHOD)
        result = getattr(self._service, f"{name}_result")()
        try:
            arguments = message.struct(getattr(self._service, f"{name}_args"))
            fields = [getattr(arguments, field[1]) for field in arguments.thrift_spec.values()]
            answer = await getattr(self._handler, name)(*fields)
        except UserError as error:
            return _failure(message, str(error), _PROTOCOL_ERROR)
        except Exception as error:
            if (declared := _declared(result, error)) is None:
                log.exception("the call %s failed", name)
                return _failure(message, f"{name!r} failed here, by a mistake of this server", _INTERNAL_ERROR)
            setattr(result, declared, error)
        else:
            result.success = answer
        return encode(name, Kind.REPLY, message.seqid, result)


def _declared(result: Any, error: Exception) -> str | None:
    """Under which name the IDL declares this exception for the call, if it does."""
    for _, name, *inner, _ in result.thrift_spec.values():
        if name != "success" and inner and isinstance(error, inner[0]):
            return str(name)
    return None


def _failure(message: Message, reason: str, code: int) -> list[Buffer]:
    return encode(message.name, Kind.EXCEPTION, message.seqid, ApplicationException(reason, code))
