"""What is said through a message broker: JSON bodies, told apart by `type`, with the node protocol's messages in them.

A node listens on `peer.<name>.command`, the coordinator on `coordinator.<uid>.events`. To come in, a node makes a queue
that nobody else can use and that goes with its connection, and names it in REGISTER. There it hears ENABLE, with the
queue to report to; it listens on its command queue and says ENABLED. From then on both count what they say (`seq`, from
1 on, in one session), so that what comes twice or out of order is noticed, and put right; names of sessions grow, so
that what was for an older one is thrown away, and what is for a newer one tells of it. PULSE, on the node's own queue,
says that the coordinator lives; the broker tells the coordinator when that queue is gone. Models and updates do not
travel here: a node is told addresses with the work (TRAIN), or asks for one (ASK, ANSWER). With a coordinator that is
not called `main`, the node's queue is `peer.<name>@<uid>.command`.
"""

from typing import Annotated, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from tutti.domain.events import NodeId
from tutti.domain.spec import Name
from tutti.wire.messages import (
    MAX_MESSAGE,
    BadMessage,
    Blob,
    CoordinatorMessage,
    Halt,
    NodeMessage,
    Progress,
    Registration,
    Start,
    Submission,
)

_L = TypeVar("_L")

VERSION = 1
"""Of these messages; what has another one is not understood."""

MAX_LETTER = MAX_MESSAGE + 8 * 1024

Session: TypeAlias = Annotated[str, Meta(min_length=16, max_length=64)]
_Seq: TypeAlias = Annotated[int, Meta(ge=1, le=2**53)]
_Text: TypeAlias = Annotated[str, Meta(max_length=1000)]


class Letter(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    version: Literal[1] = 1


# -- node to coordinator -----------------------------------------------------------------------------


class Join(Letter, frozen=True, kw_only=True, tag="JOIN"):
    """Take me in: `token` is of a join link, `secret` what the node will show from now on."""

    token: Annotated[str, Meta(max_length=256)]
    node: Name
    secret: Annotated[str, Meta(min_length=32, max_length=256)]


class Register(Letter, frozen=True, kw_only=True, tag="REGISTER"):
    """The first letter of a session, whose name is random and known to node, coordinator and broker only."""

    session: Session
    registration: Registration


class Counted(Letter, frozen=True, kw_only=True):
    """A letter of a session, with its number."""

    session: Session
    seq: _Seq


class Enabled(Counted, frozen=True, kw_only=True, tag="ENABLED"):
    """The node listens for commands on `queue`."""

    queue: Annotated[str, Meta(max_length=255)]


class Beat(Counted, frozen=True, kw_only=True, tag="HEARTBEAT"):
    """How far the work is, with epoch and loss: with each epoch that takes a second, and every few seconds."""

    progress: Progress


class Done(Counted, frozen=True, kw_only=True, tag="DONE"):
    """The work is done; for training, the update is in the store."""

    submission: Submission


class Say(Counted, frozen=True, kw_only=True, tag="SAY"):
    message: NodeMessage


class Ask(Counted, frozen=True, kw_only=True, tag="ASK"):
    """Where can this blob be read, or stored? ANSWER has the same `id`."""

    id: int
    digest: Blob
    store: bool = False
    size: Annotated[int, Meta(ge=0)] = 0


class Leave(Counted, frozen=True, kw_only=True, tag="LEAVE"):
    """Goodbye for good: nobody need wait for this node."""


Event: TypeAlias = Join | Register | Enabled | Beat | Done | Say | Ask | Leave


# -- coordinator to node, on its command queue -------------------------------------------------------


class Train(Counted, frozen=True, kw_only=True, tag="TRAIN"):
    """Work to do. `link` is where the model can be read for a while, `store` where the update can be PUT, over
    the one of the work before.

    They are empty if the store gives no such addresses; ASK gives new ones.
    """

    work: Start
    link: str = ""
    store: str = ""


class Stop(Counted, frozen=True, kw_only=True, tag="STOP"):
    halt: Halt


class Tell(Counted, frozen=True, kw_only=True, tag="TELL"):
    message: CoordinatorMessage


Command: TypeAlias = Train | Stop | Tell


# -- coordinator to node, on the queue that is the node's own ----------------------------------------


class Joined(Letter, frozen=True, kw_only=True, tag="JOINED"):
    node: NodeId


class Enable(Letter, frozen=True, kw_only=True, tag="ENABLE"):
    """Welcome: report to `queue`. PULSE comes every `pulse` seconds.

    `blobs` is the address of a coordinator that hands out and takes blobs itself; if it is empty, ASK.
    """

    queue: str
    pulse: float
    blobs: str = ""


class Pulse(Letter, frozen=True, kw_only=True, tag="PULSE"):
    pass


class Answer(Letter, frozen=True, kw_only=True, tag="ANSWER"):
    """`status` is that of HTTP, `reason` goes with an error, and without a `link`."""

    id: int
    link: str = ""
    status: int = 200
    reason: _Text = ""


class Disable(Letter, frozen=True, kw_only=True, tag="DISABLE"):
    """The session is over. `fatal`: do not come back without a person's help."""

    reason: _Text
    fatal: bool = False


Notice: TypeAlias = Joined | Enable | Pulse | Answer | Disable

_encoder = msgspec.json.Encoder()
_events: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
_commands: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Command)
_notices: msgspec.json.Decoder[Notice] = msgspec.json.Decoder(Notice)


def encode(letter: Letter) -> bytes:
    return _encoder.encode(letter)


def decode_event(body: bytes) -> Event:
    """Raises BadMessage, naming the field, for anything that no node says."""
    return _decode(_events, body)


def decode_command(body: bytes) -> Command:
    return _decode(_commands, body)


def decode_notice(body: bytes) -> Notice:
    return _decode(_notices, body)


def reported(session: str, seq: int, message: NodeMessage) -> Beat | Done | Say:
    """A node's message as a letter."""
    match message:
        case Progress():
            return Beat(session=session, seq=seq, progress=message)
        case Submission():
            return Done(session=session, seq=seq, submission=message)
        case Registration():
            raise BadMessage("a registration begins a session, and comes once")
        case _:
            return Say(session=session, seq=seq, message=message)


def report_in(letter: Beat | Done | Say) -> NodeMessage:
    match letter:
        case Beat(progress=message) | Done(submission=message) | Say(message=message):
            return message


def commanded(session: str, seq: int, message: CoordinatorMessage, link: str = "", store: str = "") -> Command:
    """A coordinator's message as a letter."""
    match message:
        case Start():
            return Train(session=session, seq=seq, work=message, link=link, store=store)
        case Halt():
            return Stop(session=session, seq=seq, halt=message)
        case _:
            return Tell(session=session, seq=seq, message=message)


def command_in(letter: Command) -> CoordinatorMessage:
    match letter:
        case Train(work=message) | Stop(halt=message) | Tell(message=message):
            return message


def _decode(decoder: "msgspec.json.Decoder[_L]", body: bytes) -> "_L":
    if len(body) > MAX_LETTER:
        raise BadMessage(f"a letter may have {MAX_LETTER} bytes, this one has {len(body)}")
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(f"not a letter of version {VERSION}: {error}") from None
