"""A member of a ring that runs: time, questions and answers around the pure core in tutti.ring."""

import asyncio
from collections.abc import Callable
from random import Random

from tutti.core.errors import TuttiError
from tutti.ports.ring import Peers
from tutti.ring.chord import Answered, Ask, Asked, Due, Event, Found, Task, Tell, Told, Unanswered, found, handle
from tutti.ring.identifiers import BITS, Peer
from tutti.ring.member import Member, View, towards

STABILISE_EVERY = 0.25
HEAL_EVERY = 20
"""Every so many rounds of STABILISE a member looks itself up through somebody else; fingers are fixed one a round."""


SEEDS = 64


class NotFoundInRing(TuttiError):
    """Everybody on the way to a key was dead; the ring repairs itself, so try again."""


class RingMember:
    """One member. `run` keeps it in the ring until it is cancelled; the other methods are for its server and its user.

    Args:
        me: Its peer; the incarnation must be higher than in any earlier life of this address.
        seeds: Members through which it joins, and through which a ring that was cut in two finds itself; none
            for the first member. They may be out of date.
        founds: Begin a ring, though there are seeds: none of them is there now.
    """

    def __init__(
        self,
        me: Peer,
        peers: Peers,
        seeds: tuple[Peer, ...] = (),
        *,
        founds: bool = False,
        every: float = STABILISE_EVERY,
        bits: int = BITS,
    ) -> None:
        self.member = found(me, bits) if founds or not seeds else Member(me, bits=bits)
        self.on_life: Callable[[Peer], None] = lambda me: None
        """Writes down a new incarnation. Nobody has been told of it yet; if this raises, nothing has happened."""
        self._seeds, self._peers, self._every = seeds, peers, every
        self._strangers: list[Peer] = []
        self._rng = Random(me.address)  # noqa: S311 - chooses whom to ask, guards nothing
        self._changed = asyncio.Condition()

    async def run(self) -> None:
        """Join, and repair for ever."""
        rounds = 0
        while True:
            await self._round(rounds)
            rounds += 1
            await asyncio.sleep(self._every * self._rng.uniform(0.8, 1.2))

    async def found(self) -> None:
        """Begin a ring after all, if no other has been joined yet."""
        if not self.member.joined:
            self.member = found(self.member.me, self.member.bits)
            async with self._changed:
                self._changed.notify_all()

    def meet(self, *seeds: Peer) -> None:
        """There are these members too: to join through, or, if they are in another ring, to make one of the two."""
        known = {peer.id for peer in self.member.roster.alive}
        self._strangers = [peer for peer in seeds if peer.id not in known]
        self._seeds = tuple(dict.fromkeys((*seeds, *self._seeds)))[:SEEDS]

    async def look_up(self, key: int) -> Found:
        """Who holds a key; raises NotFoundInRing."""
        result = await self._do(Due(Task.LOOKUP, key=key))
        if result is None or not result.holders:
            raise NotFoundInRing(f"nobody answers on the way to {key:x}; try again in a moment")
        return result

    async def asked(self, key: int, asker: Peer | None) -> View | None:
        """The answer to a question; None while this is no member."""
        if not self.member.joined:
            return None
        if asker is not None:
            await self._do(Asked(asker))
        return towards(self.member, key)

    async def told(self, peer: Peer) -> None:
        """Somebody says that it exists."""
        await self._do(Told(peer))

    async def until(self, condition: Callable[[Member], bool]) -> Member:
        """Wait for a state of this member."""
        async with self._changed:
            await self._changed.wait_for(lambda: condition(self.member))
        return self.member

    # -- one round -----------------------------------------------------------------------------------------

    async def _round(self, number: int) -> None:
        if not self.member.joined:
            if self._seeds:
                await self._do(Due(Task.JOIN, contact=self._rng.choice(self._seeds)))
            return
        await self._do(Due(Task.STABILISE))
        exponent = self.member.bits - 1 - number % self.member.bits
        await self._do(Due(Task.FINGER, key=(self.member.me.id + (1 << exponent)) % (1 << self.member.bits)))
        known = [claim.peer for claim in self.member.roster.claims.values()]  # the dead too: they may be beyond a cut
        if self._strangers:
            await self._do(Due(Task.HEAL, contact=self._strangers.pop()))
        elif number % HEAL_EVERY == HEAL_EVERY - 1 and (contacts := [*known, *self._seeds]):
            await self._do(Due(Task.HEAL, contact=self._rng.choice(contacts)))

    async def _do(self, event: Event) -> Found | None:
        """Carry out an event and everything that follows from it; what a look-up found, if it was one."""
        before = self.member
        after, wishes = handle(before, event)
        if after.me != before.me:
            self.on_life(after.me)
        self.member = after
        if after is not before:
            async with self._changed:
                self._changed.notify_all()
        async with asyncio.TaskGroup() as group:
            results = [group.create_task(self._carry_out(wish)) for wish in wishes]
        return next((found for task in results if (found := task.result()) is not None), None)

    async def _carry_out(self, wish: Ask | Tell | Found) -> Found | None:
        match wish:
            case Ask(peer, _, key):
                asker = self.member.me if self.member.joined else None
                answer = await self._peers.ask(peer, key, asker) if peer.address else None
                return await self._do(Unanswered(wish) if answer is None else Answered(wish, answer))
            case Tell(peer):
                await self._peers.tell(peer, self.member.me)
                return None
            case Found():
                return wish
