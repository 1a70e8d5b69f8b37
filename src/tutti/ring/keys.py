"""Which member holds which keys: hand-over, copies, and when a key may be forgotten.

A key is the identifier of a blob that is named by its digest, so a copy is never older or newer than another: two
holders agree by union. The owner keeps a key and offers it to the next r - 1 members. Whoever holds keys that it
does not own offers them to the owner, and forgets one only when the owner says that it and all its copies hold it,
and it is none of them. So a crash in the midst of moving loses nothing.

| offer | by | to | when |
| --- | --- | --- | --- |
| `handed_over` | the owner until now | its new predecessor | the predecessor changes |
| `copies` | the owner | the next r - 1 members | always, where they have not confirmed |
| `strays` | who holds what it does not own | the owner, by a look-up | always |

An offer is answered with the keys that are missing; those are sent, and the answer to that confirms them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from tutti.ring.identifiers import BITS, Peer, between, within
from tutti.ring.member import Member, list_length, owns, size


def key_of(digest: str) -> int:
    """The place on the circle of a blob that is named by this digest, in hex."""
    return int(digest[: BITS // 4], 16)


@dataclass(frozen=True, slots=True)
class Offer:
    """Ask `to` which of these keys it lacks, and send it those."""

    to: Peer
    keys: frozenset[int]


@dataclass(frozen=True, slots=True)
class Shelf:
    """The keys that are here, and those that others (in their present incarnation) have confirmed to hold."""

    keys: frozenset[int] = frozenset()
    confirmed: Mapping[Peer, frozenset[int]] = field(default_factory=lambda: MappingProxyType({}))

    def with_keys(self, keys: Iterable[int]) -> "Shelf":
        return replace(self, keys=self.keys | frozenset(keys))

    def missing(self, offered: Iterable[int]) -> frozenset[int]:
        """The answer to an offer."""
        return frozenset(offered) - self.keys

    def confirming(self, peer: Peer, keys: Iterable[int]) -> "Shelf":
        """After `peer` has said that it holds these keys."""
        held = self.confirmed.get(peer, frozenset()) | frozenset(keys)
        return replace(self, confirmed=MappingProxyType({**self.confirmed, peer: held}))

    def audited(self) -> "Shelf":
        """With no confirmation believed any more, so that all is offered again: disks lose things in silence."""
        return replace(self, confirmed=MappingProxyType({}))


def after_change(member: Member, shelf: Shelf) -> Shelf:
    """For whenever the predecessor or the list changed: what a peer confirmed is believed only while it must keep it.

    Others may tell it to forget the rest; it could be among the replicas again before this member hears of that.
    """
    wanted, own = replicas(member), frozenset(key for key in shelf.keys if owns(member, key))
    confirmed = {peer: keys & own for peer, keys in shelf.confirmed.items() if peer in wanted}
    return replace(shelf, confirmed=MappingProxyType(confirmed))


def replicas(member: Member) -> tuple[Peer, ...]:
    """The members that keep copies of what this one owns: the next r - 1."""
    length = list_length(size(member))
    return tuple(peer for peer in member.successors[: length - 1] if peer.address)


def copies(member: Member, shelf: Shelf) -> tuple[Offer, ...]:
    """What the owner must still copy."""
    own = frozenset(key for key in shelf.keys if owns(member, key))
    wanted = ((peer, own - shelf.confirmed.get(peer, frozenset())) for peer in replicas(member))
    return tuple(Offer(peer, keys) for peer, keys in wanted if keys)


def handed_over(before: Member, after: Member, shelf: Shelf) -> Offer | None:
    """What a new predecessor owns from now on: the keys of (old predecessor, new predecessor]."""
    old, new = before.predecessor, after.predecessor
    start = after.me.id if old is None else old.id
    if new is None or not between(start, new.id, after.me.id):
        return None
    keys = frozenset(key for key in shelf.keys if within(start, key, new.id) and not owns(after, key))
    return Offer(new, keys) if keys else None


def strays(member: Member, shelf: Shelf) -> frozenset[int]:
    """Keys that are here and belong to somebody else: copies, or left over from when they belonged here."""
    return frozenset(key for key in shelf.keys if not owns(member, key))


def safe(member: Member, shelf: Shelf, keys: Iterable[int]) -> frozenset[int]:
    """The owner's word: those of the keys that it owns, holds, and has copied to all its replicas."""
    held = frozenset(key for key in keys if owns(member, key)) & shelf.keys
    for peer in replicas(member):
        held &= shelf.confirmed.get(peer, frozenset())
    return held


def without(member: Member, shelf: Shelf, safe_keys: Iterable[int], holders: Iterable[Peer]) -> Shelf:
    """Forget what the owner says is safe, unless this member is one of its `holders` (itself and its replicas)."""
    if any(peer.id == member.me.id for peer in holders):
        return shelf
    return replace(shelf, keys=shelf.keys - frozenset(safe_keys))
