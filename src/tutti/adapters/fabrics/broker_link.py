"""The node's side of a message broker: letters through its queues, blobs by HTTP to a store or to the coordinator."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

from tutti.adapters.addresses import shown
from tutti.adapters.fabrics import amqp, presigned
from tutti.adapters.fabrics.amqp import Address, publish
from tutti.adapters.fabrics.download import Download
from tutti.adapters.fabrics.hub_link import HubLink, LinkTimes, meaning
from tutti.core.errors import CorruptBlob, UserError
from tutti.domain.events import Digest, NodeId
from tutti.ports import LinkLost, LinkRefused
from tutti.ports.blobs import Buffer
from tutti.wire import broker as wire
from tutti.wire import tensors
from tutti.wire.messages import MAX_MESSAGE, BadMessage, CoordinatorMessage, NodeMessage, Registration

PREFETCH = 64
"""Letters that the broker hands over before the node has dealt with earlier ones."""


class BrokerLink:
    """Link to the coordinator at `address`, as `node` with the secret it got when it joined.

    `ca` is a PEM file to trust instead of the system's authorities. Close it at the end: the coordinator then knows
    that the node left on purpose.
    """

    def __init__(
        self, address: Address, node: NodeId, token: str, *, ca: Path | None = None, times: LinkTimes | None = None
    ) -> None:
        self._address, self._node, self._token, self._ca = address, node, token, ca
        self._times = times or LinkTimes()
        self._session: _Session | None = None
        self._http: aiohttp.ClientSession | None = None
        self._hub: HubLink | None = None
        self._download: Download | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Say goodbye and close every connection."""
        try:
            if self._session is not None:
                await self._session.close(goodbye=True)
        finally:
            for open in (self._http, self._hub):
                if open is not None:
                    await open.close()
            self._http = self._hub = None

    # -- messages ------------------------------------------------------------------------------------------

    async def connect(self, registration: Registration) -> AsyncIterator[CoordinatorMessage]:
        if self._session is not None:
            await self._session.close(goodbye=False)
        session = self._session = await _Session.open(self._address, self._node, self._times, self._ca)
        try:
            await session.register(registration)
            await self._turn_to(session.blobs)
            await session.listen()
        except BaseException:
            await session.close(goodbye=False)
            raise
        return session.messages()

    async def send(self, message: NodeMessage) -> None:
        if self._session is None:
            raise LinkLost("there is no connection to the coordinator")
        await self._session.send(message)

    # -- blobs ---------------------------------------------------------------------------------------------

    async def fetch(self, digest: Digest) -> Buffer:
        if self._hub is not None:
            return await self._hub.fetch(digest)
        if self._download is None or self._download.digest != digest:
            self._download = Download(digest)
        download = self._download
        try:
            whole = await self._read(download)
        except CorruptBlob:
            if not download.resumed:
                raise
            # What had come in an earlier attempt was damaged, and is gone now: once more, from the start.
            whole = await self._read(download)
        self._download = None
        return whole

    async def _read(self, download: Download) -> Buffer:
        session = self._present()
        link = session.links.pop(download.digest, "") or await session.ask(download.digest)
        return await presigned.read(self._open_http(), link, download)

    async def store(self, blob: Buffer, digest: Digest) -> None:
        if self._hub is not None:
            return await self._hub.store(blob, digest)
        body = memoryview(blob).cast("B")
        if (found := await asyncio.to_thread(tensors.digest, body)) != digest:
            raise CorruptBlob(f"expected bytes with digest {digest}, those given have {found}")
        session = self._present()
        link, session.store = session.store, ""
        link = link or await session.ask(digest, size=len(body))
        await presigned.write(self._open_http(), link, body, self._times.stall)

    def _present(self) -> "_Session":
        if self._session is None:
            raise LinkLost("there is no connection to the coordinator")
        return self._session

    async def _turn_to(self, blobs: str) -> None:
        """Where blobs are, as the coordinator said: at an address of its own, or wherever it says when asked."""
        if self._hub is not None:
            await self._hub.close()
        self._hub = HubLink(blobs, self._node, self._token, ca=self._ca, times=self._times) if blobs else None

    def _open_http(self) -> aiohttp.ClientSession:
        if self._http is None:
            self._http = presigned.open_session(self._times.connect, self._times.stall, self._ca)
        return self._http


