"""Where accounts are kept, and how passwords are made unreadable."""

from collections.abc import Sequence
from typing import Protocol

from tutti.domain.accounts import AuditEntry, Record


class AccountStore(Protocol):
    async def load(self) -> list[Record]:
        """Everything but the audit log, in no particular order."""
        ...

    async def write(
        self, put: Sequence[Record] = (), *, delete: Sequence[Record] = (), audit: Sequence[AuditEntry] = ()
    ) -> None:
        """Store records under their `key_of`, delete others and add to the audit log: all of it or nothing.

        It survives loss of power once this returns. Raises StorageError; then nothing was written.
        """
        ...

    async def audit(
        self,
        after: int = 0,
        limit: int = 100,
        *,
        organisation: str | None = None,
        who: str | None = None,
        newest: bool = False,
    ) -> list[tuple[int, AuditEntry]]:
        """Entries with their numbers, which grow, in order; those above `after`, of one organisation or person.

        `newest`: from the end; those below `after`, unless it is 0.
        """
        ...

    async def close(self) -> None: ...


class Passwords(Protocol):
    """Hashing takes a while, on purpose: it happens off the event loop, a few at a time."""

    async def hash(self, password: str) -> str: ...

    async def verify(self, hash: str, password: str) -> bool:
        """False for a wrong password, and for a hash that cannot be read."""
        ...
