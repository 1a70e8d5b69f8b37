"""The node protocol: every message between a node and its coordinator, as typed, frozen values.

JSON text over any ordered channel (a WebSocket in the hub), one message a frame, at most MAX_MESSAGE bytes,
told apart by `type`. Models and updates do not travel here but as blobs, named by their digest; only a small one may
be attached to the message that names it, which saves both sides a request. The frame is binary then: the length of
the JSON text as four bytes (big-endian), the text, and the blob.
A node opens the channel, sends `device:register`, and hears `device:registered` or `error`. One that
leaves for good closes with code 1001 (going away); after any other end it is expected back.
The published schema in docs/protocol.md is printed from these classes.
"""

from typing import Annotated, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from tutti.core.challenge import SIZE, WIDTH
from tutti.core.codec import NONE
from tutti.core.errors import UserError
from tutti.core.registry import Choice
from tutti.core.statistics import Statistics
from tutti.domain.events import Digest, NodeId
from tutti.domain.nodes import Capabilities, DataSummary, Terms
from tutti.domain.signing import Count, Domain, PublicKey, SignatureHex
from tutti.domain.spec import DataSchema, Metrics, Name, Training

_M = TypeVar("_M")

PROTOCOL = 1
"""Version of this protocol; a coordinator refuses nodes that speak another one."""

MAX_MESSAGE = 64 * 1024

MAX_ATTACHED = 64 * 1024
"""Bytes of a blob that this version sends and takes with a message."""

MAX_FRAME = 4 + MAX_MESSAGE + MAX_ATTACHED

JobId: TypeAlias = Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,64}$(?!\n)")]
Blob: TypeAlias = Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?$(?!\n)")]
_Size: TypeAlias = Annotated[int, Meta(ge=0, le=2**31)]


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    pass


# -- node to coordinator -----------------------------------------------------------------------------


class Offer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a node that also is a worker on the compute market asks and offers; see `WorkerRegistered`."""

    stake: Annotated[int, Meta(ge=1, le=2**53)]
    price: Annotated[int, Meta(ge=1, le=2**53)] = 1
    kinds: Annotated[tuple[Name, ...], Meta(max_length=100)] = ()
    owner: Annotated[str, Meta(max_length=100)] = ""


class Registration(Message, frozen=True, kw_only=True, tag="device:register"):
    """The first message of a connection: who, with what proof, on what machine, with what data.

    `attached`: the largest blob in bytes that this node takes attached to a message. `codecs`: what it can encode its
    updates with. `offer`: it is a worker, too.
    `sealing`: its public key, if it is a peer that takes parts of uploaded tables. `key`: with which it signs its
    updates; once it has named one, it keeps to it.
    """

    protocol: int
    node: Name
    token: Annotated[str, Meta(max_length=512)]
    capabilities: Capabilities
    data: DataSummary
    terms: Terms = Terms()
    attached: _Size = 0
    codecs: Annotated[tuple[Name, ...], Meta(max_length=100)] = ()
    offer: Offer | None = None
    sealing: Blob = ""
    key: PublicKey = ""


class Heartbeat(Message, frozen=True, kw_only=True, tag="device:heartbeat"):
    """Alive. `cpu` and `memory` are the shares of the machine in use, 0 to 1; `open` as in Terms."""

    cpu: float = 0.0
    memory: float = 0.0
    battery: float | None = None
    open: bool = True


class Progress(Message, frozen=True, kw_only=True, tag="training:progress"):
    """Work goes on: this renews the lease. `done` is the share of the task, 0 to 1."""

    job: JobId
    round: int
    attempt: int
    done: float
    epoch: int = 0
    loss: float | None = None


class Submission(Message, frozen=True, kw_only=True, tag="weights:submit"):
    """The work is done; for training, the update is already stored under `digest`, or attached.

    `facts` are the numbers that the strategy asks of its nodes, such as how many steps they took. A node that has named
    a key signs job, round, the model that it was given, `digest`, `weight` and `nonce` (EIP-712): it counts `nonce` up
    from 0 with each other update that it signs for this round. `received`: bytes of the model that it was sent for
    this, whole or in steps.
    """

    job: JobId
    round: int
    attempt: int
    digest: Blob = ""
    weight: int = 1
    facts: Metrics = {}
    metrics: Metrics = {}
    seconds: float = 0.0
    received: _Size | None = None
    nonce: Count = 0
    signature: SignatureHex = ""


class Failure(Message, frozen=True, kw_only=True, tag="training:failed"):
    """This node will not deliver this round: its owner forbids it, or the work broke."""

    job: JobId
    round: int
    attempt: int
    reason: Annotated[str, Meta(max_length=1000)]


class Described(Message, frozen=True, kw_only=True, tag="data:described"):
    """The answer to Describe: statistics of some columns, of `least` rows or more each, or why there are none.

    `least` is its owner's. A node repeats what it told first.
    """

    id: str
    least: int = 0
    statistics: Statistics | None = None
    reason: Annotated[str, Meta(max_length=1000)] = ""


class Computing(Message, frozen=True, kw_only=True, tag="compute:progress"):
    """Work on a compute job goes on: this renews the lease."""

    job: JobId
    attempt: int


class Committed(Message, frozen=True, kw_only=True, tag="compute:commit"):
    """There is a result. `commitment` is the SHA-256 of six lines: `tutti market commitment 1`, job, attempt, node,
    digest and nonce.
    """

    job: JobId
    attempt: int
    commitment: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]


class Computed(Message, frozen=True, kw_only=True, tag="compute:result"):
    """The result is stored under `digest`, or attached; `nonce` opens the commitment."""

    job: JobId
    attempt: int
    digest: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
    nonce: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]


class Declined(Message, frozen=True, kw_only=True, tag="compute:failed"):
    """This node will not deliver: its owner forbids it, or the work broke."""

    job: JobId
    attempt: int
    reason: Annotated[str, Meta(max_length=1000)]


class Measured(Message, frozen=True, kw_only=True, tag="compute:measured"):
    """The answer to Measure; empty if it cannot be found here, as on a machine without a GPU."""

    id: str
    answer: Annotated[bytes, Meta(max_length=SIZE * WIDTH)] = b""


NodeMessage: TypeAlias = (
    Registration
    | Heartbeat
    | Progress
    | Submission
    | Failure
    | Described
    | Computing
    | Committed
    | Computed
    | Declined
    | Measured
)


# -- coordinator to node -----------------------------------------------------------------------------


class Registered(Message, frozen=True, kw_only=True, tag="device:registered"):
    """Welcome. Send a heartbeat every `heartbeat` seconds, progress at least every `progress` seconds.

    `attached`: the largest update in bytes that may come attached to its submission.
    """

    node: NodeId
    protocol: int = PROTOCOL
    version: str = ""
    heartbeat: float = 15.0
    progress: float = 5.0
    attached: _Size = 0


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What leads from the model `base` to the next one: a file of the kind in which updates travel by codec."""

    base: Blob
    digest: Blob


