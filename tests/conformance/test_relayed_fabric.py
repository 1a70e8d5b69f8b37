"""Nodes at another replica, as the owner's fabric: over a post in this process, and over Redis."""

import asyncio
import itertools
import secrets
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
from msgspec.structs import replace

from support.services import redis_url
from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.adapters.fabrics.local import LocalFabric, LocalLink
from tutti.adapters.fabrics.places import TURNS, Loser, Places
from tutti.adapters.fabrics.relayed import RelayedFabric
from tutti.adapters.posts.memory import MemoryPost
from tutti.adapters.posts.redis import RedisPost
from tutti.core.errors import Forbidden
from tutti.domain.spec import DataSchema
from tutti.ports import Left, LinkLost, LinkRefused, Said
from tutti.ports.log import Owner
from tutti.services.members import fingerprint
from tutti.services.outbox import MOST_LETTERS
from tutti.services.relay import Relay
from tutti.testing.fabrics import (
    DEADLINE,
    FabricSuite,
    Setup,
    arrived,
    news,
    progress,
    registration,
    soon,
    token_of,
    work,
)
from tutti.wire.messages import Registered, encode


class Door:
    """Knows everybody who shows `token_of` itself."""

    def __init__(self):
        self.turned_away = []

    def check_secret(self, node, secret):
        if secret != fingerprint(token_of(node)):
            raise Forbidden(f"{node} is not known by this token")

    def authenticate(self, node, shown):
        raise Forbidden("no proofs here")

    def is_member(self, node):
        return True

    async def turn_away(self, node, reason):
        self.turned_away.append((node, reason))


def _enter(relays, which, node, shown):
    return relays[which].authenticate(node, shown)


@asynccontextmanager
async def relayed(tmp_path, post, relays=1):
    """An owner, and replicas that work for it, each with nodes of its own."""
    name = secrets.token_hex(8)
    door = Door()
    owned = RelayedFabric(name, post, lambda: door)
    blobs = DirectoryBlobs(tmp_path / "blobs")
    fronts = []
    for _ in range(relays):
        front = LocalFabric(partial(_enter, fronts, len(fronts)), blobs)
        relay = Relay(secrets.token_hex(8), front, post)
        relay.fabric = front
        fronts.append(relay)
        relay.follow(Owner(1, name, ""))
    works = [asyncio.ensure_future(owned.run()), *(asyncio.ensure_future(relay.run()) for relay in fronts)]
    try:
        yield owned, fronts, blobs
    finally:
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)
        await post.close()


class TestOverMemory(FabricSuite):
    flood = 14_000

    @pytest.fixture
    async def setup(self, tmp_path):
        async with relayed(tmp_path, MemoryPost(room=8)) as (owned, (relay,), blobs):
            yield Setup(owned, blobs, lambda node, token: LocalLink(relay.fabric))


class TestOverRedis(FabricSuite):
    flood = 8000

    @pytest.fixture
    async def setup(self, tmp_path):
        async with relayed(tmp_path, RedisPost(await redis_url())) as (owned, (relay,), blobs):
            yield Setup(owned, blobs, lambda node, token: LocalLink(relay.fabric))


@pytest.fixture
async def place(tmp_path):
    async with relayed(tmp_path, MemoryPost(), relays=2) as (owned, relays, blobs):
        yield Setup(owned, blobs, lambda node, token: LocalLink(relays[0].fabric)), relays, owned


async def test_a_node_that_moves_to_another_relay(place):
    """The first connection may be half open for long: it goes once the node is elsewhere."""
    setup, (_, second), owned = place
    old = await setup.join("n1")
    link = LocalLink(second.fabric)
    messages = await link.connect(registration("n1"))
    assert await soon(setup.events) == Left("n1", "the node has connected elsewhere")
    assert await soon(setup.events) == arrived("n1")
    await old.loses_its_connection()
    assert isinstance(await soon(messages), Registered)
    assert owned.send("n1", news(1))
    assert await soon(messages) == news(1)
    assert sorted(owned.relays.values()) == [0, 1]


async def test_another_owner_hears_of_all_nodes_and_they_stay_connected(place, tmp_path):
    setup, relays, _ = place
    node = await setup.join("n1")
    await node.link.send(progress(1))
    name, door = secrets.token_hex(8), Door()
    successor = RelayedFabric(name, relays[0]._post, lambda: door)
    work = asyncio.ensure_future(successor.run())
    for relay in relays:
        relay.follow(Owner(2, name, ""))
    events = successor.events()
    came = await soon(events)
    assert (came.node, came.registration) == ("n1", registration("n1", ""))
    assert came.age > 0
    assert successor.send("n1", news(2))
    assert await soon(node.messages) == news(2)
    await node.link.send(progress(2))
    assert await soon(events) == Said("n1", progress(2))
    work.cancel()


async def say(fabric, node, message):
    fabric.send(node, message)


class Heard:
    """All that an iterator has given so far."""

    def __init__(self, items):
        self.items = []
        self.more = asyncio.Event()
        self.task = asyncio.ensure_future(self.collect(items))

    async def collect(self, items):
        async for item in items:
            self.items.append(item)
            self.more.set()

    async def until(self, item, again):
        """Do something again and again, until it has been given this."""
        async with asyncio.timeout(DEADLINE):
            while item not in self.items:
                self.more.clear()
                await again()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.more.wait(), 0.1)


