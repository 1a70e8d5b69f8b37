"""The ledger: who has how many tokens, and every movement of them, once."""

from dataclasses import dataclass
from typing import Protocol

from tutti.core.errors import Conflict
from tutti.domain.ledger import Account, Order, Totals


class KeyReused(Conflict):
    """The idempotency key was used for another operation."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """An operation that was carried out.

    `reference` names it where it is recorded: an entry's hash, or a transaction's.
    """

    key: str
    reference: str


@dataclass(frozen=True, slots=True)
class Head:
    """How far a ledger has come: what was recorded, and the newest of it by its hash.

    `public_key` is whose signature every entry has; empty on a chain, where each has its sender's.
    """

    entries: int
    hash: str
    public_key: str = ""


class Ledger(Protocol):
    async def post(self, order: Order) -> Receipt:
        """Carry out an operation, durably, or refuse it and change nothing.

        The same order again gives the same receipt. Raises KeyReused; BadOperation; a Conflict such as
        InsufficientFunds; NotFound for an escrow that is not there; StorageError or Unavailable when it is not
        known whether the operation was recorded: post it again with its key.
        """
        ...

    async def known(self, key: str) -> Receipt | None:
        """The receipt of the order with this key, if it was carried out; raises as `post` does if that is not known."""
        ...

    async def account(self, name: str) -> Account:
        """What an account holds; nothing, if it has never been heard of."""
        ...

    async def holders(self) -> dict[str, Account]:
        """What everybody holds, by name, of those who hold anything and whom an order has named."""
        ...

    async def totals(self) -> Totals: ...

    async def head(self) -> Head: ...

    async def close(self) -> None: ...
