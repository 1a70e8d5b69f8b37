"""Who is known: each process with its latest incarnation, alive or dead. Rosters of two members merge without conflict.

Of two claims about one identifier the one with the higher incarnation holds, and of two with the same the worse one:
nobody returns from the dead but by a new incarnation (as in SWIM, https://doi.org/10.1109/DSN.2002.1028914).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from tutti.ring.identifiers import Peer

ROOM = 64
"""So many members are remembered alive: all of a small ring, some of a large one."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What is believed of a process."""

    peer: Peer
    alive: bool

    def beats(self, other: "Claim") -> bool:
        return (self.peer.incarnation, not self.alive) > (other.peer.incarnation, not other.alive)


@dataclass(frozen=True)
class Roster:
    """The claims by identifier. Merging returns a new roster, or this one if nothing is new."""

    claims: Mapping[int, Claim] = field(default_factory=lambda: MappingProxyType({}))

    @cached_property
    def alive(self) -> tuple[Peer, ...]:
        """Those believed alive, by identifier."""
        return tuple(claim.peer for _, claim in sorted(self.claims.items()) if claim.alive)

    def merged(self, claims: Iterable[Claim]) -> "Roster":
        """With these claims where they are stronger."""
        known: dict[int, Claim] | None = None
        for claim in claims:
            old = (known if known is not None else self.claims).get(claim.peer.id)
            if old is None or claim.beats(old):
                known = dict(self.claims) if known is None else known
                known[claim.peer.id] = claim
        return self if known is None else Roster(MappingProxyType(_bounded(known)))

    def heard(self, *peers: Peer) -> "Roster":
        return self.merged(Claim(peer, True) for peer in peers)

    def lost(self, peer: Peer) -> "Roster":
        """With the peer dead, if it is known in that incarnation or none."""
        return self.merged([Claim(peer, False)]) if peer.address else self

    def refuses(self, peer: Peer) -> bool:
        """Whether the peer speaks from an earlier life, or from one that has been declared over."""
        claim = self.claims.get(peer.id)
        return claim is not None and (claim.peer.incarnation, not claim.alive) > (peer.incarnation, False)


EMPTY = Roster()


def _bounded(known: dict[int, Claim]) -> dict[int, Claim]:
    """The ROOM alive who are known longest, so that a stranger pushes nobody out, and the ROOM latest dead."""
    if len(known) > ROOM:
        alive = [id for id, claim in known.items() if claim.alive]
        dead = [id for id, claim in known.items() if not claim.alive]
        for id in alive[ROOM:] + dead[: max(0, len(dead) - ROOM)]:
            del known[id]
    return known
