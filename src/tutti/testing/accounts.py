"""What every AccountStore must do. Inherit, and say how to make an empty one:

    class TestMyAccounts(AccountSuite):
        @pytest.fixture
        async def store(self) -> AsyncIterator[AccountStore]:
            store = await MyAccounts.open()
            yield store
            await store.close()

Needs pytest-asyncio in its auto mode.
"""

import asyncio

import pytest
from msgspec.structs import replace

from tutti.core.errors import StorageError
from tutti.domain.accounts import Account, ApiToken, AuditEntry, Organisation, Record, Session, key_of
from tutti.ports.accounts import AccountStore

HOME = Organisation(name="Charité · Berlin", created_at=1.5, host=True)
ADA = Account(name="ada@example.org", organisation=HOME.name, role="admin", password="hash", created_at=2.0)  # noqa: S106
SESSION = Session(
    id="s1",
    account=ADA.name,
    token="a" * 64,
    created_at=3.0,
    expires_at=1e9 + 0.25,
    origin="::1",
)
TOKEN = ApiToken(id="s1", account=ADA.name, label="nightly", role="viewer", token="b" * 64, created_at=4.0)
RECORDS: tuple[Record, ...] = (HOME, ADA, SESSION, TOKEN)


def entry(number: int, who: str = ADA.name, organisation: str = HOME.name) -> AuditEntry:
    return AuditEntry(
        at=float(number),
        who=who,
        organisation=organisation,
        origin="127.0.0.1",
        action="POST /api/v1/jobs",
        target=f"job-{number}",
        outcome=201,
    )


def sorted_by_key(records: list[Record]) -> list[Record]:
    return sorted(records, key=key_of)


class AccountSuite:
    @pytest.fixture
    def store(self) -> AccountStore:
        raise NotImplementedError("return an empty store")

    async def test_empty(self, store: AccountStore) -> None:
        assert (await store.load(), await store.audit()) == ([], [])

    async def test_what_is_written_is_loaded(self, store: AccountStore) -> None:
        await store.write(RECORDS)
        assert sorted_by_key(await store.load()) == sorted_by_key(list(RECORDS))

    async def test_a_record_replaces_the_one_of_its_key(self, store: AccountStore) -> None:
        await store.write(RECORDS)
        await store.write([replace(ADA, role="viewer")])
        assert replace(ADA, role="viewer") in await store.load()
        assert len(await store.load()) == len(RECORDS)

    async def test_deleting_takes_records_of_that_kind_only(self, store: AccountStore) -> None:
        await store.write(RECORDS)
        await store.write(delete=[SESSION, replace(ADA, name="nobody")])
        assert sorted_by_key(await store.load()) == sorted_by_key([HOME, ADA, TOKEN])

    async def test_one_write_deletes_before_it_puts(self, store: AccountStore) -> None:
        await store.write([SESSION])
        newer = replace(SESSION, token="c" * 64)
        await store.write([newer], delete=[SESSION])
        assert await store.load() == [newer]

    async def test_the_audit_log_keeps_order(self, store: AccountStore) -> None:
        await asyncio.gather(*(store.write(audit=[entry(2 * i), entry(2 * i + 1)]) for i in range(20)))
        found = await store.audit(limit=1000)
        numbers = [number for number, _ in found]
        assert numbers == sorted(set(numbers))
        assert sorted(e.at for _, e in found) == [float(i) for i in range(40)]
        assert all(second.at == first.at + 1 for (_, first), (_, second) in zip(found[::2], found[1::2], strict=True))

    async def test_the_audit_log_by_page_organisation_and_person(self, store: AccountStore) -> None:
        await store.write(audit=[entry(1), entry(2, who="bob"), entry(3, organisation="clinic"), entry(4)])
        everything = await store.audit()
        assert await store.audit(everything[0][0], 2) == everything[1:3]
        assert [e.at for _, e in await store.audit(organisation=HOME.name)] == [1.0, 2.0, 4.0]
        assert [e.at for _, e in await store.audit(who="bob")] == [2.0]
        assert [e.at for _, e in await store.audit(organisation="clinic", who="bob")] == []
        assert await store.audit(newest=True) == everything[::-1]
        assert await store.audit(0, 2, newest=True) == everything[:1:-1]
        assert await store.audit(everything[2][0], newest=True) == everything[1::-1]
        assert [e.at for _, e in await store.audit(organisation=HOME.name, limit=2, newest=True)] == [4.0, 2.0]

    async def test_a_closed_store_says_so(self, store: AccountStore) -> None:
        await store.close()
        await store.close()
        with pytest.raises(StorageError, match="closed"):
            await store.write([HOME])
        with pytest.raises(StorageError, match="closed"):
            await store.load()