class _Session:
    """One connection to the broker, and what it takes to speak through it; over once anything breaks."""

    def __init__(
        self, address: Address, node: NodeId, times: LinkTimes, ca: Path | None, connection: AbstractConnection
    ) -> None:
        self._address, self._node, self._times, self._ca, self._connection = address, node, times, ca, connection
        self._name = f"{time.time_ns():016x}{secrets.token_hex(16)}"  # it grows with time
        self._own = ""
        self._reports_to = address.events
        self.blobs = ""
        self.links: dict[Digest, str] = {}
        self.store = ""  # where to put what comes of the newest work, once
        self._channel: AbstractChannel
        self._said = 0
        self._heard = 0
        self._early: dict[int, tuple[wire.Command, AbstractIncomingMessage]] = {}
        self._arrived: asyncio.Queue[tuple[CoordinatorMessage, AbstractIncomingMessage] | None] = asyncio.Queue()
        self._enabled: asyncio.Future[wire.Enable | wire.Joined] = asyncio.get_running_loop().create_future()
        self._asked: dict[int, asyncio.Future[wire.Answer]] = {}
        self._over: LinkLost | LinkRefused | None = None
        self._closing: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._pulse: asyncio.TimerHandle | None = None
        self._pulse_seconds = times.stall

    @classmethod
    async def open(cls, address: Address, node: NodeId, times: LinkTimes, ca: Path | None) -> "_Session":
        """Connected, with a queue of its own, and somebody listens at the other end."""
        session = cls(address, node, times, ca, await amqp.connect(address, ca))
        try:
            await session._prepare()
        except BaseException:
            await session.close(goodbye=False)
            raise
        return session

    async def _prepare(self) -> None:
        with amqp.lost_when_broken("use the broker"):
            async with asyncio.timeout(self._times.connect):
                async with self._connection.channel() as looking:
                    listened_to = await _is_listened_to(looking, self._address)
                if not listened_to:
                    raise LinkLost(f"no coordinator {self._address.uid!r} listens at {shown(self._address.url)}")
                self._channel = await amqp.open_channel(self._connection)
                own = await self._channel.declare_queue(exclusive=True, auto_delete=True)
                await own.consume(self._on_notice, no_ack=True)
        self._own = own.name
        self._connection.close_callbacks.add(self._on_closed)
        self._channel.close_callbacks.add(self._on_closed)

    async def join(self, token: str, secret: str) -> None:
        await self._publish(wire.Join(token=token, node=self._node, secret=secret))
        await self._welcome()

    async def register(self, registration: Registration) -> None:
        """Come in; `listen` comes next."""
        await self._publish(wire.Register(session=self._name, registration=registration))
        welcome = await self._welcome()
        if isinstance(welcome, wire.Joined):
            raise LinkRefused("the coordinator answered a registration as if it was a wish to join: update it")
        self._reports_to, self.blobs, self._pulse_seconds = welcome.queue, welcome.blobs, welcome.pulse
        self._feel_pulse()

    async def listen(self) -> None:
        """For commands, and say so."""
        queue = self._address.commands(self._node)
        with amqp.lost_when_broken(f"listen to {queue}"):
            async with asyncio.timeout(self._times.connect):
                listening = await self._connection.channel()
                await listening.set_qos(prefetch_count=PREFETCH)
                commands = await amqp.declare_commands(listening, queue)
            await amqp.consume(self._address, commands, self._on_command, self._ca)
        listening.close_callbacks.add(self._on_closed)
        await self._count(lambda seq: wire.Enabled(session=self._name, seq=seq, queue=queue))

    async def _welcome(self) -> "wire.Enable | wire.Joined":
        try:
            async with asyncio.timeout(self._times.stall):
                return await self._enabled
        except TimeoutError:
            raise LinkLost("the coordinator did not answer in time") from None

    async def send(self, message: NodeMessage) -> None:
        await self._count(lambda seq: wire.reported(self._name, seq, message))

    async def ask(self, digest: Digest, size: int | None = None) -> str:
        """The address to read a blob from; with its size, that to store it to."""
        answered: asyncio.Future[wire.Answer] = asyncio.get_running_loop().create_future()
        number = self._said + 1
        while number in self._asked:
            number += 1
        self._asked[number] = answered
        store, size = size is not None, size or 0
        try:
            await self._count(
                lambda seq: wire.Ask(session=self._name, seq=seq, id=number, digest=digest, store=store, size=size)
            )
            async with asyncio.timeout(self._times.stall):
                answer = await answered
        except TimeoutError:
            raise LinkLost(f"the coordinator did not say in time where blob {digest} is") from None
        finally:
            del self._asked[number]
        if answer.status >= 400:
            raise meaning(answer.status, answer.reason)
        return answer.link

    async def messages(self) -> AsyncIterator[CoordinatorMessage]:
        """A letter is acknowledged once its reader wants the next one."""
        goodbye = False
        try:
            while (arrived := await self._arrived.get()) is not None:
                message, letter = arrived
                yield message
                await amqp.acknowledge(letter)
            assert self._over is not None
            raise self._over
        except asyncio.CancelledError:
            goodbye = True  # the node stops: nobody need wait for it
            raise
        finally:
            await self.close(goodbye=goodbye)

    async def close(self, *, goodbye: bool) -> None:
        if goodbye and self._over is None and self._said:
            with contextlib.suppress(LinkLost, TimeoutError):
                async with asyncio.timeout(self._times.goodbye):
                    await self._count(lambda seq: wire.Leave(session=self._name, seq=seq))
        self._end(LinkLost("the connection to the coordinator was closed"))
        if self._closing is not None:
            await self._closing

    # -- speaking ------------------------------------------------------------------------------------------

    async def _count(self, letter: Callable[[int], wire.Counted]) -> None:
        """Say the next letter of this session, after those before it."""
        async with self._turn:
            if self._over is not None:
                raise LinkLost(str(self._over))
            body = letter(self._said + 1)
            if (size := len(wire.encode(body))) > wire.MAX_LETTER:
                raise UserError(f"a message may have {MAX_MESSAGE} bytes, with what goes around it this one has {size}")
            self._said += 1
            await self._publish(body)

    async def _publish(self, letter: wire.Letter) -> None:
        try:
            with amqp.lost_when_broken("send a message"):
                await publish(self._channel, self._reports_to, letter, self._own)
        except LinkLost as lost:
            self._end(lost)
            raise

    # -- hearing -------------------------------------------------------------------------------------------

    async def _on_notice(self, letter: AbstractIncomingMessage) -> None:
        self._feel_pulse()
        try:
            notice = wire.decode_notice(letter.body)
        except BadMessage as error:
            return self._end(LinkRefused(f"the coordinator said what this version does not understand: {error}"))
        match notice:
            case wire.Enable() | wire.Joined():
                if not self._enabled.done():
                    self._enabled.set_result(notice)
            case wire.Answer():
                if (waiting := self._asked.get(notice.id)) is not None and not waiting.done():
                    waiting.set_result(notice)
            case wire.Disable(reason=reason, fatal=fatal):
                self._end(LinkRefused(reason) if fatal else LinkLost(f"the coordinator ended the session: {reason}"))
            case wire.Pulse():
                pass

    async def _on_command(self, letter: AbstractIncomingMessage) -> None:
        try:
            command = wire.decode_command(letter.body)
        except BadMessage as error:
            await amqp.acknowledge(letter, good=False)
            return self._end(LinkRefused(f"the coordinator said what this version does not understand: {error}"))
        if command.session > self._name:  # closing gives the letter back, and the other one gets it
            return self._end(LinkRefused(f"another process has connected as {self._node}: give each a name of its own"))
        if command.session < self._name or command.seq <= self._heard or command.seq in self._early:
            await amqp.acknowledge(letter)
            return
        self._early[command.seq] = command, letter
        while (following := self._early.pop(self._heard + 1, None)) is not None:
            self._heard += 1
            command, letter = following
            if isinstance(command, wire.Train):
                self.links, self.store = {command.work.weights: command.link}, command.store
            self._arrived.put_nowait((wire.command_in(command), letter))

    async def _disconnect(self) -> None:
        with contextlib.suppress(*amqp.BROKEN):
            await self._connection.close()

    def _on_closed(self, *_: object) -> None:
        self._end(LinkLost("the connection to the broker broke"))

    def _feel_pulse(self) -> None:
        """Three pulses may fail to come."""
        if self._pulse is not None:
            self._pulse.cancel()
        if self._over is None:
            lost = LinkLost("the coordinator has no pulse")
            self._pulse = asyncio.get_running_loop().call_later(3 * self._pulse_seconds, self._end, lost)

    def _end(self, why: LinkLost | LinkRefused) -> None:
        """After the first time this does nothing. The broker gets back what was not dealt with, for who comes next."""
        if self._over is not None:
            return
        self._over = why
        self._closing = asyncio.create_task(self._disconnect())
        if self._pulse is not None:
            self._pulse.cancel()
        self._arrived.put_nowait(None)
        waiting: list[asyncio.Future[Any]] = [self._enabled, *self._asked.values()]
        for answer in waiting:
            if not answer.done():
                answer.set_exception(why)
                answer.exception()  # nobody may be waiting


async def join(address: Address, token: str, node: NodeId, secret: str, ca: Path | None = None) -> None:
    """Join through the broker, with the secret that the node will show; asking again is harmless."""
    session = await _Session.open(address, node, LinkTimes(), ca)
    try:
        await session.join(token, secret)
    finally:
        await session.close(goodbye=False)


async def _is_listened_to(channel: AbstractChannel, address: Address) -> bool:
    try:
        queue = await channel.declare_queue(address.events, passive=True)
    except amqp.NoSuchQueue:
        return False
    return bool(queue.declaration_result.consumer_count)
