"""The state of one member of the ring, and what can be read from it without asking anybody."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import ceil, log2
from types import MappingProxyType

from tutti.ring.identifiers import BITS, Peer, between, within
from tutti.ring.roster import EMPTY, ROOM, Roster

SHORT_LIST = 3
CHOICES = 3


@dataclass(frozen=True, slots=True)
class View:
    """What a member answers to every question.

    Attributes:
        peer: Who answers, in its present incarnation.
        predecessor: Who it thinks is before it.
        successors: Its successor list; empty if it is alone.
        nearer: Up to three peers between it and the key that was asked for, the one next to the key first.
        roster: Whom it knows.
        chain: Digest of the first record that its ring has agreed on; empty if it has no ring, or one that nobody used.
    """

    peer: Peer
    predecessor: Peer | None
    successors: tuple[Peer, ...]
    nearer: tuple[Peer, ...] = ()
    roster: Roster = EMPTY
    chain: str = ""

    @property
    def head(self) -> Peer:
        """Its successor: itself if it is alone."""
        return self.successors[0] if self.successors else self.peer


@dataclass(frozen=True, slots=True)
class Member:
    """The state. `joined` is False until a member of the ring has told its successor list; a first member needs none.

    Attributes:
        me: This process.
        joined: Whether it is part of a ring (of one, perhaps).
        predecessor: The closest known before it; only a hint.
        successors: The closest known after it, in order; empty if it is alone. Correctness rests on this list.
        fingers: By exponent i, the owner of me + 2**i; only a hint.
        roster: Everybody known.
        bits: The circle has 2**bits identifiers.
    """

    me: Peer
    joined: bool = False
    predecessor: Peer | None = None
    successors: tuple[Peer, ...] = ()
    fingers: Mapping[int, Peer] = field(default_factory=lambda: MappingProxyType({}))
    roster: Roster = EMPTY
    bits: int = BITS

    @property
    def head(self) -> Peer:
        """The successor: itself if it is alone."""
        return self.successors[0] if self.successors else self.me

    def after(self, id: int) -> int:
        """How far `id` lies after this member on the circle."""
        return (id - self.me.id) & ((1 << self.bits) - 1)


def list_length(members: int) -> int:
    """How many successors a member keeps: 3, and ceil(log2 N) + 1 from 16 members on."""
    return SHORT_LIST if members < 16 else ceil(log2(members)) + 1


def size(member: Member) -> int:
    """How many members there are: counted while a roster has ample room, else guessed from how close successors lie."""
    known = 1 + len(member.roster.alive)
    if known <= ROOM // 2 or not member.successors:
        return known
    reach = member.after(member.successors[-1].id) or 1 << member.bits
    return max(known, (len(member.successors) << member.bits) // reach)


def in_full(member: Member) -> bool:
    """Whether there are so few members (at most the length of a list) that every one knows every one."""
    return 1 + len(member.roster.alive) <= SHORT_LIST


def towards(member: Member, key: int) -> View:
    """What `member` answers somebody who looks for `key`."""
    return View(member.me, member.predecessor, member.successors, nearer(member, key), member.roster)


def nearer(member: Member, key: int) -> tuple[Peer, ...]:
    """Known peers strictly between this member and `key`, the closest to the key first (closest_preceding_node)."""
    known = _known(member.successors, member.fingers.values(), member.roster.alive)
    ahead = [peer for peer in known.values() if between(member.me.id, peer.id, key) and peer.id != member.me.id]
    return tuple(sorted(ahead, key=lambda peer: -member.after(peer.id))[:CHOICES])


def _known(*groups: Iterable[Peer]) -> dict[int, Peer]:
    return {peer.id: peer for group in groups for peer in group if peer.address}


def owns(member: Member, key: int) -> bool:
    """Whether the key belongs to this member: it lies after the predecessor, up to the member itself."""
    return member.predecessor is None or within(member.predecessor.id, key, member.me.id)