@pytest.mark.parametrize("lost", range(1, 12))
async def test_whichever_letter_is_lost_the_node_is_heard_again(tmp_path, lost):
    """The letter of this number is lost: then a session ends, and the next one tells of the node anew."""
    sent = itertools.count(1)
    post = MemoryPost(lambda: 0 if next(sent) == lost else 1)
    async with relayed(tmp_path, post) as (owned, (relay,), _):
        link = LocalLink(relay.fabric)
        messages = await link.connect(registration("n1"))
        heard, told = Heard(owned.events()), Heard(messages)
        await heard.until(Said("n1", progress(7)), lambda: link.send(progress(7)))
        await told.until(news(7), lambda: say(owned, "n1", news(7)))
        heard.task.cancel()
        told.task.cancel()


async def test_letters_that_come_twice_are_heard_once(tmp_path):
    async with relayed(tmp_path, MemoryPost(lambda: 2)) as (owned, (relay,), blobs):
        setup = Setup(owned, blobs, lambda node, token: LocalLink(relay.fabric))
        node = await setup.join("n1")
        for number in range(5):
            await node.link.send(progress(number))
            assert owned.send("n1", news(number))
        assert [await soon(setup.events) for _ in range(5)] == [Said("n1", progress(i)) for i in range(5)]
        assert [await soon(node.messages) for _ in range(5)] == [news(i) for i in range(5)]


async def test_a_relay_that_is_silent_has_no_nodes(tmp_path):
    async with relayed(tmp_path, MemoryPost()) as (owned, (relay,), blobs):
        setup = Setup(owned, blobs, lambda node, token: LocalLink(relay.fabric))
        await setup.join("n1")
        relay._post = MemoryPost()  # what it says from now on, nobody hears
        relay._session.outbox._post = relay._post
        left = await soon(setup.events)
        assert (left.node, "nothing is heard: it is silent" in left.reason) == ("n1", True)
        assert owned.send("n1", news(1)) is False


async def test_a_post_that_goes_and_comes_back(tmp_path):
    post = MemoryPost()
    async with relayed(tmp_path, post) as (owned, (relay,), blobs):
        setup = Setup(owned, blobs, lambda node, token: LocalLink(relay.fabric))
        node = await setup.join("n1")
        post.away = True
        assert isinstance(await soon(setup.events), Left)
        with pytest.raises(LinkLost):  # it is sent away, to try another replica
            await soon(node.messages)
        assert not relay.linked
        post.away = False
        messages = await node.link.connect(registration("n1"))
        assert isinstance(await soon(messages), Registered)
        assert await soon(setup.events) == arrived("n1")


async def test_a_wrong_secret_is_recorded_by_the_owner(tmp_path):
    async with relayed(tmp_path, MemoryPost()) as (owned, (relay,), _):
        with pytest.raises(LinkRefused, match="not known by this token"):
            await LocalLink(relay.fabric).connect(registration("n1", "stolen"))
        assert owned._door().turned_away == [("n1", "n1 is not known by this token")]


async def test_a_key_is_no_secret(tmp_path):
    """Else whoever knows a browser's public key, of which the register has the hash, could come in as it."""
    async with relayed(tmp_path, MemoryPost()) as (_, (relay,), _):
        key = f"secp256k1:{'ab' * 64}"
        for shown in (key, f"{key}:{'c' * 16}:1:{'d' * 128}"):
            with pytest.raises(LinkRefused, match="no proofs here"):
                await LocalLink(relay.fabric).connect(registration("n1", shown))


async def test_an_older_connection_never_replaces_a_newer_one():
    places = Places()
    assert places.arrived("n1", "a") is None
    assert places.arrived("n1", "b", age=60.0) == Loser("b", fatal=False)
    assert places.get("n1") == "a"
    assert places.arrived("n1", "b") == Loser("a", fatal=False)
    assert (places.left("n1", "a"), places.left("n1", "b"), places.get("n1")) == (False, True, None)


async def test_two_processes_with_one_name_do_not_take_turns_for_ever():
    places = Places()
    losers = [places.arrived("n1", where) for where in "ab" * TURNS]
    assert [loser.fatal for loser in losers[1 : TURNS + 1]] == [False] * (TURNS - 1) + [True]
    assert "give each node a name of its own" in losers[-1].reason("n1")


class Weighed(MemoryPost):
    """Knows how many bytes were sent."""

    total = 0

    async def send(self, to, letter):
        self.total += len(letter)
        await super().send(to, letter)


async def test_the_columns_of_a_wide_table_travel_once(tmp_path):
    """A thousand of them make a message of 40 KB, which each node is told."""
    names = tuple(f"gene_expression_{column:05d}" for column in range(1000))
    data = DataSchema("regression", (1000,), 1, names, mean=(0.125,) * 1000, deviation=(1.0,) * 1000)
    post = Weighed()
    async with relayed(tmp_path, post) as (owned, (relay,), blobs):
        setup = Setup(owned, blobs, lambda node, token: LocalLink(relay.fabric))
        gone = await setup.join("n0")
        nodes = [await setup.join(f"n{number}") for number in range(1, 50)]
        relay.fabric.disconnect("n0", "it goes as it is told")
        start = replace(work("a" * 64), data=data)
        assert owned.send("n0", start)  # what comes with it the others need too
        for number in range(1, 50):
            assert owned.send(f"n{number}", start)
        for node in nodes:
            assert await soon(node.messages) == start
        await gone.loses_its_connection()
    assert post.total < 5 * len(encode(start))


async def test_what_is_said_at_once_ends_no_session(place):
    """As when a round of thousands opens: more letters than there is room for."""
    setup, _, owned = place
    nodes = [await setup.join(f"n{number}") for number in range(90)]
    each = MOST_LETTERS // len(nodes) + 10
    for round in range(each):
        for number in range(len(nodes)):
            assert owned.send(f"n{number}", news(round))
    for node in nodes:
        for round in range(each):
            assert await soon(node.messages) == news(round)
    assert sum(owned.relays.values()) == len(nodes)