class Start(Message, frozen=True, kw_only=True, tag="training:start"):
    """Work to do. `seed` is this node's own for this round; `settings` come from the strategy; `share` is how much of
    its local work it should do, being slow: of its steps, or first of each batch, down to half, as `less_of` says.

    The node runs its half of `strategy`. `weights` is a model, or the strategy's whole state where nodes need it;
    `counted` is the newest round of this job in which an update of this node counted (0: none), from which it
    goes on with what it keeps to itself. `codec` is how its update is to travel, one that it named; with `auto` it
    takes one that suits its link. `steps` lead one after another to the model, for a node that holds one of their
    bases; where they lead elsewhere, or cannot be had, it fetches the model. `domain` is where its signature is to
    hold. `trace` is the round's `traceparent`,
    where the coordinator traces. A node that is told twice of the same work does it once.
    """

    job: JobId
    name: Name
    round: int
    attempt: int
    rounds: int
    task: Literal["train", "evaluate"]
    model: Choice
    data: DataSchema
    weights: Digest
    seed: int
    cohort: int
    training: Training
    share: Annotated[float, Meta(gt=0, le=1)] = 1.0
    less_of: Literal["steps", "batch"] = "steps"
    strategy: Choice = Choice("fedavg")
    settings: dict[str, float] = {}
    counted: int = 0
    codec: Choice = NONE
    steps: Annotated[tuple[Step, ...], Meta(max_length=16)] = ()
    evaluate: bool = False
    domain: Domain = Domain()
    trace: Annotated[str, Meta(max_length=64)] = ""


class Halt(Message, frozen=True, kw_only=True, tag="training:stop"):
    """Drop this work: the round closed without it, or the job ended."""

    job: JobId
    round: int
    attempt: int
    reason: str


class GlobalWeights(Message, frozen=True, kw_only=True, tag="weights:global"):
    """A round closed and made this model."""

    job: JobId
    round: int
    weights: Digest
    metrics: Metrics = {}
    final: bool = False


