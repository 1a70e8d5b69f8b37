"""The notary: a public record of what was trained, and of who contributed, that nobody can change afterwards."""

from typing import Protocol

from tutti.domain.events import NodeEquivocated


class Notary(Protocol):
    """Each call is carried out once, however often it is made. Hashes are 64 hex digits.

    Raises Unavailable if it is not known whether it was: call again.
    """

    async def open_session(self, job: str, spec: str, data: str, rounds: int) -> None:
        """A job begins; `spec` and `data` are hashes of what it was asked to do, and on which kind of data."""
        ...

    async def record_round(self, job: str, round: int, root: str, count: int, model: str) -> None:
        """`root` of the Merkle tree over a round's `count` contributions, and the model that they made."""
        ...

    async def accuse(self, proof: NodeEquivocated) -> None:
        """A node has signed two different updates under one number; whoever looks sees that for themselves."""
        ...

    async def close_session(self, job: str, model: str | None) -> None:
        """A job is over; its model, if there is one."""
        ...
