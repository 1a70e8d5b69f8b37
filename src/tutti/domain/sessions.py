"""Sessions: a table that somebody uploads, split among peers that wait for one, and trained on where each part lies."""

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from tutti.domain.event import Digest, Event
from tutti.domain.spec import JobSpec, Positive

IDLE = "idle"
"""The data set of a peer that waits."""

PREFIX = "session-"


class PeerTraining(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Hyper-parameters of one peer, where they differ from the session's."""

    epochs: Positive | None = None
    batch_size: Positive | None = None
    lr: Annotated[float, Meta(gt=0, le=1000)] | None = None


class ColumnReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was made of a column. `categories` of a category or of classes; `missing` is how many cells were empty."""

    name: str
    role: Literal["target", "number", "category", "left out"]
    note: str = ""
    missing: int = 0
    categories: tuple[str, ...] = ()


class PeerPart(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a peer was given: the sealed part, and how it can be known again once it is open."""

    sealed: Digest
    rows: int
    data: Digest
    training: PeerTraining = PeerTraining()


class SessionStarted(Event, frozen=True, kw_only=True):
    """`dropped`: rows without a target. The job is submitted once the peers hold their parts."""

    session: str
    by: str
    peers: dict[str, PeerPart]
    spec: JobSpec
    report: tuple[ColumnReport, ...]
    rows: int
    dropped: int = 0


class SessionEnded(Event, frozen=True, kw_only=True):
    """The peers are free again."""

    session: str
    status: Literal["COMPLETED", "STOPPED", "FAILED"]
    reason: str = ""


SessionEvent: TypeAlias = SessionStarted | SessionEnded


def dataset_of(session: str) -> str:
    return f"{PREFIX}{session}"
