"""A member's part in agreement: what it is told, what it wants done, and its state."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeAlias

import msgspec

from tutti.ring.consensus.messages import AnyMessage, Ballot, Vote
from tutti.ring.record import Record, Seat, succession

LEASE = 1.0
"""Seconds of silence after which a leader is missed."""


@dataclass(frozen=True, slots=True)
class Found:
    """Begin a chain; `roster` is this member alone."""

    seat: Seat


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Received:
    message: AnyMessage


@dataclass(frozen=True, slots=True)
class Propose:
    """The leader's wish for the next record. One at a time; it comes to nothing if this member does not lead."""

    roster: tuple[Seat, ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Verified:
    """The shell has looked at a record. `fault`: why it is wrong; empty if it is right."""

    vote: Vote
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Reform:
    """A person says that the others will not come back: go on with these members, without a majority."""

    survivors: tuple[Seat, ...]


@dataclass(frozen=True, slots=True)
class Seek:
    """Ask this member for its chain: it is one of the ring, though not on the roster here."""

    peer: str


Event: TypeAlias = Found | Tick | Received | Propose | Verified | Reform | Seek


@dataclass(frozen=True, slots=True)
class Send:
    to: str
    message: AnyMessage


@dataclass(frozen=True, slots=True)
class Append:
    """These records are chosen; they replace all that are at the height of the first of them, or above."""

    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Verify:
    vote: Vote


@dataclass(frozen=True, slots=True)
class Lead:
    """From now on this member leads."""


@dataclass(frozen=True, slots=True)
class Follow:
    """From now on it does not."""

    reason: str


Instruction: TypeAlias = Send | Append | Verify | Lead | Follow


@dataclass(frozen=True, slots=True)
class Following:
    """`leader` was last heard at `since`; empty if nobody was."""

    leader: str = ""
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class Electing:
    ballot: Ballot
    since: float
    promises: Mapping[str, Vote | None] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Leading:
    """This member leads.

    Attributes:
        told: Whether the shell has been told to; it is not while this ballot only finishes what another began.
        acks: When each member of the committee last answered.
        votes, against: Who has voted for `proposal`, and who will not in this ballot.
        rejected: Who of the latter finds it wrong.
        higher: The ballot it asks for since somebody has promised more than `ballot`, and who else has promised it.
    """

    ballot: Ballot
    since: float
    told: bool = True
    acks: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    proposal: Record | None = None
    votes: frozenset[str] = frozenset()
    against: frozenset[str] = frozenset()
    rejected: frozenset[str] = frozenset()
    higher: Electing | None = None
    beat_at: float = float("-inf")


class Durable(msgspec.Struct, frozen=True):
    """What must be on disk before anything is said: promise and vote, for the height after the newest record.

    `since`: in which incarnation this memory began. What the member said before, it does not know.
    """

    height: int = -1
    promised: Ballot = Ballot()
    vote: Vote | None = None
    since: int = 0


NOTHING = Durable()


@dataclass(frozen=True, slots=True)
class Replica:
    """One member's part in it.

    Attributes:
        me: Its address.
        chain: All records.
        durable: Promise and vote.
        verifying: What the shell is looking at, in the ballot in which it was asked for last.
        wrong: Digests of records at this height that are wrong: this member or a majority has found them so.
        stuck: Digest of a record at this height that this member has led for, and that did not get its votes in time.
        staged: Records of another chain, after those that both have: more of it must come before it is the better one.
        asked: Whom the shell has pointed to.
    """

    me: str
    chain: tuple[Record, ...] = ()
    durable: Durable = NOTHING
    role: Following | Electing | Leading = Following()
    verifying: Vote | None = None
    wrong: frozenset[str] = frozenset()
    stuck: str = ""
    staged: tuple[Record, ...] = ()
    asked: str = ""

    @property
    def tip(self) -> Record | None:
        """The newest record; None before this member has a chain."""
        return self.chain[-1] if self.chain else None

    @property
    def seed(self) -> str:
        """Digest of the first record, by which committees are drawn."""
        return self.chain[0].digest if self.chain else ""

    @property
    def votes(self) -> bool:
        """Whether this member may promise and vote: it is of the committee, in a seat as old as its memory or younger.

        Who has lost its memory may have voted already. It waits for a record that seats it as who it is now.
        """
        if self.tip is None or self.me not in self.order:
            return False
        return next(seat for seat in self.tip.roster if seat.address == self.me).incarnation >= self.durable.since

    @property
    def order(self) -> tuple[str, ...]:
        """The committee for the next record, in the order of succession."""
        return () if self.tip is None else succession(self.tip, self.seed)

    @property
    def leader(self) -> str:
        """Who leads, as far as is known here; empty if nobody does."""
        match self.role:
            case Leading():
                return self.me
            case Following(leader):
                return leader
        return ""


Step: TypeAlias = tuple[Replica, tuple[Instruction, ...]]


def remembering(state: Replica, promised: Ballot, vote: Vote | None = None) -> Replica:
    """With this on disk, for the height after the newest record."""
    durable = msgspec.structs.replace(state.durable, height=height(state), promised=promised, vote=vote)
    return replace(state, durable=durable)


def height(state: Replica) -> int:
    return -1 if state.tip is None else state.tip.height


def header(state: Replica) -> dict[str, Any]:
    """The fields that every message of this member has."""
    tip = state.tip
    if tip is None:
        return {"sender": state.me, "generation": 0, "height": -1, "tip": ""}
    return {"sender": state.me, "generation": tip.generation, "height": tip.height, "tip": tip.digest}


def resign(before: Following | Electing | Leading) -> tuple[Instruction, ...]:
    return (Follow("another leads"),) if isinstance(before, Leading) and before.told else ()
