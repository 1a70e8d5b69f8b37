"""How nodes are reached: the coordinator's side (Fabric) and the node's side (Link) of one channel."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from tutti.core.errors import TuttiError
from tutti.domain.events import Digest, NodeId, UpdateAccepted
from tutti.ports.blobs import Buffer
from tutti.wire.messages import CoordinatorMessage, NodeMessage, Registration
from tutti.wire.updates import Examined


@dataclass(frozen=True, slots=True)
class Arrived:
    """A node connected and its token was right; the registration comes without it. `age`: how long ago, in seconds.

    A second connection of one node replaces the first: a Left comes before this, and the first one's link raises
    LinkRefused, for else two processes with one name would replace each other for ever.
    """

    node: NodeId
    registration: Registration
    age: float = 0.0


@dataclass(frozen=True, slots=True)
class Left:
    """A connection ended. `took_leave`: the node said goodbye, and will not be back in a moment."""

    node: NodeId
    reason: str
    took_leave: bool = False


@dataclass(frozen=True, slots=True)
class Kept:
    """An update that another replica, `at`, was given and keeps, and what it found when it looked at it."""

    at: str
    seen: Examined


@dataclass(frozen=True, slots=True)
class Said:
    """`blob`: the bytes of the update that a submission names, if they came with it; they are not verified yet.

    `kept`: where they are, if a replica has looked at them already.
    """

    node: NodeId
    message: NodeMessage
    blob: bytes = b""
    kept: Kept | None = None


FabricEvent: TypeAlias = Arrived | Left | Said


class Fabric(Protocol):
    """The coordinator's side. Nodes are known by name; their connections come and go."""

    def events(self) -> AsyncIterator[FabricEvent]:
        """Everything nodes do, in order per node; bounded: a slow coordinator slows the nodes, nothing is lost.

        One listens at a time. Whoever begins to hears first who is connected already.
        """
        ...

    def send(self, node: NodeId, message: CoordinatorMessage, blob: Buffer = b"") -> bool:
        """Queue a message; False if the node is not connected or its queue is full (then it is disconnected).

        `blob`: the bytes of the model that the message names, if at hand: a fabric may send a small one along.

        Nothing is kept for absent nodes: whoever sends asks the state again when the node returns.
        """
        ...

    def disconnect(self, node: NodeId, reason: str) -> None:
        """Close the node's connection, if there is one; a Left follows."""
        ...


class NoSum(TuttiError):
    """A replica cannot add up what it keeps."""


class Summing(Protocol):
    """Replicas that keep updates and add them up."""

    def keeps(self, place: str) -> bool:
        """Whether that replica can still be asked."""
        ...

    def watch(self, gone: Callable[[], None]) -> None:
        """Call this whenever one cannot be asked any more."""
        ...

    async def sum_of(
        self, place: str, job: str, attempt: tuple[int, int], updates: Sequence[UpdateAccepted], size: int
    ) -> Digest:
        """Have it add up updates that it keeps, of so many bytes; the blob of their sum (wire.partials).

        Raises Unavailable if it is gone, NoSum if it is there and does not give one.
        """
        ...

    def leave(self, place: str, job: str) -> None:
        """Have it keep no more updates of this job, but pass them on."""
        ...


class LinkLost(TuttiError):
    """The coordinator cannot be reached now; connect again later."""


class LinkBusy(LinkLost):
    """The coordinator is there, and has no room for this node now: coming back at once would only cost it more."""


class LinkRefused(TuttiError):
    """The coordinator answered, and does not want this node (token, version, name); retrying does not help."""


class Link(Protocol):
    """A node's side: outbound connections only. Every method raises LinkLost when the coordinator is away."""

    async def connect(self, registration: Registration) -> AsyncIterator[CoordinatorMessage]:
        """Open the channel and register; the iterator yields messages (`Registered` first) and ends with LinkLost.

        Raises LinkRefused for a refusal that only a person can mend.
        """
        ...

    async def send(self, message: NodeMessage) -> None: ...

    async def fetch(self, digest: Digest) -> Buffer:
        """The bytes of a blob, verified; a download goes on where an interrupted one ended.

        Raises CorruptBlob, NotFound.
        """
        ...

    async def store(self, blob: Buffer, digest: Digest) -> None:
        """Upload a blob, resuming where an interrupted upload ended; raises TuttiError with the reason if refused.

        A small one may travel later, with the submission that names it.
        """
        ...