class Verdict(Message, frozen=True, kw_only=True, tag="weights:verdict"):
    """The definite answer to a submission: it counts, or it does not, and why.

    `resend`: the update's bytes were lost here; store them again and submit again.
    """

    job: JobId
    round: int
    attempt: int
    accepted: bool
    reason: str = ""
    resend: bool = False


class Refusal(Message, frozen=True, kw_only=True, tag="error"):
    """What was wrong with the last message. `fatal`: do not come back without a person's help."""

    code: str
    detail: str
    fatal: bool = False


class Describe(Message, frozen=True, kw_only=True, tag="data:describe"):
    """Tell statistics of the training rows: of these columns, and of no fewer rows than the owner's limit.

    `nodes` is how many nodes are asked, for owners who want company.
    """

    id: str
    nodes: int
    first: Annotated[int, Meta(ge=0)] = 0
    columns: Annotated[int, Meta(ge=1, le=16)] = 16


class Compute(Message, frozen=True, kw_only=True, tag="compute:start"):
    """Do this compute job on the table `data`, and commit to the result. Told twice of the same attempt, do it once."""

    job: JobId
    attempt: int
    kind: Choice
    data: Digest
    seed: int


class Show(Message, frozen=True, kw_only=True, tag="compute:reveal"):
    """All workers have committed: store the result, and say so."""

    job: JobId
    attempt: int


class Over(Message, frozen=True, kw_only=True, tag="compute:over"):
    """This attempt is over: it was `accepted`, or why not. `paid` is what it earned."""

    job: JobId
    attempt: int
    accepted: bool = False
    paid: int = 0
    reason: str = ""


class Measure(Message, frozen=True, kw_only=True, tag="compute:measure"):
    """Solve the problem of `tutti.core.challenge` at once, on the processor or the GPU: the time until the answer
    counts.
    """

    id: str
    seed: int
    steps: Annotated[int, Meta(ge=1, le=100_000)]
    gpu: bool = False


class Assign(Message, frozen=True, kw_only=True, tag="session:assign"):
    """Take this part of an uploaded table, which is sealed for you, and come back holding it (see wire/parts.py)."""

    session: JobId
    part: Digest


class Dismiss(Message, frozen=True, kw_only=True, tag="session:dismiss"):
    """The session is over: forget its part, and come back without."""

    session: JobId


CoordinatorMessage: TypeAlias = (
    Registered
    | Start
    | Halt
    | GlobalWeights
    | Verdict
    | Refusal
    | Describe
    | Compute
    | Show
    | Over
    | Measure
    | Assign
    | Dismiss
)


class BadMessage(UserError):
    """A frame that is not a message of this protocol."""


_node_decoder: msgspec.json.Decoder[NodeMessage] = msgspec.json.Decoder(NodeMessage)
_coordinator_decoder: msgspec.json.Decoder[CoordinatorMessage] = msgspec.json.Decoder(CoordinatorMessage)
_encoder = msgspec.json.Encoder()


def encode(message: Message) -> bytes:
    """UTF-8 JSON, for one text frame."""
    return _encoder.encode(message)


def attach(message: Message, blob: bytes | bytearray | memoryview) -> bytes:
    """A binary frame: the message, and the blob that it names."""
    text = _encoder.encode(message)
    return b"".join((len(text).to_bytes(4, "big"), text, blob))


def detach(frame: bytes) -> tuple[memoryview, bytes]:
    """The JSON text of a binary frame, and the blob attached to it. Raises BadMessage."""
    if len(frame) > MAX_FRAME:
        raise BadMessage(f"a binary frame may have {MAX_FRAME} bytes, this one has {len(frame)}")
    length = int.from_bytes(frame[:4], "big")
    if len(frame) < 4 or length > len(frame) - 4:
        raise BadMessage(f"expected four bytes of length and then the text, came {len(frame)} bytes in all")
    return memoryview(frame)[4 : 4 + length], frame[4 + length :]


def decode_from_node(frame: bytes | memoryview | str) -> NodeMessage:
    """Raises BadMessage, naming the field, for anything that is not a valid message of a node."""
    return _decode(_node_decoder, frame)


def decode_from_coordinator(frame: bytes | memoryview | str) -> CoordinatorMessage:
    return _decode(_coordinator_decoder, frame)


def _decode(decoder: "msgspec.json.Decoder[_M]", frame: bytes | memoryview | str) -> "_M":
    if len(frame) > MAX_MESSAGE:
        raise BadMessage(f"a message may have {MAX_MESSAGE} bytes, this one has {len(frame)}")
    try:
        return decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(f"not a message of protocol {PROTOCOL}: {error}") from None
