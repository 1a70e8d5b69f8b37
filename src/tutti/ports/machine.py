"""The machine that a node runs on."""

from dataclasses import dataclass
from typing import Protocol

from tutti.domain.nodes import Capabilities


@dataclass(frozen=True, slots=True)
class Load:
    """Shares of the machine in use, and of the battery's charge, 0 to 1; None where there is no battery.

    `plugged`: the machine need not live on its battery.
    """

    cpu: float
    memory: float
    battery: float | None = None
    plugged: bool = False


class Host(Protocol):
    def capabilities(self) -> Capabilities:
        """What the machine has; may take seconds, so it is asked once."""
        ...

    def load(self) -> Load:
        """How busy it is now, since the last call; asked with every heartbeat, so it is fast."""
        ...
