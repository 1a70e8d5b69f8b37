"""The hub's messages, over real sockets: a uvicorn server in this process and HubLink clients."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec
import pytest
from hub_server import Hub, registration, running_hub
from msgspec.structs import replace

from support.certificates import certificate
from tutti import __version__
from tutti.adapters.fabrics.hub import HubLimits
from tutti.adapters.fabrics.hub_link import HubLink
from tutti.core.errors import UserError
from tutti.ports import Arrived, FabricEvent, Left, LinkLost, LinkRefused, Said
from tutti.wire import tensors
from tutti.wire.messages import (
    MAX_ATTACHED,
    MAX_FRAME,
    Failure,
    Halt,
    Heartbeat,
    Progress,
    Refusal,
    Registered,
    Submission,
    attach,
    decode_from_coordinator,
    encode,
)

HALT = Halt(job="job-1", round=1, attempt=0, reason="the round closed")


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    async with running_hub(tmp_path) as running:
        yield running


async def following(events: AsyncIterator[FabricEvent]) -> FabricEvent:
    return await asyncio.wait_for(anext(events), 10)


async def test_messages_flow_both_ways_and_a_goodbye_is_told(hub: Hub) -> None:
    events = hub.fabric.events()
    async with hub.link() as link:
        messages = await link.connect(registration())
        welcome = Registered(node="anna", version=__version__, heartbeat=15.0, attached=MAX_ATTACHED)
        assert await anext(messages) == welcome
        assert await following(events) == Arrived("anna", replace(registration(), token=""))
        progress = Progress(job="job-1", round=1, attempt=0, done=0.5, loss=1.25)
        await link.send(Heartbeat(cpu=0.5))
        await link.send(progress)
        assert await following(events) == Said("anna", Heartbeat(cpu=0.5))
        assert await following(events) == Said("anna", progress)
        assert hub.fabric.send("anna", HALT)
        assert await anext(messages) == HALT
        assert not hub.fabric.send("berta", HALT)
    assert await following(events) == Left("anna", "the node closed the connection", took_leave=True)
    assert not hub.fabric.send("anna", HALT)


async def test_a_lost_connection_is_no_goodbye(hub: Hub) -> None:
    events = hub.fabric.events()
    async with aiohttp.ClientSession() as session:
        socket = await session.ws_connect(f"{hub.url}/ws/node")
        await socket.send_str(encode(registration()).decode())
        assert await following(events) == Arrived("anna", replace(registration(), token=""))
        socket._writer.transport.abort()
        assert await following(events) == Left("anna", "the connection was lost", took_leave=False)


async def test_a_wrong_token_is_refused_for_good_and_recorded(hub: Hub) -> None:
    async with hub.link() as link:
        with pytest.raises(LinkRefused, match="the token is not that of node 'anna'"):
            await link.connect(registration(secret="wrong"))
    assert hub.keeper.turned_away == [("anna", "the token is not that of node 'anna'")]


async def test_another_protocol_is_refused_for_good(hub: Hub) -> None:
    async with hub.link() as link:
        with pytest.raises(LinkRefused, match="speaks protocol 1, the node 2: update"):
            await link.connect(registration(protocol=2))


async def test_a_future_registration_is_told_its_protocol_though_it_cannot_be_read(hub: Hub) -> None:
    refusal = await first_answer(hub, '{"type": "device:register", "protocol": 7, "who": "anna"}')
    assert (refusal.code, refusal.fatal) == ("protocol", True)


@pytest.mark.parametrize(
    ("frame", "detail"),
    [
        ("garbage", "expected a registration: not a message"),
        ("\ud7ff", "expected a registration: not a message"),
        ('{"type": "' + 60_000 * "x" + '"}', "expected a registration: not a message"),
        ("7", "expected a registration: not a message"),
        ('{"type": "device:register", "protocol": 1, "node": "../etc"}', r"\$.node"),
        ('{"type": "device:heartbeat"}', "expected a registration first, got heartbeat"),
    ],
)
async def test_the_first_frame_must_be_a_registration(hub: Hub, frame: str, detail: str) -> None:
    refusal = await first_answer(hub, frame)
    assert (refusal.code, refusal.fatal) == ("message", True)
    assert detail.replace("\\", "") in refusal.detail


async def first_answer(hub: Hub, frame: str) -> Refusal:
    """What the hub says to a first frame, before it closes."""
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{hub.url}/ws/node") as socket:
        await socket.send_str(frame)
        answer = decode_from_coordinator(await socket.receive_str(timeout=10))
        assert isinstance(answer, Refusal)
        assert (await socket.receive(timeout=10)).type is aiohttp.WSMsgType.CLOSE
        return answer


async def test_bad_frames_are_answered_and_the_eighth_ends_the_connection(hub: Hub) -> None:
    events = hub.fabric.events()
    bad = ["garbage", "[]", '{"type": "weights:global"}', '{"type": "training:progress", "job": "A B"}']
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{hub.url}/ws/node") as socket:
        await socket.send_str(encode(registration()).decode())
        await socket.receive_str(timeout=10)
        await following(events)
        for number in range(8):
            await socket.send_str(bad[number % len(bad)])
            answer = decode_from_coordinator(await socket.receive_str(timeout=10))
            assert isinstance(answer, Refusal)
            assert (answer.code, answer.fatal) == ("message", False)
        assert (await socket.receive(timeout=10)).type is aiohttp.WSMsgType.CLOSE
    left = await following(events)
    assert isinstance(left, Left)
    assert left.reason.startswith("refused: 8 bad messages, the last: ")


async def test_a_second_registration_and_binary_garbage_are_bad_frames(hub: Hub) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{hub.url}/ws/node") as socket:
        await socket.send_str(encode(registration()).decode())
        await socket.receive_str(timeout=10)
        await socket.send_str(encode(registration()).decode())
        assert "second registration" in await socket.receive_str(timeout=10)
        await socket.send_bytes(b"\xff\x00")
        assert "four bytes of length" in await socket.receive_str(timeout=10)


async def test_a_frame_above_the_limit_is_refused_and_a_huge_one_ends_the_connection(hub: Hub) -> None:
    events = hub.fabric.events()
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{hub.url}/ws/node") as socket:
        await socket.send_str(encode(registration()).decode())
        await socket.receive_str(timeout=10)
        await following(events)
        await socket.send_str(" " * 70_000)
        assert "a message may have 65536 bytes, this one has 70000" in await socket.receive_str(timeout=10)
        await socket.send_str(" " * (2 << 20))
        assert isinstance(await following(events), Left)


async def test_a_link_sends_no_frame_above_the_limit(hub: Hub) -> None:
    async with hub.link() as link:
        await link.connect(registration())
        too_long = Failure(job="job-1", round=1, attempt=0, reason="x" * 70_000)
        with pytest.raises(UserError, match="a message may have 65536 bytes, this Failure has 7"):
            await link.send(too_long)


async def test_a_second_connection_replaces_the_first(hub: Hub) -> None:
    events = hub.fabric.events()
    async with hub.link() as old, hub.link() as new:
        old_messages = await old.connect(registration())
        await anext(old_messages)
        new_messages = await new.connect(registration())
        with pytest.raises(LinkRefused, match="another process has connected as anna"):
            await anext(old_messages)
        await old.close()
        await new.send(Heartbeat())
        assert isinstance(await following(events), Arrived)
        left = await following(events)
        assert isinstance(left, Left)
        assert "another process" in left.reason
        assert isinstance(await following(events), Arrived)
        assert await following(events) == Said("anna", Heartbeat())
        assert hub.fabric.send("anna", HALT)
        assert [await anext(new_messages) for _ in range(2)][1] == HALT


async def test_a_link_that_connects_again_replaces_itself(hub: Hub) -> None:
    events = hub.fabric.events()
    async with hub.link() as link:
        await link.connect(registration())
        messages = await link.connect(registration())
        kinds = [type(await following(events)) for _ in range(3)]
        assert kinds == [Arrived, Left, Arrived]
        await anext(messages)
        assert hub.fabric.send("anna", HALT)
        assert await anext(messages) == HALT


async def test_disconnect_ends_the_link_with_the_reason(hub: Hub) -> None:
    events = hub.fabric.events()
    async with hub.link() as link:
        messages = await link.connect(registration())
        await anext(messages)
        await following(events)
        hub.fabric.disconnect("anna", "removed: asked")
        hub.fabric.disconnect("anna", "a second time does nothing")
        assert not hub.fabric.send("anna", HALT)
        with pytest.raises(LinkLost, match="removed: asked"):
            await anext(messages)
        assert await following(events) == Left("anna", "removed: asked")
        with pytest.raises(LinkLost, match="no connection"):
            await link.send(Heartbeat())


async def test_a_silent_node_is_disconnected_and_one_that_speaks_is_not(tmp_path: Path) -> None:
    async with running_hub(tmp_path, limits=HubLimits(heartbeat=0.1)) as hub, hub.link() as link:
        events = hub.fabric.events()
        async with hub.link("berta") as silent:
            messages = await link.connect(registration())
            assert (await anext(messages)).heartbeat == 0.1
            await silent.connect(registration("berta"))
            assert {(await following(events)).node for _ in range(2)} == {"anna", "berta"}
            left = None
            while not isinstance(left, Left):
                await link.send(Heartbeat())
                left = await following(events)
            assert left == Left("berta", "silent for 0.3 s")
            assert hub.fabric.send("anna", HALT)


async def test_a_stranger_must_register_in_time(tmp_path: Path) -> None:
    async with (
        running_hub(tmp_path, limits=HubLimits(register=0.1)) as hub,
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{hub.url}/ws/node") as socket,
    ):
        closed = await socket.receive(timeout=10)
        assert (closed.type, closed.extra) == (aiohttp.WSMsgType.CLOSE, "silent for 0.1 s")


async def test_strangers_are_limited_and_told_to_come_back(tmp_path: Path) -> None:
    async with (
        running_hub(tmp_path, limits=HubLimits(strangers=1)) as hub,
        hub.link() as link,
        aiohttp.ClientSession() as session,
    ):
        async with session.ws_connect(f"{hub.url}/ws/node") as stranger:
            with pytest.raises(LinkLost, match="too many nodes connect at once"):
                await link.connect(registration())
            await stranger.send_str("no registration")
            await stranger.receive_str(timeout=10)
        await link.connect(registration())


async def test_places_are_limited_but_a_node_may_replace_itself(tmp_path: Path) -> None:
    async with (
        running_hub(tmp_path, limits=HubLimits(nodes=1)) as hub,
        hub.link() as first,
        hub.link() as again,
        hub.link("berta") as other,
    ):
        await first.connect(registration())
        with pytest.raises(LinkLost, match="all 1 places are taken"):
            await other.connect(registration("berta"))
        await again.connect(registration())


async def test_a_node_that_does_not_read_is_disconnected(tmp_path: Path) -> None:
    async with running_hub(tmp_path, limits=HubLimits(outgoing=4)) as hub, hub.link() as link:
        events = hub.fabric.events()
        messages = await link.connect(registration())
        await following(events)
        await anext(messages)
        sent = [hub.fabric.send("anna", HALT) for _ in range(6)]
        assert sent == [True] * 4 + [False] * 2
        assert await following(events) == Left("anna", "does not read: 4 messages wait for it")


async def test_a_slow_coordinator_slows_the_nodes_and_nothing_is_lost(tmp_path: Path) -> None:
    """Far more is sent than the queue holds; a node that is kept waiting has no deadline."""
    async with running_hub(tmp_path, limits=HubLimits(events=8)) as hub, hub.link() as link:
        await link.connect(registration())
        events, queue, suspended = hub.fabric.events(), hub.fabric._events, False
        assert isinstance(await following(events), Arrived)
        for number in range(500):
            await link.send(Progress(job="job-1", round=1, attempt=number, done=0.0))
        for number in range(500):
            said = await following(events)
            assert said == Said("anna", Progress(job="job-1", round=1, attempt=number, done=0.0))
            assert queue.qsize() <= 8
            suspended |= hub.fabric._nodes["anna"].deadline.when() is None
        assert suspended


async def test_a_stopped_coordinator_is_link_lost(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        link = hub.link()
        messages = await link.connect(registration())
        await anext(messages)
    with pytest.raises(LinkLost):
        await anext(messages)
    with pytest.raises(LinkLost, match="cannot connect to"):
        await link.connect(registration())
    await link.close()


async def test_an_address_without_a_coordinator_is_refused(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        hub.url += "/elsewhere"
        async with hub.link() as link:
            with pytest.raises(LinkRefused, match=r"got the answer 40\d: check the address"):
                await link.connect(registration())


def test_an_address_must_be_one_of_http() -> None:
    with pytest.raises(UserError, match="expected the coordinator's address"):
        HubLink("ftp://host", "anna", "secret")


async def test_tls_with_an_own_authority(tmp_path: Path) -> None:
    pair = certificate(tmp_path)
    async with running_hub(tmp_path / "blobs", tls=pair) as hub:
        async with hub.link(ca=pair[0]) as link:
            messages = await link.connect(registration())
            assert isinstance(await anext(messages), Registered)
        async with hub.link() as distrustful:
            with pytest.raises(LinkRefused, match="certificate is not trusted"):
                await distrustful.connect(registration())
    (tmp_path / "empty.pem").touch()
    with pytest.raises(UserError, match="expected certificates in PEM format"):
        hub.link(ca=tmp_path / "empty.pem")


# -- attached updates ----------------------------------------------------------------------------------------------


SUBMISSION = Submission(job="job-1", round=1, attempt=0, digest=tensors.digest(b"update"))


async def test_a_small_update_comes_with_its_submission(hub: Hub) -> None:
    events = hub.fabric.events()
    async with hub.link() as link:
        messages = await link.connect(registration())
        await anext(messages)
        await following(events)
        await link.store(b"update", SUBMISSION.digest)
        await link.send(SUBMISSION)
        assert await following(events) == Said("anna", SUBMISSION, b"update")
        await link.send(SUBMISSION)  # asked for again, after a lost answer
        assert await following(events) == Said("anna", SUBMISSION, b"update")
    assert hub.requests == {}


async def test_a_large_update_does_not(hub: Hub) -> None:
    events, large = hub.fabric.events(), bytes(MAX_ATTACHED + 1)
    submission = msgspec.structs.replace(SUBMISSION, digest=tensors.digest(large))
    async with hub.link() as link:
        messages = await link.connect(registration())
        await anext(messages)
        await following(events)
        await link.store(large, submission.digest)
        await link.send(submission)
        assert await following(events) == Said("anna", submission)
    assert hub.requests == {"PUT": 1}


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", "four bytes of length"),
        (b"\0\0\0\xff{}", "four bytes of length"),
        (attach(Heartbeat(), b"x"), "heartbeat with 1"),
        (attach(SUBMISSION, bytes(MAX_ATTACHED + 1)), f"at most {MAX_ATTACHED} bytes"),
        (b"\0\0\0\2{}" + bytes(MAX_FRAME), f"may have {MAX_FRAME} bytes"),
        (b"\0\0\0\2{}rest", "not a message of protocol"),
    ],
)
async def test_a_bad_binary_frame_is_answered(hub: Hub, frame: bytes, reason: str) -> None:
    async with hub.link() as link:
        messages = await link.connect(registration())
        await anext(messages)
        assert link._socket is not None
        await link._socket.send_bytes(frame)
        refusal = await anext(messages)
        assert isinstance(refusal, Refusal)
        assert reason in refusal.detail
        assert not refusal.fatal


async def test_updates_that_wait_for_the_coordinator_are_bounded(tmp_path: Path) -> None:
    limits = HubLimits(attached=2 * MAX_ATTACHED)
    async with running_hub(tmp_path, limits=limits) as hub, hub.link() as link:
        messages = await link.connect(registration())
        await anext(messages)
        update = bytes(MAX_ATTACHED)
        submission = msgspec.structs.replace(SUBMISSION, digest=tensors.digest(update))
        await link.store(update, submission.digest)
        talking = asyncio.ensure_future(_say_often(link, submission, 40))
        await asyncio.wait([talking], timeout=0.2)
        assert hub.fabric._attached <= 3 * MAX_ATTACHED
        events = hub.fabric.events()
        await following(events)
        for _ in range(40):
            assert await following(events) == Said("anna", submission, update)
        await talking


async def _say_often(link: HubLink, submission: Submission, times: int) -> None:
    for _ in range(times):
        await link.send(submission)
