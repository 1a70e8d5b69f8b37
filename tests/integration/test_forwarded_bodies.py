"""What a relay sends on: whole bodies, whoever turns out to be in charge, or an answer that it was not done."""

import hashlib
from contextlib import AsyncExitStack

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from support.commands import DEADLINE
from support.served import served
from support.worlds import World
from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.adapters.fabrics.hub import HubFabric
from tutti.adapters.posts.memory import MemoryPost
from tutti.apps.api.relay import RelayApp
from tutti.apps.api.replayed import KEPT_BYTES, ReplayedBody
from tutti.ports.log import Owner
from tutti.services.relay import Relay


class Replica:
    """A relay, which is in charge after it has answered so often that it is not."""

    def __init__(self, name: str, world: World, refusals: int) -> None:
        post, self.refusals, self.taken = MemoryPost(), refusals, list[str]()
        hub = HubFabric(world.core.members.authenticate)
        self.relay = Relay(name, hub, post)
        blobs = DirectoryBlobs(world.folder / name)
        self.app = RelayApp(
            self.relay, hub, blobs, world.core, post, lambda: None if self.refusals else self._take, blobs
        )

    async def __call__(self, scope, receive, send):
        if self.refusals:
            await self.app(scope, receive, send)
            self.refusals -= 1
        else:
            await self._take(scope, receive, send)

    async def _take(self, scope, receive, send):
        body = await Request(scope, receive).body()
        self.taken.append(hashlib.sha256(body).hexdigest())
        await PlainTextResponse(f"{len(body)}")(scope, receive, send)


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path)
    await world.up()
    yield world
    await world.down()


async def posted(world, parts, refusals):
    """What a caller of a relay is answered, and what the owner took, which refuses so often at first."""
    owner, front = Replica("owner", world, refusals), Replica("front", world, 1)

    async def body():
        for part in parts:
            yield part

    async with AsyncExitStack() as stack:
        front.relay.follow(Owner(1, "owner", await stack.enter_async_context(served(owner))))
        stack.push_async_callback(front.app.close)
        url = await stack.enter_async_context(served(front))
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=DEADLINE))
        content = body() if len(parts) > 1 else parts[0]
        return await client.post(f"{url}/api/v1/tables", content=content), owner.taken


@pytest.mark.parametrize("parts", [[b"{}"], [b"0" * 1000, b"1" * 1000, b"2" * 1000], [b"x" * KEPT_BYTES]], ids=len)
async def test_whoever_is_asked_next_has_all_of_it(world, parts):
    answer, taken = await posted(world, parts, refusals=1)
    assert (answer.status_code, int(answer.text)) == (200, sum(map(len, parts)))
    assert taken == [hashlib.sha256(b"".join(parts)).hexdigest()]


async def test_a_large_body_comes_whole_or_not_at_all(world):
    """Who refuses soon enough has only been sent what is remembered."""
    parts = [b"x" * (KEPT_BYTES // 2)] * 5
    whole = [hashlib.sha256(b"".join(parts)).hexdigest()]
    answer, taken = await posted(world, parts, refusals=0)
    assert (answer.status_code, taken) == (200, whole)
    answer, taken = await posted(world, parts, refusals=1)
    assert (answer.status_code, taken) in ((503, []), (200, whole))


async def test_what_is_not_remembered_is_not_whole():
    messages = [{"type": "http.request", "body": b"x" * (KEPT_BYTES // 2), "more_body": more} for more in (True, True)]
    messages.append({"type": "http.request", "body": b"y", "more_body": False})
    due = iter(messages)

    async def receive():
        return next(due)

    body = ReplayedBody(receive)
    first = body.again()
    assert [await first(), await first()] == messages[:2]
    second = body.again()
    assert [await second(), await second(), body.whole] == [*messages[:2], True]
    assert (await second(), body.whole) == (messages[2], False)
