"""The event log: append-only, durable, totally ordered."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from tutti.core.errors import StorageError, TuttiError
from tutti.domain.events import AnyEvent


class VersionConflict(TuttiError):
    """Somebody else appended to the stream since it was read; nothing was written."""


class LogLost(StorageError):
    """Another process owns the log now, or may: end this one, and start it anew."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event with its place: `offset` counts all events from 1, `version` those of the stream from 1."""

    offset: int
    stream: str
    version: int
    event: AnyEvent


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns a log: its fencing token, the name that it has while it runs, and where other replicas reach it."""

    token: int
    name: str
    url: str


@runtime_checkable
class Leased(Protocol):
    """What a log says beside, that several processes may own one after another."""

    @property
    def token(self) -> int:
        """The fencing token of this owner: each has a higher one than the one before."""
        ...

    @property
    def lease_left(self) -> float:
        """Seconds until others may take the log over, unless it is renewed."""
        ...


@runtime_checkable
class Trimmed(Protocol):
    """What a log can do beside, that is kept for years."""

    async def trim(self, stream: str, before: int) -> None:
        """Forget a stream's events of versions below `before`; all others keep their places. Raises StorageError.

        Trimming what is gone already changes nothing.
        """
        ...


class EventLog(Protocol):
    async def append(self, stream: str, version: int, events: Sequence[AnyEvent]) -> list[Recorded]:
        """Write all events or none; they survive loss of power once this returns.

        `version` is the stream's version as the caller knows it (0: no events yet). Raises VersionConflict,
        or StorageError (disk full, read-only); then nothing was written.
        """
        ...

    async def read(self, after: int = 0, *, stream: str | None = None, limit: int = 1000) -> list[Recorded]:
        """Events with an offset above `after`, in order, of one stream or of all."""
        ...

    def follow(self, after: int) -> AsyncIterator[list[Recorded]]:
        """Batches of all events above `after`, for ever: first the stored ones, then each as it is appended."""
        ...

    async def close(self) -> None: ...
