"""Work on what strangers have sent: beside the event loop, and no longer and with no more memory than it is given."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from tutti.core.errors import TuttiError

T = TypeVar("T")


class GivenUp(TuttiError):
    """The work took longer than it may, or its process died, as of too little memory."""


class Apart(Protocol):
    async def run(self, function: Callable[..., T], *given: object, seconds: float) -> T:
        """What a module's function gives; raises what it raises, and GivenUp."""
        ...

    async def close(self) -> None:
        """End what goes on; nothing runs afterwards."""
        ...
