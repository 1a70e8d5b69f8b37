"""How the members of a ring reach one another, and where each keeps what they have agreed on."""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from tutti.domain.events import Digest
from tutti.ring.consensus import AnyMessage, Durable
from tutti.ring.identifiers import Peer
from tutti.ring.member import View
from tutti.ring.record import Record


class Peers(Protocol):
    async def ask(self, peer: Peer, key: int, asker: Peer | None) -> View | None:
        """The peer's view towards `key`; None if it gives no answer in time, or is no member."""
        ...

    async def tell(self, peer: Peer, me: Peer) -> None:
        """Tell the peer that `me` exists; no error if it does not hear."""
        ...


class Placement(msgspec.Struct, frozen=True):
    """A data set that a client has divided among the members.

    Attributes:
        name: Of the data set.
        content: Digest of what it consists of: placed once more, it is the same placement.
        at: When it was placed: microseconds since 1970, by the client's clock. Of two, the later counts.
    """

    name: str
    content: Digest
    at: int


class Keepers(Protocol):
    """Members asked to keep parts of a data set; None and False if they give no answer in time, or refuse."""

    async def keep(self, peer: Peer, placement: Placement, digests: Sequence[Digest]) -> list[Digest] | None:
        """Ask it to keep these; which of them it lacks."""
        ...

    async def give(self, peer: Peer, digest: Digest) -> bool:
        """Send it a blob."""
        ...

    async def kept(
        self, peer: Peer, placement: Placement, digests: Sequence[Digest]
    ) -> tuple[list[Digest], tuple[Peer, ...]] | None:
        """Which of these it owns and has copied, and who holds them."""
        ...


class ChainStore(Protocol):
    """Where a member keeps its chain, and what it has promised. All methods block on the disk."""

    def load(self) -> tuple[list[Record], Durable]:
        """Everything that was saved."""
        ...

    def save(self, records: Sequence[Record], durable: Durable) -> None:
        """Append records, in place of all at the height of the first or above, and replace what was promised.

        Both or neither; they survive loss of power once this returns. Raises StorageError.
        """
        ...

    def close(self) -> None: ...


class Voices(Protocol):
    async def agree(self, address: str, message: AnyMessage) -> None:
        """Send a message of agreement to a member; it may be lost."""
        ...
