"""Who takes what it is told, however much that is at once, and who does not: on virtual time."""

import asyncio

from tutti.adapters.posts.memory import MemoryPost
from tutti.services.outbox import MOST_LETTERS, STUCK_SECONDS, Outbox
from tutti.sim.worlds.clock import run
from tutti.wire.relay import FromOwner, Tell, ToRelay, sealed

ROOM = 4


def outbox_of(post: MemoryPost) -> Outbox[ToRelay]:
    outbox = Outbox[ToRelay](post, "relay", lambda number, letters: sealed(FromOwner("owner", 1, number, letters)))
    for number in range(2 * MOST_LETTERS):
        outbox.put(Tell(f"n{number}", 1, b"work", b""))
    assert outbox.full
    return outbox


def test_whoever_reads_is_not_stuck() -> None:
    async def told() -> tuple[bool, bool]:
        post = MemoryPost(room=ROOM)
        outbox = outbox_of(post)
        sending = asyncio.create_task(outbox.run())
        async for _ in post.letters("relay"):
            if not outbox.told:
                break
        sending.cancel()
        await asyncio.sleep(2 * STUCK_SECONDS)
        return outbox.full, outbox.stuck

    assert run(told()) == (False, False)


def test_whoever_reads_nothing_is_stuck_after_a_while() -> None:
    async def told() -> list[bool]:
        outbox = outbox_of(MemoryPost(room=ROOM))
        sending = asyncio.create_task(outbox.run())
        found = []
        for _ in range(2):
            found.append(outbox.stuck)
            await asyncio.sleep(2 * STUCK_SECONDS)
        sending.cancel()
        return [*found, outbox.stuck]

    assert run(told()) == [False, True, True]
