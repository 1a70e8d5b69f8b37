"""The fabric within one process against the suite, and the faults that it can play."""

import asyncio

import pytest

from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.adapters.fabrics.local import LocalFabric, LocalLink
from tutti.core.errors import Conflict
from tutti.ports import Arrived, Left, LinkLost, LinkRefused, Said
from tutti.ports.blobs import TooLarge
from tutti.testing.blobs import digest_of
from tutti.testing.fabrics import Setup, TokenSuite, authenticate, news, progress, registration, soon, token_of
from tutti.wire.messages import Registered


def local_setup(tmp_path, authenticate=authenticate, **bounds):
    blobs = DirectoryBlobs(tmp_path / "blobs")
    fabric = LocalFabric(authenticate, blobs, **bounds)
    return Setup(fabric, blobs, lambda node, token: LocalLink(fabric))


class TestLocalFabric(TokenSuite):
    @pytest.fixture
    def setup(self, tmp_path):
        return local_setup(tmp_path)


@pytest.fixture
def setup(tmp_path):
    return local_setup(tmp_path)


async def test_a_cut_connection(setup):
    node = await setup.join("n1")
    await node.link.send(progress(1))
    assert setup.fabric.send("n1", news(1))
    node.link.drop()
    node.link.drop()
    assert await soon(setup.events) == Said("n1", progress(1))
    assert await soon(setup.events) == Left("n1", "the connection was lost")
    assert await soon(node.messages) == news(1)
    await node.loses_its_connection()


async def test_a_goodbye(setup):
    node = await setup.join("n1")
    node.link.close()
    assert await soon(setup.events) == Left("n1", "the node closed the connection", took_leave=True)
    await node.loses_its_connection()


async def test_a_coordinator_that_is_away_and_comes_back(tmp_path, setup):
    node = await setup.join("n1")
    node.link.drop()
    node.link.fabric = None
    with pytest.raises(LinkLost):
        await node.link.connect(registration("n1"))
    with pytest.raises(LinkLost):
        await node.link.fetch("a" * 64)
    with pytest.raises(LinkLost):
        await node.link.store(b"", "a" * 64)
    restarted = LocalFabric(authenticate, setup.blobs)
    node.link.fabric = restarted
    assert isinstance(await soon(await node.link.connect(registration("n1"))), Registered)
    assert isinstance(await soon(restarted.events()), Arrived)


async def test_who_waits_for_a_slow_coordinator_hears_of_the_end(tmp_path):
    setup = local_setup(tmp_path, incoming=2)
    node = await setup.join("n1")
    talks = [asyncio.ensure_future(node.link.send(progress(i))) for i in range(5)]
    await asyncio.sleep(0)
    assert [talk.done() for talk in talks] == [True, True, False, False, False]
    setup.fabric.disconnect("n1", "enough")
    outcomes = await asyncio.gather(*talks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(None)] * 2 + [LinkLost] * 3
    heard = [await soon(setup.events) for _ in range(3)]
    assert heard == [Said("n1", progress(0)), Said("n1", progress(1)), Left("n1", "enough")]


async def test_an_asynchronous_doorkeeper(tmp_path):
    async def doorkeeper(node, token):
        await asyncio.sleep(0)
        authenticate(node, token)

    setup = local_setup(tmp_path, doorkeeper)
    await setup.join("n1")
    with pytest.raises(LinkRefused):
        await LocalLink(setup.fabric).connect(registration("n2", token_of("n1")))


async def test_a_limit_on_what_nodes_may_store(tmp_path):
    limits = {"n1": 10, "n2": 0}
    setup = local_setup(tmp_path, limit=limits.__getitem__)
    asked, idle = await setup.join("n1"), await setup.join("n2")
    await asked.link.store(b"0123456789", digest_of(b"0123456789"))
    with pytest.raises(TooLarge):
        await asked.link.store(b"0123456789a", digest_of(b"0123456789a"))
    with pytest.raises(Conflict, match="no update of n2 is expected now"):
        await idle.link.store(b"01", digest_of(b"01"))
    assert await setup.blobs.digests() == [digest_of(b"0123456789")]


async def test_only_who_is_still_let_in_may_store(tmp_path):
    removed = set()

    def doorkeeper(node, token):
        authenticate("nobody" if node in removed else node, token)

    setup = local_setup(tmp_path, doorkeeper)
    with pytest.raises(LinkLost, match="not been connected"):
        await LocalLink(setup.fabric).store(b"01", digest_of(b"01"))
    node = await setup.join("n1")
    removed.add("n1")
    with pytest.raises(LinkRefused):
        await node.link.store(b"01", digest_of(b"01"))
    assert await setup.blobs.digests() == []
