"""Letters between the replicas of one coordinator, each of which is known by a name that it has while it runs."""

from collections.abc import AsyncIterator
from typing import Protocol

from tutti.core.errors import TuttiError


class PostLost(TuttiError):
    """The post cannot be reached, or whom a letter is for does not read: it may or may not arrive."""


class Post(Protocol):
    """Letters of one sender to one receiver keep their order, mostly; some may be lost or come twice.

    Bounded: sending waits while too many letters wait for their receiver. Whoever needs more numbers its letters.
    """

    async def send(self, to: str, letter: bytes) -> None:
        """Raises PostLost."""
        ...

    def letters(self, name: str) -> AsyncIterator[bytes]:
        """What is sent to this name, for ever; a post that is away meanwhile is waited for."""
        ...

    @property
    def trouble(self) -> str:
        """Why it cannot be reached now; empty while it can."""
        ...

    async def close(self) -> None: ...
