"""What both sides of the broker fabric share: connections, queues, and errors in words.

Addresses are `amqp[s]://user:password@host:5671/vhost?coordinator=<uid>`; without a uid it is `main`.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import parse_qs, urlsplit, urlunsplit

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import AuthenticationError, DeliveryError, ProbableAuthenticationError
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelInvalidStateError,
    ChannelNotFoundEntity,
    InvalidFrameError,
)
from pamqp.common import FieldTable

from tutti.adapters.addresses import shown
from tutti.core.errors import UserError
from tutti.domain.events import NodeId
from tutti.ports import LinkLost, LinkRefused
from tutti.wire.broker import Letter, encode

CONNECT_SECONDS = 10.0
REMOVE_SECONDS = 20.0
AMQP_HEARTBEAT = 20
"""Seconds after which a connection without a sign of life is noticed."""

WAITING_EVENTS = 100_000
WAITING_COMMANDS = 4096
"""Letters that a queue holds; the broker refuses more."""

DELIVERIES = 5
"""How often a letter is delivered before it goes to the dead letters, or is dropped."""

Hear: TypeAlias = Callable[[AbstractIncomingMessage], Awaitable[object]]
DEAD_LETTERS = 10_000
UNUSED_MILLISECONDS = 7 * 24 * 3600 * 1000
NoSuchQueue = ChannelNotFoundEntity
BROKEN = (aio_pika.exceptions.AMQPError, ChannelInvalidStateError, OSError, TimeoutError, RuntimeError)
"""What aio-pika raises when connection or channel are gone."""


@dataclass(frozen=True, slots=True)
class Address:
    """A broker, and which coordinator is meant there."""

    url: str
    uid: str

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Raises UserError."""
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        uid = query.pop("coordinator", ["main"])[-1]
        if parts.scheme not in ("amqp", "amqps") or not parts.hostname or query or not uid.replace("-", "").isalnum():
            raise UserError(
                f"expected a broker's address such as amqps://user:password@host/vhost?coordinator=main, "
                f"came {shown(url)!r}"
            )
        return cls(urlunsplit((parts.scheme, parts.netloc, parts.path, "", "")), uid)

    @property
    def events(self) -> str:
        return f"coordinator.{self.uid}.events"

    @property
    def dead(self) -> str:
        return f"coordinator.{self.uid}.dead"

    def commands(self, node: NodeId) -> str:
        """A node's queue."""
        return f"peer.{node if self.uid == 'main' else f'{node}@{self.uid}'}.command"


async def connect(address: Address, ca: Path | None = None) -> AbstractConnection:
    """Raises LinkRefused for what only a person can mend, LinkLost if the broker does not answer."""
    where = f"the broker {shown(address.url)}"
    context = _trust(ca) if address.url.startswith("amqps:") else None
    try:
        return await aio_pika.connect(
            address.url, timeout=CONNECT_SECONDS, ssl_context=context, heartbeat=AMQP_HEARTBEAT
        )
    except (AuthenticationError, ProbableAuthenticationError) as error:
        raise LinkRefused(f"{where} does not know this user and password: {_said(error)}") from None
    except InvalidFrameError as error:  # it closes the connection instead of opening the virtual host
        raise LinkRefused(f"{where} has no such virtual host, or not for this user: {_said(error)}") from None
    except ssl.SSLCertVerificationError as error:
        raise LinkRefused(f"the certificate of {where} is not trusted ({error.verify_message})") from None
    except BROKEN as error:
        if isinstance(error.__cause__, ssl.SSLCertVerificationError):
            raise LinkRefused(f"the certificate of {where} is not trusted ({error.__cause__.verify_message})") from None
        raise LinkLost(f"{where} does not answer: {_said(error)}") from error


async def open_channel(connection: AbstractConnection) -> AbstractChannel:
    """One that confirms what is published, and raises for what cannot be delivered."""
    return await connection.channel(publisher_confirms=True, on_return_raises=True)


async def declare_events(channel: AbstractChannel, address: Address) -> AbstractQueue:
    """The coordinator's queue, and the one for what cannot be understood."""
    await channel.declare_queue(
        address.dead, durable=True, arguments={"x-queue-type": "quorum", "x-max-length": DEAD_LETTERS}
    )
    arguments = _arguments(WAITING_EVENTS) | {
        "x-single-active-consumer": True,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": address.dead,
    }
    return await channel.declare_queue(address.events, durable=True, arguments=arguments)


async def declare_commands(channel: AbstractChannel, queue: str) -> AbstractQueue:
    """A node's queue."""
    arguments = _arguments(WAITING_COMMANDS) | {"x-expires": UNUSED_MILLISECONDS}
    return await channel.declare_queue(queue, durable=True, arguments=arguments)


def _arguments(longest: int) -> FieldTable:
    return {
        "x-queue-type": "quorum",
        "x-max-length": longest,
        "x-overflow": "reject-publish",
        "x-delivery-limit": DELIVERIES,
    }


class QueueLost(LinkLost):
    """The broker knows the queue, and nothing of what was in it; it was removed, to be declared anew."""


async def consume(address: Address, queue: AbstractQueue, hear: Hear, ca: Path | None = None) -> None:
    """Listen to a quorum queue; raises QueueLost for one that does not answer.

    RabbitMQ (3.10) that is killed within a second or so of a queue's first declaration remembers its name and not
    where it lies: it takes declarations, and hangs on everything else for ever. Removing it takes 5 s.
    """
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await queue.consume(hear)
    except TimeoutError:
        async with await connect(address, ca) as another:  # the first one is closed once the broker gives up too
            await (await another.channel()).queue_delete(queue.name, timeout=REMOVE_SECONDS)
        raise QueueLost(f"the broker had lost {queue.name}, which is made anew") from None


async def publish(channel: AbstractChannel, queue: str, letter: Letter, reply_to: str | None = None) -> None:
    """Returns once the broker has it, for good where the queue lasts. Raises Undeliverable, or one of BROKEN."""
    message = aio_pika.Message(
        encode(letter),
        content_type="application/json",
        type=type(letter).__struct_config__.tag,  # type: ignore[arg-type]
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        reply_to=reply_to,
    )
    try:
        with _broken_when_closed():
            await channel.default_exchange.publish(message, queue, mandatory=True, timeout=CONNECT_SECONDS)
    except DeliveryError as error:
        raise Undeliverable(f"the broker does not take a message for {queue}: it is full, or gone") from error


async def acknowledge(letter: AbstractIncomingMessage, *, good: bool = True) -> None:
    """Take a letter from its queue; one that is no good goes to the dead letters.

    A connection that is gone has given the letter back: it comes again, and its number is known.
    """
    with suppress(*BROKEN), _broken_when_closed():
        await (letter.ack() if good else letter.reject(requeue=False))


@contextmanager
def _broken_when_closed() -> Iterator[None]:
    """With a bare Exception aiormq ends what waits while its channel is closed here."""
    try:
        yield
    except Exception as error:
        if type(error) is Exception:
            raise ConnectionError("the channel was closed meanwhile") from error
        raise


class Undeliverable(LinkLost):
    """The broker is well, and the queue is full or not there."""


@contextmanager
def lost_when_broken(what: str) -> Iterator[None]:
    """Errors of the connection as LinkLost; what this user may not do as LinkRefused."""
    try:
        yield
    except ChannelAccessRefused as error:
        raise LinkRefused(f"cannot {what}: {_said(error)}") from None
    except BROKEN as error:
        raise LinkLost(f"cannot {what}: {_said(error)}") from error


def _trust(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise UserError(f"expected certificates in PEM format in {ca}: {error}") from None


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
