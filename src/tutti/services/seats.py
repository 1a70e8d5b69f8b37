"""Who may sit on the roster of the next record: members that have answered this one, not whoever is said to exist."""

import asyncio
from collections.abc import Callable, Collection, Sequence

from tutti.ports.ring import Peers
from tutti.ring.identifiers import Peer, identifier
from tutti.ring.member import Member
from tutti.ring.record import Seat
from tutti.services.ring import RingMember

EVERY = 0.25
SETTLED = 15.0
"""Seconds after its start in which a process that has not met a member yet does not think that it is gone."""


class Seats:
    """Attributes:
    answered: The members, each in its incarnation, that gave an answer when they were asked at their address.
    """

    def __init__(self, peers: Peers, clock: Callable[[], float], members: Collection[str] = frozenset()) -> None:
        """`members`: addresses that may be seated; empty if any may."""
        self._peers, self._clock, self._members = peers, clock, members
        self._began = clock()
        self.answered: frozenset[Peer] = frozenset()

    async def run(self, ring: RingMember) -> None:
        """Ask everybody whom the member hears of, until cancelled."""
        while True:
            known = ring.member.roster.alive
            alive = frozenset(peer for peer in known if not self._members or peer.address in self._members)
            new = sorted(alive - self.answered)
            views = await asyncio.gather(*(self._peers.ask(peer, peer.id, None) for peer in new))
            genuine = {peer for peer, view in zip(new, views, strict=True) if view is not None and view.peer == peer}
            self.answered = (self.answered & alive) | genuine
            await asyncio.sleep(EVERY)

    def of(self, member: Member, seated: Sequence[Seat]) -> tuple[Seat, ...]:
        """The next roster: this member and those who have answered.

        A process that has just started has met nobody yet, and drops nobody for that.
        """
        before = {seat.address: seat for seat in seated}
        seats = {member.me.address: Seat(member.me.address, member.me.incarnation)}
        for peer in member.roster.alive:
            if peer in self.answered:
                seats[peer.address] = Seat(peer.address, peer.incarnation)
            elif peer.address in before:  # it is said to have begun another life
                seats[peer.address] = before[peer.address]
        if self._clock() - self._began < SETTLED:
            unmet = [seat for seat in seated if identifier(seat.address, member.bits) not in member.roster.claims]
            seats = {seat.address: seat for seat in unmet} | seats
        return tuple(sorted(seats.values()))
