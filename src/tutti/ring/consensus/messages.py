"""What members say to one another to agree on the next record."""

from typing import Annotated, TypeAlias

import msgspec

from tutti.ring.record import Record

HIGHEST = 2**62
"""The number that no ballot exceeds. One more at each election is far from it: who says such a number is broken."""


class Ballot(msgspec.Struct, frozen=True, order=True, array_like=True):
    """Ballots are ordered by number, then by who owns them. Number 0 is the unelected leader's."""

    number: Annotated[int, msgspec.Meta(ge=0, le=HIGHEST)] = 0
    owner: str = ""


class Vote(msgspec.Struct, frozen=True, array_like=True):
    ballot: Ballot
    record: Record


class Message(msgspec.Struct, frozen=True, tag_field="type", kw_only=True):
    """`tip` is the digest of the sender's newest record, `height` its height, -1 if there is none."""

    sender: str
    generation: int
    height: int
    tip: str


class Beat(Message, frozen=True, tag="beat"):
    ballot: Ballot


class Ack(Message, frozen=True, tag="ack"):
    pass


class Prepare(Message, frozen=True, tag="prepare"):
    ballot: Ballot


class Promise(Message, frozen=True, tag="promise"):
    ballot: Ballot
    vote: Vote | None = None


class Nack(Message, frozen=True, tag="nack"):
    promised: Ballot


class Accept(Message, frozen=True, tag="accept"):
    ballot: Ballot
    record: Record


class Accepted(Message, frozen=True, tag="accepted"):
    ballot: Ballot
    record: str


class Rejected(Message, frozen=True, tag="rejected"):
    ballot: Ballot
    record: str
    reason: str


class Commit(Message, frozen=True, tag="commit"):
    record: Record


class Fetch(Message, frozen=True, tag="fetch"):
    """`known`: height and digest of records that the sender has, the newest first, ever fewer towards the first."""

    known: tuple[tuple[int, str], ...] = ()


class Records(Message, frozen=True, tag="records"):
    """Records in order, not all if they are many; none says only that there are some to be fetched."""

    records: tuple[Record, ...]


AnyMessage: TypeAlias = Beat | Ack | Prepare | Promise | Nack | Accept | Accepted | Rejected | Commit | Fetch | Records
