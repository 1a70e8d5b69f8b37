"""The chain of records: what a ring has agreed on, one record after another, and who may agree on the next.

A record names the one before it, so two members whose newest records are equal have equal histories. It freezes the
roster; the committee that decides on the next record follows from that roster alone. Committee members are drawn by
rendezvous hashing (highest random weight, https://doi.org/10.1109/90.663936): everybody draws the same without asking,
nobody is drawn more often than others, and when a member goes only its own place is filled anew.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from hashlib import sha256

import msgspec

LARGEST_COMMITTEE = 5

LARGEST = 1 << 20
"""Bytes that a body may have, and records that are sent together: all of it must fit into one message."""


class Seat(msgspec.Struct, frozen=True, order=True):
    """A member on a roster, in its present incarnation."""

    address: str
    incarnation: int = 0


class Record(msgspec.Struct, frozen=True, dict=True):
    """One record.

    Attributes:
        height: Its place in the chain; the first has 0.
        previous: Digest of the record before it; empty for the first.
        leader: Who proposed it, and leads on, if it is still a member.
        roster: The members from now on, by address.
        generation: How often the ring went on without a majority, because somebody forced it; above 0 it is degraded.
        body: What was agreed on; this layer does not look into it.
    """

    height: int
    previous: str
    leader: str
    roster: tuple[Seat, ...]
    generation: int = 0
    body: bytes = b""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the record, in hex."""
        return sha256(msgspec.msgpack.encode(self)).hexdigest()

    @cached_property
    def size(self) -> int:
        """Bytes that it takes in a message."""
        return len(msgspec.msgpack.encode(self))

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(seat.address for seat in self.roster)


def first(founder: Seat, body: bytes = b"") -> Record:
    """The record with which a ring begins."""
    return Record(0, "", founder.address, (founder,), 0, body)


def after(tip: Record, leader: str, roster: Sequence[Seat], body: bytes) -> Record:
    """The record that follows `tip`."""
    return Record(tip.height + 1, tip.digest, leader, tuple(sorted(set(roster))), tip.generation, body)


def cut(records: Sequence[Record], size: int = LARGEST) -> Iterator[tuple[Record, ...]]:
    """Records in order, so many at a time as have at most `size` bytes; one at least."""
    some: list[Record] = []
    room = size
    for record in records:
        room -= record.size
        if some and room < 0:
            yield tuple(some)
            some, room = [], size - record.size
        some.append(record)
    if some:
        yield tuple(some)


def follows(before: Record, record: Record, seed: str) -> bool:
    """Whether it may be the next: proposed by one of the committee, or forced by one who is left, and empty."""
    if record.height != before.height + 1 or record.previous != before.digest:
        return False
    if not record.roster or tuple(sorted({seat.address: seat for seat in record.roster}.values())) != record.roster:
        return False
    if record.generation == before.generation:
        return record.leader in committee(before.addresses, seed)
    return record.generation == before.generation + 1 and not record.body and record.leader in record.addresses


def begins(record: Record) -> bool:
    """Whether a ring may begin with it."""
    founder = record.roster[0] if record.roster else Seat("")
    return bool(founder.address) and record == first(founder, record.body)


@lru_cache(maxsize=16)  # asked for with every message, and the same until the next record
def committee(roster: tuple[str, ...], seed: str) -> tuple[str, ...]:
    """Who decides: the best k by rendezvous hash, best first, k being the largest odd number up to 5 and up to N."""
    size = min(LARGEST_COMMITTEE, len(roster))
    return tuple(sorted(roster, key=lambda address: _weight(seed, address))[: size - (size % 2 == 0)])


def succession(tip: Record, seed: str) -> tuple[str, ...]:
    """The committee in the order in which its members try to lead: whoever leads already comes first."""
    drawn = committee(tip.addresses, seed)
    return tuple(sorted(drawn, key=lambda address: address != tip.leader))


def majority(members: Sequence[str]) -> int:
    return len(members) // 2 + 1


def _weight(seed: str, address: str) -> bytes:
    return sha256(f"{seed}/{address}".encode()).digest()
