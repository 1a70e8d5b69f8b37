"""What the suite cannot see of the broker fabric: what comes twice or late, a broker that dies, strangers, mistakes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import aio_pika
import pytest
from test_broker_suite import running

from support.certificates import certificate
from support.rabbit import rabbit
from support.services import RABBITMQ, coordinator_uid
from tutti.adapters.fabrics import amqp, broker_link
from tutti.adapters.fabrics.amqp import Address
from tutti.adapters.fabrics.broker import BrokerFabric, BrokerLimits
from tutti.adapters.fabrics.broker_link import BrokerLink
from tutti.core.errors import Forbidden, UserError
from tutti.ports import Arrived, Left, LinkLost, LinkRefused, Said
from tutti.testing.fabrics import arrived, authenticate, news, progress, registration, soon, token_of, work
from tutti.wire import broker as wire
from tutti.wire.messages import Registered, Submission

SESSION = "s" * 32
OLDER = "0" * 32


@pytest.fixture
async def address() -> AsyncIterator[Address]:
    async with coordinator_uid() as address:
        yield address


class Speaker:
    """A node without any of our code: it writes letters and reads queues."""

    def __init__(self, address: Address, channel: aio_pika.abc.AbstractChannel) -> None:
        self.address, self.channel = address, channel
        self.own: aio_pika.abc.AbstractQueue
        self.commands: aio_pika.abc.AbstractQueue

    async def say(self, *letters: wire.Letter | bytes) -> None:
        for letter in letters:
            body = letter if isinstance(letter, bytes) else wire.encode(letter)
            message = aio_pika.Message(body, reply_to=self.own.name)
            await self.channel.default_exchange.publish(message, self.address.events)

    async def hear(self, queue: aio_pika.abc.AbstractQueue) -> bytes:
        async with asyncio.timeout(20), queue.iterator() as letters:
            async for letter in letters:
                await letter.ack()
                if letter.type != "PULSE":
                    return letter.body
        raise AssertionError

    async def come_in(self, node: str = "n1") -> None:
        queue = self.address.commands(node)
        self.commands = await amqp.declare_commands(self.channel, queue)
        await self.say(wire.Register(session=SESSION, registration=registration(node)))
        assert isinstance(wire.decode_notice(await self.hear(self.own)), wire.Enable)
        await self.say(wire.Enabled(session=SESSION, seq=1, queue=queue))


@asynccontextmanager
async def speaking(address: Address) -> AsyncIterator[Speaker]:
    connection = await amqp.connect(address)
    async with connection, connection.channel() as channel:
        speaker = Speaker(address, channel)
        speaker.own = await channel.declare_queue(exclusive=True)
        yield speaker


def beat(seq: int, session: str = SESSION) -> wire.Beat:
    return wire.Beat(session=session, seq=seq, progress=progress(seq))


async def test_what_comes_twice_or_late_is_heard_once_and_in_order(address):
    async with running(BrokerFabric(address, authenticate)) as fabric, speaking(address) as node:
        events = fabric.events()
        await node.come_in()
        assert await soon(events) == arrived("n1")
        await node.say(beat(4), beat(3), beat(4), beat(2), beat(2), beat(3), beat(6), beat(5))
        assert [await soon(events) for _ in range(5)] == [Said("n1", progress(seq)) for seq in range(2, 7)]
        await node.say(wire.Leave(session=SESSION, seq=7), wire.Leave(session=SESSION, seq=7))
        assert await soon(events) == Left("n1", "the node closed the connection", took_leave=True)


async def test_a_gap_that_is_never_filled_ends_the_session(address):
    limits = BrokerLimits(early=8)
    async with running(BrokerFabric(address, authenticate, limits=limits)) as fabric, speaking(address) as node:
        events = fabric.events()
        await node.come_in()
        await soon(events)
        await node.say(*(beat(seq) for seq in range(3, 13)))
        assert await soon(events) == Left("n1", "letters of this session were lost")
        assert isinstance(wire.decode_notice(await node.hear(node.own)), wire.Disable)


async def test_commands_are_as_documented(address):
    async with running(BrokerFabric(address, authenticate)) as fabric, speaking(address) as node:
        events = fabric.events()
        await node.come_in()
        await soon(events)
        first = wire.decode_command(await node.hear(node.commands))
        assert isinstance(wire.command_in(first), Registered)
        assert fabric.send("n1", work("a" * 64))
        train = wire.decode_command(await node.hear(node.commands))
        assert (type(train), train.session, train.seq, train.version) == (wire.Train, SESSION, 2, wire.VERSION)
        done = Submission(job="toy-1", round=1, attempt=0, metrics={"train_accuracy": 0.5})
        await node.say(wire.Done(session=SESSION, seq=2, submission=done))
        assert await soon(events) == Said("n1", done)


async def test_a_node_hears_commands_once_and_in_order(address):
    async with running(BrokerFabric(address, authenticate)) as fabric, speaking(address) as rival:
        events, link = fabric.events(), BrokerLink(address, "n1", token_of("n1"))
        messages = await link.connect(registration("n1"))
        await soon(events)
        await soon(messages)
        (session,) = fabric._sessions
        for seq in (3, 2, 2, 3):
            letter = wire.commanded(session, seq, news(seq))
            await rival.channel.default_exchange.publish(aio_pika.Message(wire.encode(letter)), address.commands("n1"))
        stranger = wire.commanded(OLDER, 4, news(99))
        await rival.channel.default_exchange.publish(aio_pika.Message(wire.encode(stranger)), address.commands("n1"))
        assert [await soon(messages) for _ in range(2)] == [news(2), news(3)]
        await link.close()


@pytest.mark.parametrize(
    "body",
    [b"\xff", b"{}", b'{"type":"DONE","session":"x","seq":1}', b'{"type":"LEAVE","version":2,"session":"' + b"s" * 32],
)
async def test_letters_that_are_none_go_to_the_dead_letters(address, body):
    async with running(BrokerFabric(address, authenticate)) as fabric, speaking(address) as node:
        await node.say(body, b"x" * (wire.MAX_LETTER + 1))
        await node.come_in()
        assert isinstance(await soon(fabric.events()), Arrived)
        dead = await node.channel.get_queue(address.dead)
        assert await node.hear(dead) == body


async def test_a_stranger_who_names_no_session_is_told_so(address):
    async with running(BrokerFabric(address, authenticate)), speaking(address) as node:
        await node.say(beat(1, session="t" * 32))
        notice = wire.decode_notice(await node.hear(node.own))
        assert isinstance(notice, wire.Disable)
        assert "register again" in notice.reason


async def test_a_node_whose_connection_breaks_is_noticed_by_its_pulse(address):
    limits = BrokerLimits(pulse=0.1)
    async with running(BrokerFabric(address, authenticate, limits=limits)) as fabric:
        events = fabric.events()
        async with speaking(address) as node:
            await node.come_in()
            await soon(events)
        assert await soon(events) == Left("n1", "the connection was lost")
        assert fabric.send("n1", news(1)) is False


async def test_a_coordinator_that_dies_is_noticed_and_another_takes_over(address):
    link = BrokerLink(address, "n1", token_of("n1"))
    async with running(BrokerFabric(address, authenticate, limits=BrokerLimits(pulse=0.1))) as fabric:
        messages = await link.connect(registration("n1"))
        await soon(fabric.events())
        assert isinstance(await soon(messages), Registered)
    with pytest.raises(LinkLost, match="no pulse"):
        await soon(messages)
    with pytest.raises(LinkLost, match=r"no coordinator 'test-.*' listens"):
        await link.connect(registration("n1"))
    async with running(BrokerFabric(address, authenticate)) as again:
        assert isinstance(await soon(await link.connect(registration("n1"))), Registered)
        assert isinstance(await soon(again.events()), Arrived)
        await link.close()


async def test_two_coordinators_of_one_name(address):
    async with running(BrokerFabric(address, authenticate)):
        with pytest.raises(LinkRefused, match="another coordinator listens"):
            async with BrokerFabric(address, authenticate):
                pass


async def test_joining_by_the_broker(address):
    asked = []

    async def admit(token: str, node: str, secret: str) -> None:
        asked.append((token, node, secret))
        if token != "good":
            raise Forbidden("this link is used up")

    async with running(BrokerFabric(address, authenticate, admit=admit)):
        await broker_link.join(address, "good", "n1", "s" * 43)
        with pytest.raises(LinkRefused, match="used up"):
            await broker_link.join(address, "bad", "n1", "s" * 43)
    assert asked == [("good", "n1", "s" * 43), ("bad", "n1", "s" * 43)]


@pytest.mark.parametrize(
    ("url", "error", "says"),
    [
        ("amqp://guest:wrong@127.0.0.1:5672/", LinkRefused, "user and password"),
        ("amqp://guest:guest@127.0.0.1:5672/nowhere", LinkRefused, "virtual host"),
        ("amqp://guest:secret@127.0.0.1:1/", LinkLost, "does not answer"),
    ],
)
async def test_brokers_that_cannot_be_used(address, url, error, says):
    with pytest.raises(error, match=says) as raised:
        async with BrokerFabric(Address.parse(url), authenticate):
            pass
    assert "secret" not in str(raised.value)
    with pytest.raises(error, match=says):
        await BrokerLink(Address.parse(url), "n1", token_of("n1")).connect(registration("n1"))


@pytest.mark.parametrize("url", ["amqp://", "http://host", "amqp://host?coordinater=x", "amqp://host?coordinator=a.b"])
def test_addresses_that_are_none(url):
    with pytest.raises(UserError, match="expected a broker's address"):
        Address.parse(url)


def test_addresses():
    assert Address.parse("amqp://me:pw@host/v?coordinator=clinic#token") == Address("amqp://me:pw@host/v", "clinic")
    assert Address.parse(RABBITMQ).events == "coordinator.main.events"


async def test_a_broker_that_is_killed_has_lost_nothing_that_was_confirmed(tmp_path, monkeypatch):
    """The fabric keeps its sessions; a node registers again. What waits in the queue is heard afterwards.

    RabbitMQ 3.10 forgets where the queue lies that was declared just before: the first time that is the coordinator's,
    the second time the node's.
    """
    monkeypatch.setattr(amqp, "CONNECT_SECONDS", 3.0)
    monkeypatch.setattr("tutti.adapters.fabrics.broker.RECONNECT", (0.2, 1.0))
    trusted, key = certificate(tmp_path)
    with rabbit(tmp_path) as server:
        address = Address.parse(server.url)
        async with running(BrokerFabric(address, authenticate)) as fabric:
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            events, link = fabric.events(), BrokerLink(address, "n1", token_of("n1"))
            messages = await until_connected(link)
            assert isinstance(await soon(events), Arrived)
            await soon(messages)
            await link.send(progress(1))
            await link.send(progress(2))
            assert await soon(events) == Said("n1", progress(1))  # not acknowledged: that is asking for the next one
            await asyncio.to_thread(server.kill)
            with pytest.raises(LinkLost):
                await soon(messages)
            assert fabric.send("n1", news(1))
            server.settings = (
                f"listeners.ssl.1 = 127.0.0.1:{server.tls_port}\n"
                f"ssl_options.certfile = {trusted}\nssl_options.keyfile = {key}\n"
            )
            await asyncio.to_thread(server.start)
            assert await soon(events) == Said("n1", progress(2))
            secure = replace(address, url=f"amqps://guest:guest@127.0.0.1:{server.tls_port}/")
            with pytest.raises(LinkRefused, match="not trusted"):
                await BrokerLink(secure, "n1", token_of("n1")).connect(registration("n1"))
            again = BrokerLink(secure, "n1", token_of("n1"), ca=trusted)
            messages = await until_connected(again)
            assert isinstance(await soon(messages), Registered)
            heard = [await soon(events) for _ in range(2)]
            assert [type(event) for event in heard] == [Left, Arrived]
            await again.close()


async def until_connected(link: BrokerLink):
    """The coordinator has its own time to find the broker again."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await link.connect(registration("n1"))
            except LinkLost:
                await asyncio.sleep(0.2)
