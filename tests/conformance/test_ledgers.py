"""Every ledger against the suite; the SQLite one also on its file."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from pathlib import Path

import msgspec
import pytest

from support.services import CUT, alone, database
from tutti.adapters.identities.ed25519 import Ed25519Key, verify
from tutti.adapters.ledgers.postgres import PostgresEntries
from tutti.adapters.ledgers.signed import Entries, SignedLedger
from tutti.adapters.ledgers.sqlite import LedgerInUse, SqliteEntries, read_entries
from tutti.core.errors import StorageError
from tutti.domain import ledger as l
from tutti.domain.ledger import Account, BadChain, Found, Order, seal, verify_chain
from tutti.testing.ledgers import CAP, UNBONDING, Bench, LedgerSuite, post

KEY = Ed25519Key(b"k" * 32)


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now

    async def later(self, seconds: int) -> None:
        self.now += 1000 * seconds


async def opened(path: Path) -> SignedLedger:
    return await SignedLedger(SqliteEntries(path), KEY, Clock()).open()


async def bench_on(entries: Entries) -> AsyncIterator[Bench]:
    clock = Clock()
    ledger = await SignedLedger(entries, KEY, clock).open(Found(public_key="", unbonding=UNBONDING, cap=CAP))
    yield Bench(ledger, clock.later)
    await ledger.close()


class TestOnSqlite(LedgerSuite):
    @pytest.fixture
    async def bench(self, tmp_path):
        async for bench in bench_on(SqliteEntries(tmp_path / "ledger.sqlite")):
            yield bench


class TestOnPostgres(LedgerSuite):
    @pytest.fixture
    async def bench(self):
        async with database() as url:
            async for bench in bench_on(PostgresEntries(url)):
                yield bench


@pytest.fixture
async def filled(tmp_path):
    """The path of a ledger with some entries, closed."""
    path = tmp_path / "ledger.sqlite"
    ledger = await opened(path)
    await post(
        ledger,
        l.Mint(to="a", amount=100),
        l.Stake(account="a", amount=40),
        l.Escrow(escrow="e", payer="a", amount=10),
        l.Reward(escrow="e", to="b"),
    )
    await ledger.close()
    return path


async def test_it_is_there_again_after_a_restart(filled):
    ledger = await opened(filled)
    assert await ledger.account("a") == Account(free=50, staked=40)
    with pytest.raises(LedgerInUse):
        await opened(filled)
    first = (await post(ledger, l.Mint(to="a", amount=100)))[0]  # key k0: carried out before the restart
    assert first.reference == read_entries(filled)[1].hash
    await ledger.close()


async def test_anybody_can_verify_it_with_the_public_key(filled):
    entries = read_entries(filled)
    books = verify_chain(entries, verify, KEY.public, head=entries[2].hash)
    assert books.account("b") == Account(free=10)
    with pytest.raises(BadChain, match="not with yours"):
        verify_chain(entries, verify, Ed25519Key(b"x" * 32).public)


def forged(entry: l.Entry, **changes: object) -> l.Entry:
    """A change that keeps the hash right, as a forger without the key would make it."""
    return msgspec.structs.replace(seal(msgspec.structs.replace(entry, **changes), KEY.sign), signature=entry.signature)


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (lambda es: [*es[:2], *es[3:]], "missing"),
        (lambda es: es[1:], "missing"),
        (lambda es: [], "empty"),
        (lambda es: [*es[:2], msgspec.structs.replace(es[2], at=1), *es[3:]], "changed"),
        (lambda es: [es[0], forged(es[1], operation=l.Mint(to="a", amount=101)), *es[2:]], "not signed"),
        (lambda es: [*es[:-1], forged(es[-1], key="other")], "not signed"),
        (lambda es: [*es[:-1], msgspec.structs.replace(es[-1], signature="zz")], "hexadecimal"),
        (lambda es: [*es[:-1], seal(msgspec.structs.replace(es[-1], postings={"free:b": 10}), KEY.sign)], "means"),
        (lambda es: [*es[:-1], seal(msgspec.structs.replace(es[-1], key="k0"), KEY.sign)], "used before"),
        (
            lambda es: [
                *es,
                seal(msgspec.structs.replace(es[-1], seq=5, key="again", previous=es[-1].hash), KEY.sign),
            ],
            "should have been refused",
        ),
    ],
)
async def test_every_change_is_found_out(filled, tamper, said):
    with pytest.raises(BadChain, match=said):
        verify_chain(tamper(read_entries(filled)), verify, KEY.public)


async def test_a_chain_that_was_cut_short_is_found_out_by_its_head(filled):
    entries = read_entries(filled)
    verify_chain(entries[:-1], verify, KEY.public)
    with pytest.raises(BadChain, match="cut short"):
        verify_chain(entries[:-1], verify, KEY.public, head=entries[-1].hash)


async def test_a_changed_file_is_not_opened(filled):
    with closing(sqlite3.connect(filled)) as db, db:
        db.execute("UPDATE entries SET entry = replace(entry, '100', '900') WHERE seq = 1")
    with pytest.raises((BadChain, StorageError)):
        await opened(filled)


async def test_when_the_disk_refuses_nothing_has_happened(tmp_path):
    ledger = await opened(tmp_path / "l.sqlite")
    await post(ledger, l.Mint(to="a", amount=10))
    with closing(sqlite3.connect(tmp_path / "l.sqlite")) as other:
        other.execute("CREATE TRIGGER full BEFORE INSERT ON entries BEGIN SELECT raise(FAIL, 'disk full'); END")
        other.commit()
        with pytest.raises(StorageError, match="disk full"):
            await ledger.post(Order("t", l.Transfer(source="a", to="b", amount=4)))
        assert await ledger.account("a") == Account(free=10)
        other.execute("DROP TRIGGER full")
        other.commit()
    await ledger.post(Order("t", l.Transfer(source="a", to="b", amount=4)))
    assert await ledger.account("b") == Account(free=4)
    await ledger.close()
    verify_chain(read_entries(tmp_path / "l.sqlite"), verify, KEY.public)


async def test_after_close_orders_are_refused(tmp_path):
    ledger = await opened(tmp_path / "l.sqlite")
    waiting = [asyncio.ensure_future(post(ledger, l.Mint(to="a", amount=1), start=i)) for i in range(20)]
    await asyncio.sleep(0)
    await ledger.close()
    await ledger.close()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    done = sum(isinstance(outcome, list) for outcome in outcomes)
    assert len(read_entries(tmp_path / "l.sqlite")) == 1 + done
    with pytest.raises(StorageError, match="closed"):
        await post(ledger, l.Mint(to="a", amount=1))


# -- on PostgreSQL -------------------------------------------------------------------------------------------


async def test_two_that_write_to_one_ledger_make_one_chain():
    """As a coordinator does that was cut off, beside the one that took over."""
    async with database() as url:
        one, other = [await SignedLedger(PostgresEntries(url), KEY, Clock()).open() for _ in range(2)]
        await post(one, l.Mint(to="a", amount=20))
        sent = [Order(f"t{i}", l.Transfer(source="a", to="b", amount=1)) for i in range(30)]
        outcomes = await asyncio.gather(
            *(ledger.post(order) for order in sent for ledger in (one, other)), return_exceptions=True
        )
        assert sum(isinstance(outcome, l.InsufficientFunds) for outcome in outcomes) == 20  # 10 orders, by both
        for ledger in (one, other):
            await post(ledger, l.Mint(to=f"c{id(ledger)}", amount=1), start=id(ledger))
            assert await ledger.account("b") == Account(free=20)
        entries = await one.read(-1, 100)
        assert verify_chain(entries, verify, KEY.public).account("b") == Account(free=20)
        assert len(entries) == 1 + 1 + 20 + 2
        await one.close()
        await other.close()


async def test_it_goes_on_when_its_connections_were_cut():
    async with database() as url:
        ledger = await SignedLedger(PostgresEntries(url), KEY, Clock()).open()
        await post(ledger, l.Mint(to="a", amount=5))
        for number in range(3):
            await alone(url, CUT)
            order, receipt = Order(f"t{number}", l.Transfer(source="a", to="b", amount=1)), None
            while receipt is None:  # whoever does not know whether it was recorded posts it again
                with suppress(StorageError):
                    receipt = await ledger.post(order)
        assert await ledger.account("b") == Account(free=3)
        await ledger.close()
        again = await SignedLedger(PostgresEntries(url), KEY, Clock()).open()
        assert await again.account("b") == Account(free=3)
        await again.close()


async def test_a_changed_table_or_another_key_is_not_opened():
    async with database() as url:
        ledger = await SignedLedger(PostgresEntries(url), KEY, Clock()).open()
        await post(ledger, l.Mint(to="a", amount=100))
        await ledger.close()
        with pytest.raises(StorageError, match="closed"):
            await ledger.read(-1, 1)
        with pytest.raises(BadChain, match="not with yours"):
            await SignedLedger(PostgresEntries(url), Ed25519Key(b"x" * 32), Clock()).open()
        await alone(
            url, "UPDATE ledger SET entry = replace(encode(entry, 'escape'), '100', '900')::bytea WHERE seq = 1"
        )
        with pytest.raises(BadChain, match="entry 1 has been changed"):
            await SignedLedger(PostgresEntries(url), KEY, Clock()).open()


def test_a_key_file_is_made_once_and_kept_private(tmp_path):
    key = Ed25519Key.at(tmp_path / "keys" / "ledger.key")
    assert Ed25519Key.at(tmp_path / "keys" / "ledger.key").public == key.public
    assert (tmp_path / "keys" / "ledger.key").stat().st_mode & 0o777 == 0o600
    assert verify(key.public, b"message", key.sign(b"message"))
    assert not verify(key.public, b"another", key.sign(b"message"))
    assert not verify("no key", b"message", key.sign(b"message"))
