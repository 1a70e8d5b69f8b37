"""What the replicas of a coordinator tell each other: the owner of the log, and relays that have nodes.

A relay speaks with one owner at a time, in sessions. An envelope names its sender, the session, and its place in it, so
that either side notices what was lost; then the session is over, and the relay begins another: it tells of all its
nodes anew, as if each had lost its connection and come back. Nothing else depends on a letter's arrival. Envelopes are
MessagePack; what nodes say, and are told, is in them as in wire.messages.

A session: `Hello` from the relay, `Welcome` from the owner, `Came` for each node that is there, and then whatever
happens. Both send an empty envelope if they have said nothing for a moment.
"""

from typing import TypeAlias

import msgspec

from tutti.core.errors import UserError
from tutti.domain.events import AnyEvent, Digest, NodeId
from tutti.domain.spec import DataSchema
from tutti.wire.updates import Examined


class _Letter(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


# -- relay to owner ------------------------------------------------------------------------------------


class Hello(_Letter, frozen=True):
    """Begins a session."""


class Came(_Letter, frozen=True):
    """A node connected to the relay, which numbers connections, or has been connected for `age` seconds."""

    node: NodeId
    link: int
    registration: bytes
    age: float


class Gone(_Letter, frozen=True):
    node: NodeId
    link: int
    reason: str
    took_leave: bool


class Heard(_Letter, frozen=True):
    """What a node said, and the bytes of the update that came with it, or what the relay, which keeps it, found."""

    node: NodeId
    link: int
    message: bytes
    blob: bytes
    seen: Examined | None = None


class Knock(_Letter, frozen=True):
    """Somebody wants in as this node. `secret` is the hash of what it showed, or the proof itself, good once."""

    id: int
    node: NodeId
    secret: str
    proof: str


class Summed(_Letter, frozen=True):
    """The answer to a Sum: a blob in the store that all share (wire.partials), or why there is none."""

    id: int
    partial: Digest
    trouble: str


# -- owner to relay ------------------------------------------------------------------------------------


class Welcome(_Letter, frozen=True):
    """The session has begun."""


class Lost(_Letter, frozen=True):
    """The owner knows nothing of this session, or has missed something of it: begin another. It has no number."""


class Open(_Letter, frozen=True):
    """The answer to a Knock: why not, or nothing. `again`: another proof would do."""

    id: int
    refusal: str
    again: bool


class Tell(_Letter, frozen=True):
    """A message for a node, and the bytes of the model that it names, unless this session has told them before.

    Of a `Start`, the names and norms of its job's columns are in `data`, likewise once, and not in the message.
    """

    node: NodeId
    link: int
    message: bytes
    blob: bytes
    data: DataSchema | None = None


class Sum(_Letter, frozen=True):
    """Add up these updates of an open round, which the relay keeps: node, digest and weight of each."""

    id: int
    job: str
    round: int
    attempt: int
    updates: tuple[tuple[NodeId, Digest, int], ...]


class Leave(_Letter, frozen=True):
    """Keep no more updates of this job, whose sums do not come, but pass them on."""

    job: str


class Drop(_Letter, frozen=True):
    """Disconnect a node; `fatal`: and tell it not to come back by itself."""

    node: NodeId
    link: int
    reason: str
    fatal: bool


class News(_Letter, frozen=True):
    """An event that is in the log now."""

    offset: int
    stream: str
    version: int
    event: AnyEvent


ToOwner: TypeAlias = Hello | Came | Gone | Heard | Knock | Summed
ToRelay: TypeAlias = Welcome | Lost | Open | Tell | Sum | Leave | Drop | News


class FromRelay(msgspec.Struct, frozen=True, array_like=True):
    sender: str
    session: int
    number: int
    letters: tuple[ToOwner, ...] = ()


class FromOwner(msgspec.Struct, frozen=True, array_like=True):
    sender: str
    session: int
    number: int
    letters: tuple[ToRelay, ...] = ()


class BadEnvelope(UserError):
    """Not an envelope of this version."""


_encoder = msgspec.msgpack.Encoder()
_from_relay = msgspec.msgpack.Decoder(FromRelay)
_from_owner = msgspec.msgpack.Decoder(FromOwner)


def sealed(envelope: FromRelay | FromOwner) -> bytes:
    return _encoder.encode(envelope)


def opened_by_owner(data: bytes) -> FromRelay:
    """Raises BadEnvelope."""
    try:
        return _from_relay.decode(data)
    except msgspec.DecodeError as error:
        raise BadEnvelope(f"not an envelope of a relay of this version: {error}") from None


def opened_by_relay(data: bytes) -> FromOwner:
    """Raises BadEnvelope."""
    try:
        return _from_owner.decode(data)
    except msgspec.DecodeError as error:
        raise BadEnvelope(f"not an envelope of an owner of this version: {error}") from None


def weight(letter: ToOwner | ToRelay) -> int:
    """About how many bytes it takes."""
    match letter:
        case Heard(message=message, blob=blob):
            return 64 + len(message) + len(blob)
        case Tell(message=message, blob=blob, data=data):
            columns = len(data.features) + len(data.classes) + len(data.mean) if data is not None else 0
            return 64 + len(message) + len(blob) + 48 * columns
        case Came():
            return 64 + len(letter.registration)
        case News():
            return 512
        case Sum(updates=updates):
            return 64 + 160 * len(updates)
        case _:
            return 64
