"""What every pair of Fabric and Link must do. Inherit, and say how to make the coordinator's side and links to it
(FabricSuite, if nodes show no tokens):

    class TestMyFabric(TokenSuite):
        @pytest.fixture
        async def setup(self, tmp_path: Path) -> AsyncIterator[Setup]:
            blobs = DirectoryBlobs(tmp_path / "blobs")
            fabric = MyFabric(authenticate, blobs)
            async with serve(fabric) as address:
                yield Setup(fabric, blobs, lambda node, token: MyLink(address, node, token))

`authenticate` is the one of this module. Needs pytest-asyncio in its auto mode.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
from msgspec.structs import replace

from tutti.core.errors import CorruptBlob, Forbidden, NotFound, TuttiError
from tutti.core.registry import Choice
from tutti.domain.events import Digest, NodeId
from tutti.domain.nodes import Capabilities, DataSummary
from tutti.domain.spec import DataSchema, Training
from tutti.ports import Arrived, BlobStore, Fabric, FabricEvent, Left, Link, LinkLost, LinkRefused, Said
from tutti.testing.blobs import digest_of, pattern
from tutti.wire.messages import (
    PROTOCOL,
    Computed,
    CoordinatorMessage,
    GlobalWeights,
    Progress,
    Registered,
    Registration,
    Start,
    Submission,
)

DEADLINE = 30.0
"""Seconds after which something that should happen at once is taken for broken."""

_T = TypeVar("_T")


def token_of(node: NodeId) -> str:
    return f"token of {node}"


def authenticate(node: NodeId, token: str) -> None:
    """Every node is welcome that shows `token_of` itself."""
    if token != token_of(node):
        raise Forbidden(f"{node} is not known by this token")


def registration(node: NodeId, token: str | None = None, *, protocol: int = PROTOCOL) -> Registration:
    return Registration(
        protocol=protocol,
        node=node,
        token=token_of(node) if token is None else token,
        capabilities=Capabilities(cpus=2, memory=2**33),
        data=DataSummary("toy", DataSchema("classification", (4,), 2), 100),
    )


def arrived(node: NodeId) -> Arrived:
    """What the coordinator hears of it: not its token."""
    return Arrived(node, registration(node, ""))


def progress(number: int) -> Progress:
    """Messages of a node that can be told apart."""
    return Progress(job="toy-1", round=number, attempt=0, done=0.5, loss=0.25)


def news(number: int) -> GlobalWeights:
    """Messages of a coordinator that can be told apart."""
    return GlobalWeights(job="toy-1", round=number, weights="a" * 64, metrics={"loss": 0.25})


def work(weights: Digest) -> Start:
    return Start(
        job="toy-1",
        name="toy",
        round=1,
        attempt=0,
        rounds=1,
        task="train",
        model=Choice("linear"),
        data=DataSchema("classification", (4,), 2),
        weights=weights,
        seed=0,
        cohort=1,
        training=Training(),
    )


async def soon(items: AsyncIterator[_T]) -> _T:
    """The next item, which must not take long."""
    async with asyncio.timeout(DEADLINE):
        return await anext(items)


@dataclass
class Setup:
    """A fabric, the coordinator's blobs, and a way to make links by the node's name and token.

    `damage` changes the bytes that are stored under a digest, where writing to the store's file does not.
    """

    fabric: Fabric
    blobs: BlobStore
    make_link: Callable[[NodeId, str], Link]
    damage: Callable[[Digest, bytes], Awaitable[None]] | None = None
    events: AsyncIterator[FabricEvent] = field(init=False)

    def __post_init__(self) -> None:
        self.events = self.fabric.events()

    async def join(self, node: NodeId) -> "Joined":
        """A node that has connected; its arrival was heard."""
        link = self.make_link(node, token_of(node))
        messages = await link.connect(registration(node))
        assert isinstance(await soon(messages), Registered)
        assert await soon(self.events) == arrived(node)
        return Joined(link, messages)


@dataclass
class Joined:
    link: Link
    messages: AsyncIterator[CoordinatorMessage]

    async def loses_its_connection(self) -> None:
        with pytest.raises(LinkLost):
            await soon(self.messages)
        with pytest.raises(LinkLost):
            await self.link.send(progress(0))


class FabricSuite:
    flood = 6000
    """Messages of a node that come faster than the coordinator takes them: more than any queue on the way holds."""

    @pytest.fixture
    def setup(self, tmp_path: Path) -> Setup:
        raise NotImplementedError("yield a Setup without nodes")

    # -- coming and going ----------------------------------------------------------------------------------

    async def test_a_node_arrives(self, setup: Setup) -> None:
        messages = await setup.make_link("n1", token_of("n1")).connect(registration("n1"))
        welcome = await soon(messages)
        assert isinstance(welcome, Registered)
        assert (welcome.node, welcome.protocol) == ("n1", PROTOCOL)
        assert await soon(setup.events) == arrived("n1")

    async def test_another_protocol_is_refused(self, setup: Setup) -> None:
        with pytest.raises(LinkRefused, match=f"protocol {PROTOCOL}.*{PROTOCOL + 1}"):
            await setup.make_link("n1", token_of("n1")).connect(registration("n1", protocol=PROTOCOL + 1))
        await setup.join("n2")

    async def test_without_a_connection_nothing_is_sent(self, setup: Setup) -> None:
        with pytest.raises(LinkLost):
            await setup.make_link("n1", token_of("n1")).send(progress(1))
        assert setup.fabric.send("n1", news(1)) is False
        setup.fabric.disconnect("n1", "nobody is there")
        await setup.join("n2")

    async def test_the_coordinator_disconnects_a_node(self, setup: Setup) -> None:
        node = await setup.join("n1")
        setup.fabric.disconnect("n1", "go away")
        assert setup.fabric.send("n1", news(1)) is False
        assert await soon(setup.events) == Left("n1", "go away")
        await node.loses_its_connection()

    async def test_a_node_comes_back(self, setup: Setup) -> None:
        node = await setup.join("n1")
        for number in range(3):
            setup.fabric.disconnect("n1", "a fault")
            assert isinstance(await soon(setup.events), Left)
            await node.loses_its_connection()
            node.messages = await node.link.connect(registration("n1"))
            assert isinstance(await soon(node.messages), Registered)
            assert isinstance(await soon(setup.events), Arrived)
            assert setup.fabric.send("n1", news(number))
            assert await soon(node.messages) == news(number)

    async def test_a_second_connection_replaces_the_first(self, setup: Setup) -> None:
        old = await setup.join("n1")
        link = setup.make_link("n1", token_of("n1"))
        messages = await link.connect(registration("n1"))
        left = await soon(setup.events)
        assert isinstance(left, Left)
        assert (left.node, left.took_leave) == ("n1", False)
        assert await soon(setup.events) == arrived("n1")
        assert isinstance(await soon(messages), Registered)
        with pytest.raises(LinkRefused, match="another process"):  # else the two would take turns for ever
            await soon(old.messages)
        with pytest.raises(LinkLost):
            await old.link.send(progress(0))
        assert setup.fabric.send("n1", news(1))
        assert await soon(messages) == news(1)
        await link.send(progress(1))
        assert await soon(setup.events) == Said("n1", progress(1))

    async def test_a_node_that_stops_listening_leaves(self, setup: Setup) -> None:
        node = await setup.join("n1")
        listening = asyncio.ensure_future(anext(node.messages))
        await asyncio.sleep(0)
        listening.cancel()
        await asyncio.wait([listening])
        left = await soon(setup.events)
        assert isinstance(left, Left)
        assert setup.fabric.send("n1", news(1)) is False

    # -- messages ------------------------------------------------------------------------------------------

    async def test_messages_to_a_node_keep_their_order(self, setup: Setup) -> None:
        node = await setup.join("n1")
        for number in range(100):
            assert setup.fabric.send("n1", news(number)) is True
        assert [await soon(node.messages) for _ in range(100)] == [news(number) for number in range(100)]

    async def test_messages_of_a_node_keep_their_order(self, setup: Setup) -> None:
        node = await setup.join("n1")
        for number in range(50):
            await node.link.send(progress(number))
        assert [await soon(setup.events) for _ in range(50)] == [Said("n1", progress(i)) for i in range(50)]

    async def test_messages_reach_the_node_they_are_for(self, setup: Setup) -> None:
        nodes = {f"n{i}": await setup.join(f"n{i}") for i in range(20)}
        for i, (name, node) in enumerate(nodes.items()):
            assert setup.fabric.send(name, news(i))
            await node.link.send(progress(i))
        assert [await soon(node.messages) for node in nodes.values()] == [news(i) for i in range(20)]
        heard = [await soon(setup.events) for _ in range(20)]
        assert sorted(heard, key=lambda event: int(event.node[1:])) == [Said(f"n{i}", progress(i)) for i in range(20)]

    async def test_a_node_that_does_not_read_is_disconnected(self, setup: Setup) -> None:
        silent, other = await setup.join("n1"), await setup.join("n2")
        assert not all(setup.fabric.send("n1", news(number)) for number in range(100_000))
        left = await soon(setup.events)
        assert isinstance(left, Left)
        assert left.node == "n1"
        assert setup.fabric.send("n1", news(0)) is False
        assert setup.fabric.send("n2", news(1)) is True
        assert await soon(other.messages) == news(1)
        with pytest.raises(LinkLost):
            async for _ in silent.messages:
                pass

    async def test_a_slow_coordinator_loses_nothing(self, setup: Setup) -> None:
        count = self.flood
        node = await setup.join("n1")

        async def talk() -> None:
            for number in range(count):
                await node.link.send(progress(number))

        talking = asyncio.ensure_future(talk())
        await asyncio.wait([talking], timeout=0.05)
        for number in range(count):
            assert await soon(setup.events) == Said("n1", progress(number))
        await talking

    # -- blobs ---------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("size", [0, 7000, 3_000_000])
    async def test_fetch(self, setup: Setup, size: int) -> None:
        node = await setup.join("n1")
        digest = await setup.blobs.put(pattern(size))
        for _ in range(2):
            assert await node.link.fetch(digest) == pattern(size)

    async def test_fetch_what_is_not_there(self, setup: Setup) -> None:
        node = await setup.join("n1")
        with pytest.raises(NotFound):
            await node.link.fetch(digest_of(b"nothing"))

    async def test_fetch_notices_damage(self, setup: Setup) -> None:
        node = await setup.join("n1")
        digest = await setup.blobs.put(pattern(100_000))
        if setup.damage is not None:
            await setup.damage(digest, bytes(100_000))
        else:
            async with setup.blobs.file(digest) as path:
                path.write_bytes(bytes(100_000))
        with pytest.raises(CorruptBlob):
            await node.link.fetch(digest)

    @pytest.mark.parametrize("size", [0, 7000, 3_000_000])
    async def test_store(self, setup: Setup, size: int) -> None:
        """A small update, or result of a compute job, may be stored at once, or come with the message that names it."""
        node, data = await setup.join("n1"), pattern(size)
        update = Submission(job="toy-1", round=1, attempt=0, digest=digest_of(data))
        result = Computed(job="c-1", attempt=0, digest=digest_of(data), nonce="a" * 64)
        for message, buffer in ((update, data), (update, memoryview(data)), (result, data)):
            await node.link.store(buffer, digest_of(data))
            await node.link.send(message)
            said = await soon(setup.events)
            assert isinstance(said, Said)
            assert said.message == message
            assert (said.blob or bytes(await setup.blobs.read(digest_of(data)))) == data

    async def test_what_comes_of_work_is_stored(self, setup: Setup) -> None:
        """With the work a node may be told where to put an update; the next one goes there too, or elsewhere."""
        node, model = await setup.join("n1"), await setup.blobs.put(pattern(7000))
        for number, size in ((1, 100_000), (2, 3_000_000), (3, 10)):
            start, data = replace(work(model), round=number), pattern(size)
            assert setup.fabric.send("n1", start)
            assert await soon(node.messages) == start
            assert await node.link.fetch(model) == pattern(7000)
            for update in (data, data + b"once more"):
                done = Submission(job="toy-1", round=number, attempt=0, digest=digest_of(update))
                await node.link.store(update, digest_of(update))
                await node.link.send(done)
                said = await soon(setup.events)
                assert isinstance(said, Said)
                assert (said.message, said.blob or bytes(await setup.blobs.read(digest_of(update)))) == (done, update)

    async def test_store_under_another_digest(self, setup: Setup) -> None:
        node, came = await setup.join("n1"), pattern(3_000_000)
        with pytest.raises(TuttiError, match=digest_of(came)):
            await node.link.store(came, digest_of(b"announced"))
        assert await setup.blobs.digests() == []

    async def test_a_model_reaches_the_node_whether_it_came_along_or_not(self, setup: Setup) -> None:
        node, data = await setup.join("n1"), pattern(7000)
        digest = await setup.blobs.put(data)
        for blob in (data, b""):
            start = work(digest)
            assert setup.fabric.send("n1", start, blob)
            assert await soon(node.messages) == start
            assert await node.link.fetch(digest) == data

    async def test_a_model_that_came_along_damaged_is_fetched(self, setup: Setup) -> None:
        node, data = await setup.join("n1"), pattern(7000)
        digest = await setup.blobs.put(data)
        assert setup.fabric.send("n1", work(digest), b"not the model")
        await soon(node.messages)
        assert await node.link.fetch(digest) == data


class TokenSuite(FabricSuite):
    """For fabrics that know nodes by tokens: every one but those whose members are let in by TLS alone."""

    async def test_a_wrong_token_is_refused(self, setup: Setup) -> None:
        with pytest.raises(LinkRefused, match="not known by this token"):
            await setup.make_link("n1", "stolen").connect(registration("n1", "stolen"))
        await setup.join("n2")  # its arrival is the first thing the coordinator hears

    async def test_a_refused_stranger_does_not_disturb_the_node_of_that_name(self, setup: Setup) -> None:
        node = await setup.join("n1")
        with pytest.raises(LinkRefused):
            await setup.make_link("n1", "stolen").connect(registration("n1", "stolen"))
        assert setup.fabric.send("n1", news(1))
        assert await soon(node.messages) == news(1)
