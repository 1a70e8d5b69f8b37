"""Accounts in memory, for tests and for coordinators that are gone when they end."""

from collections.abc import Sequence

from tutti.core.errors import StorageError
from tutti.domain.accounts import AuditEntry, Record, key_of


class MemoryAccounts:
    def __init__(self) -> None:
        self._records: dict[tuple[str, str], Record] = {}
        self._audit: list[AuditEntry] = []
        self._closed = False

    async def load(self) -> list[Record]:
        self._check_open()
        return list(self._records.values())

    async def write(
        self, put: Sequence[Record] = (), *, delete: Sequence[Record] = (), audit: Sequence[AuditEntry] = ()
    ) -> None:
        self._check_open()
        for record in delete:
            self._records.pop(key_of(record), None)
        self._records |= {key_of(record): record for record in put}
        self._audit += audit

    async def audit(
        self,
        after: int = 0,
        limit: int = 100,
        *,
        organisation: str | None = None,
        who: str | None = None,
        newest: bool = False,
    ) -> list[tuple[int, AuditEntry]]:
        self._check_open()
        found = [
            (number, entry)
            for number, entry in enumerate(self._audit, start=1)
            if organisation in (None, entry.organisation) and who in (None, entry.who)
        ]
        if newest:
            return [each for each in reversed(found) if not after or each[0] < after][:limit]
        return [each for each in found if each[0] > after][:limit]

    async def close(self) -> None:
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError("the account store is closed")
