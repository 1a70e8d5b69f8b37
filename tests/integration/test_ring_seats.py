"""Who is seated on a ring's next roster: whoever has answered, and nobody who is only said to exist."""

import asyncio
from contextlib import asynccontextmanager

from tutti.adapters.thrift.node import peer_at
from tutti.ring.record import Seat
from tutti.services.ring import RingMember
from tutti.services.seats import SETTLED, Seats

ME, HONEST, AGAIN = peer_at("10.0.0.1:1", 1), peer_at("10.0.0.1:2", 1), peer_at("10.0.0.1:2", 2)
STRANGER = peer_at("10.0.0.1:666")


class Answers:
    """ports.ring.Peers: those answer that are here."""

    def __init__(self, *here) -> None:
        self.living, self.here = {*here}, {peer.address: RingMember(peer, self) for peer in here}

    async def ask(self, peer, key, asker):
        there = self.here.get(peer.address)
        return None if there is None else await there.asked(key, asker)

    async def tell(self, peer, me):
        pass


@asynccontextmanager
async def asking(peers, *told):
    """The seats of a member that has been told of these, once it has asked them; and a clock that is moved by hand."""
    ring, clock = RingMember(ME, peers), [0.0]
    for peer in told:
        await ring.told(peer)
    seats = Seats(peers, lambda: clock[0])
    asks = asyncio.create_task(seats.run(ring))
    while seats.answered != {peer for peer in told if peer in peers.living}:  # noqa: ASYNC110 - no event tells of it
        await asyncio.sleep(0)
    yield ring, seats, clock
    asks.cancel()
    await asyncio.wait([asks])


def addresses(seats):
    return [seat.address for seat in seats]


async def test_who_does_not_answer_is_not_seated():
    async with asking(Answers(HONEST), HONEST, STRANGER) as (ring, seats, _):
        assert STRANGER in ring.member.roster.alive
        assert addresses(seats.of(ring.member, ())) == [ME.address, HONEST.address]


async def test_another_life_is_seated_when_it_has_answered():
    """Anybody may say that a member has begun another life; that costs the member nothing."""
    before = (Seat(ME.address, 1), Seat(HONEST.address, 1))
    async with asking(Answers(HONEST), HONEST) as (ring, seats, _):
        await ring.told(AGAIN)
        assert seats.of(ring.member, before) == before
    async with asking(Answers(AGAIN), AGAIN) as (ring, seats, _):
        assert seats.of(ring.member, before) == (Seat(ME.address, 1), Seat(HONEST.address, 2))


async def test_a_process_that_has_just_started_drops_nobody():
    before = (Seat(ME.address), Seat(HONEST.address, 1), Seat("10.0.0.1:3", 4))
    async with asking(Answers()) as (ring, seats, clock):
        assert addresses(seats.of(ring.member, before)) == addresses(before)
        clock[0] = SETTLED
        assert seats.of(ring.member, before) == (Seat(ME.address, 1),)
