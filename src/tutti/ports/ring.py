"""How the members of a ring reach one another."""

from typing import Protocol

from tutti.ring.identifiers import Peer
from tutti.ring.member import View


class Peers(Protocol):
    async def ask(self, peer: Peer, key: int, asker: Peer | None) -> View | None:
        """The peer's view towards `key`; None if it gives no answer in time, or is no member."""
        ...

    async def tell(self, peer: Peer, me: Peer) -> None:
        """Tell the peer that `me` exists; no error if it does not hear."""
        ...
