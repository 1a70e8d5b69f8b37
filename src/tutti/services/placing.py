"""A member's share of what is placed on the ring: keys handed over, copied and repaired (see tutti.ring.keys)."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from tutti.core.errors import Conflict
from tutti.domain.events import Digest
from tutti.ports.ring import Keepers, Placement
from tutti.ring.identifiers import Peer, within
from tutti.ring.keys import Shelf, after_change, copies, handed_over, key_of, replicas, safe, strays, without
from tutti.ring.member import owns
from tutti.services.ring import NotFoundInRing, RingMember

EVERY = 0.5
RETURN_EVERY, AUDIT_EVERY = 4, 120
"""Rounds of EVERY after which what belongs to others is offered to them, and after which nothing is believed."""


class Keeper:
    """Keeps what it owns at the next members too, and gives away what it does not own.

    There is one data set on a ring: that which was placed last.

    Args:
        have: Whether a blob is here, and on disk from now on.
        save: Writes down what is kept; called before anybody is told.
        forget: Deletes blobs that are not kept here any more.
    """

    def __init__(
        self,
        ring: RingMember,
        peers: Keepers,
        placement: Placement | None,
        digests: Iterable[Digest],
        *,
        have: Callable[[Digest], Awaitable[bool]],
        save: Callable[[Placement, Sequence[Digest]], None],
        forget: Callable[[set[Digest]], Awaitable[None]],
        every: float = EVERY,
    ) -> None:
        self.placement = placement
        self._ring, self._peers, self._every = ring, peers, every
        self._have, self._save, self._forget = have, save, forget
        self._digests = {key_of(digest): digest for digest in digests}
        self.shelf = Shelf(frozenset(self._digests))
        self._seen = ring.member
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        """Hand over, copy and repair for ever."""
        rounds = 0
        while True:
            await asyncio.sleep(self._every)
            rounds += 1
            await self.repair()
            if rounds % RETURN_EVERY == 0:
                await self.return_strays()
            if rounds % AUDIT_EVERY == 0:
                self.shelf = self.shelf.audited()

    async def repair(self) -> None:
        """Offer a new predecessor what it owns, and the next members their copies."""
        before, self._seen = self._seen, self._ring.member
        if self._seen is not before:
            offer = handed_over(before, self._seen, self.shelf)
            self.shelf = after_change(self._seen, self.shelf)
            if offer is not None:
                await self._offer(offer.to, offer.keys)
        for offer in copies(self._ring.member, self.shelf):
            await self._offer(offer.to, offer.keys)

    async def return_strays(self) -> None:
        """Offer what others own to them, and forget it once they and their copies have it.

        The successor is told what was placed last, so that all hear of it: also those who get nothing of it.
        """
        member = self._ring.member
        if self.placement is not None and member.head.address and member.head.id != member.me.id:
            await self._peers.keep(member.head, self.placement, [])
        left = sorted(strays(member, self.shelf))
        while left:
            key = left[0]
            try:
                owner = (await self._ring.look_up(key)).holders[0]
            except NotFoundInRing:
                return
            theirs = frozenset(other for other in left if other == key or within(key, other, owner.id))
            left = [other for other in left if other not in theirs]
            if owner.id != self._ring.member.me.id:
                await self._return(owner, theirs)

    async def _return(self, owner: Peer, keys: frozenset[int]) -> None:
        await self._offer(owner, keys - self.shelf.confirmed.get(owner, frozenset()))
        placement = self.placement
        if placement is None or (word := await self._peers.kept(owner, placement, self._named(keys))) is None:
            return
        async with self._turn:
            if self._is(placement):
                digests, holders = word
                shelf = without(self._ring.member, self.shelf, map(key_of, digests), holders)
                await self._keep(shelf, self._digests, self.placement or placement)

    async def _offer(self, to: Peer, keys: frozenset[int]) -> None:
        """Ask which of them are missing there, send those, and ask again."""
        placement = self.placement
        if placement is None or not keys:
            return
        missing = await self._peers.keep(to, placement, self._named(keys))
        if missing:
            for digest in missing:
                if not await self._peers.give(to, digest):
                    return
            missing = await self._peers.keep(to, placement, self._named(keys))
        if missing == [] and self._is(placement):
            self.shelf = self.shelf.confirming(to, keys)

    def _is(self, placement: Placement) -> bool:
        return self.placement is not None and self.placement.content == placement.content

    def _named(self, keys: Iterable[int]) -> list[Digest]:
        return [self._digests[key] for key in sorted(keys) if key in self._digests]

    # -- what others ask, and what this member trains on ---------------------------------------------------

    async def keep(self, placement: Placement, digests: Sequence[Digest]) -> list[Digest]:
        """Keep what is here of these; returns what is not. Raises Conflict if something was placed later."""
        async with self._turn:  # what is being forgotten is not here
            present, same = self.placement, self._is(placement)
            if present is not None and not same and placement.at < present.at:
                raise Conflict(f"{present.name!r} was placed on this ring later")
            there = {key_of(digest): digest for digest in digests if await self._have(digest)}
            if present is not None and same:
                latest = max(present, placement, key=lambda each: each.at)
                await self._keep(self.shelf.with_keys(there), self._digests | there, latest)
            else:
                await self._keep(Shelf(frozenset(there)), there, placement)
        return [digest for digest in digests if key_of(digest) not in there]

    def kept(self, digests: Sequence[Digest]) -> tuple[list[Digest], tuple[Peer, ...]]:
        """Which of these this member owns and has copied, and who holds them.

        Whoever is none of those may forget them on this word: so from now on it is not believed to hold them.
        """
        member = self._ring.member
        self.shelf = after_change(member, self.shelf)
        held = safe(member, self.shelf, map(key_of, digests))
        return [digest for digest in digests if key_of(digest) in held], (member.me, *replicas(member))

    async def lose(self, digests: Iterable[Digest]) -> None:
        """Take what is gone or damaged here off the shelf: whoever has it offers it again."""
        async with self._turn:
            if self.placement is not None:
                left = self.shelf.keys - frozenset(map(key_of, digests))
                await self._keep(replace(self.shelf, keys=left), self._digests, self.placement)

    @property
    def owned(self) -> tuple[Digest, ...]:
        return tuple(self._named(key for key in self.shelf.keys if owns(self._ring.member, key)))

    @property
    def uncopied(self) -> int:
        """How many of those are not at all the members yet that should have them."""
        return len(frozenset().union(*(offer.keys for offer in copies(self._ring.member, self.shelf))))

    async def _keep(self, shelf: Shelf, digests: Mapping[int, Digest], placement: Placement) -> None:
        """Have this shelf, on disk too, and forget what is not on it."""
        before, self._digests = self._digests, {key: digests[key] for key in shelf.keys}
        changed = shelf.keys != self.shelf.keys or placement != self.placement
        self.shelf, self.placement = shelf, placement
        if changed:
            self._save(placement, self._named(shelf.keys))
        if gone := {*before.values()} - {*self._digests.values()}:
            await self._forget(gone)
