"""Parts of a data set on the members of a ring: copied, handed over, repaired, given up; whoever dies or comes."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tutti.adapters.thrift.node import peer_at
from tutti.core.errors import Conflict
from tutti.ports.ring import Placement
from tutti.ring.keys import key_of
from tutti.services.placing import Keeper
from tutti.services.ring import RingMember
from tutti.testing.blobs import digest_of

PARTS = [digest_of(str(number).encode()) for number in range(48)]
FIRST, SECOND = (Placement("toy", digest_of(name), at) for at, name in enumerate((b"first", b"second")))
EVERY = 0.02


class Village:
    """Members in one process who call each other directly: ports.ring.Peers. The dead do not answer."""

    def __init__(self) -> None:
        self.rings: dict[str, RingMember] = {}
        self.keepers: dict[str, Keeper] = {}
        self.blobs: dict[str, set[str]] = {}
        self.given = 0

    @asynccontextmanager
    async def member(self, port: int, placement: Placement | None = None, digests=()):
        address = f"10.0.0.1:{port}"
        seeds = tuple(peer_at(other) for other in self.rings)
        ring = RingMember(peer_at(address, len(self.blobs)), self, seeds, every=EVERY)
        here = self.blobs[address] = set(digests)

        async def have(digest):
            return digest in here

        async def forget(digests):
            await asyncio.sleep(0)
            here.difference_update(digests)

        calls = Calls(self, here)
        keeper = Keeper(ring, calls, placement, digests, have=have, save=calls.save, forget=forget, every=EVERY)
        self.rings[address], self.keepers[address] = ring, keeper
        tasks = [asyncio.create_task(work) for work in (ring.run(), keeper.run())]
        try:
            yield address
        finally:
            self.rings.pop(address)
            self.keepers.pop(address)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert all(task.cancelled() for task in tasks)

    async def ask(self, peer, key, asker):
        ring = self.rings.get(peer.address)
        return None if ring is None else await ring.asked(key, asker)

    async def tell(self, peer, me):
        if (ring := self.rings.get(peer.address)) is not None:
            await ring.told(me)

    def holders(self, digest):
        """Who should have it: the owner first."""
        ring = sorted(map(peer_at, self.rings))
        at = next((at for at, peer in enumerate(ring) if key_of(digest) <= peer.id), 0)
        return [peer.address for peer in (ring[at:] + ring[:at])[:3]]

    def place(self, placement, parts):
        """As a client does it."""
        for address, keeper in self.keepers.items():
            mine = [digest for digest in parts if self.holders(digest)[0] == address]
            yield self._place(keeper, self.blobs[address], placement, mine)

    async def _place(self, keeper, here, placement, mine):
        here.update(await keeper.keep(placement, mine))
        return await keeper.keep(placement, mine)

    async def until_in_order(self, parts=PARTS):
        """Until the ring is, every part is at its owner and the next two and nowhere else, and all know it."""
        for _ in range(3000):
            if self._in_order(parts):
                return
            await asyncio.sleep(EVERY)
        pytest.fail("the parts did not come in order")

    def _in_order(self, parts):
        ring = sorted(map(peer_at, self.rings))
        for at, peer in enumerate(ring):
            member = self.rings[peer.address].member
            after = [other.address for other in (ring[at + 1 :] + ring[:at])[:3]]
            before = after and ring[at - 1].address
            near = [other.address for other in member.successors[:3]], member.predecessor and member.predecessor.address
            if not member.joined or near != (after, before or None):
                return False
        wanted = {address: set() for address in self.rings}
        for digest in parts:
            for address in self.holders(digest):
                wanted[address].add(digest)
        owned = [digest for keeper in self.keepers.values() for digest in keeper.owned]
        return (
            all(self.blobs[address] == wanted[address] for address in self.rings)
            and sorted(owned) == sorted(parts)
            and all(keeper.uncopied == 0 for keeper in self.keepers.values())
            and len({keeper.placement for keeper in self.keepers.values()}) == 1
        )


class Calls:
    """ports.ring.Keepers of one member."""

    def __init__(self, village: Village, here: set[str]) -> None:
        self.village, self.here = village, here
        self.saved = (None, ())

    def save(self, placement, digests):
        self.saved = (placement, digests)

    async def keep(self, peer, placement, digests):
        keeper = self.village.keepers.get(peer.address)
        try:
            return None if keeper is None else await keeper.keep(placement, digests)
        except Conflict:
            return None

    async def give(self, peer, digest):
        if peer.address not in self.village.rings or digest not in self.here:
            return False
        self.village.blobs[peer.address].add(digest)
        self.village.given += 1
        return True

    async def kept(self, peer, placement, digests):
        keeper = self.village.keepers.get(peer.address)
        return None if keeper is None else keeper.kept(digests)


async def test_parts_are_copied_handed_over_and_repaired():
    village = Village()
    async with AsyncExitStack() as stay:
        go = [AsyncExitStack() for _ in range(3)]
        for port in range(5):
            await stay.enter_async_context(village.member(port))
        for port, stack in enumerate(go, start=5):
            await stack.enter_async_context(village.member(port))
        await village.until_in_order([])
        for answer in [*village.place(FIRST, PARTS)]:
            assert await answer == []
        await village.until_in_order()
        assert village.given == 2 * len(PARTS)  # a copy each, and no more
        for stack in go[:2]:  # two die at once
            await stack.aclose()
        await village.until_in_order()
        before = village.given
        async with village.member(9) as newcomer:
            await village.until_in_order()
            assert len(village.blobs[newcomer]) <= village.given - before <= 2 * len(village.blobs[newcomer])
        await village.until_in_order()
        await go[2].aclose()
        for answer in [*village.place(SECOND, PARTS[:9])]:
            assert await answer == []
        await village.until_in_order(PARTS[:9])  # what was placed before is gone
        async with village.member(10, FIRST, PARTS[30:]):  # it was away meanwhile
            await village.until_in_order(PARTS[:9])


async def test_what_was_placed_earlier_is_refused():
    village = Village()
    async with village.member(0) as address:
        keeper = village.keepers[address]
        village.blobs[address] |= set(PARTS[:2])
        assert await keeper.keep(SECOND, PARTS[:3]) == PARTS[2:3]
        assert sorted(keeper.owned) == sorted(PARTS[:2])
        again = Placement("toy", SECOND.content, SECOND.at + 1)  # the same data, once more
        assert await keeper.keep(again, PARTS[:1]) == []
        assert sorted(keeper.owned) == sorted(PARTS[:2])
        with pytest.raises(Conflict, match="'toy' was placed on this ring later"):
            await keeper.keep(FIRST, PARTS[3:4])


async def test_a_part_that_is_gone_or_damaged_comes_back():
    """Its owner takes it off the shelf, so it does not say any more that it has it; a copy comes at an audit."""
    village = Village()
    async with AsyncExitStack() as stay:
        for port in range(5):
            await stay.enter_async_context(village.member(port))
        await village.until_in_order([])
        for answer in [*village.place(FIRST, PARTS)]:
            assert await answer == []
        await village.until_in_order()
        address, keeper = next((address, keeper) for address, keeper in village.keepers.items() if keeper.owned)
        lost = keeper.owned[0]
        await keeper.lose({lost})
        assert lost not in keeper.owned
        assert lost not in village.blobs[address]
        assert lost not in keeper.kept([lost])[0]
        await village.until_in_order()
