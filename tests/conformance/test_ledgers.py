"""Every ledger against the suite; the SQLite one also on its file."""

import asyncio
import sqlite3
from contextlib import closing

import msgspec
import pytest

from tutti.adapters.identities.ed25519 import Ed25519Key, verify
from tutti.adapters.ledgers.sqlite import LedgerInUse, SqliteLedger, read_entries
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


class TestSqliteLedger(LedgerSuite):
    @pytest.fixture
    async def bench(self, tmp_path):
        clock = Clock()
        rules = Found(public_key="", unbonding=UNBONDING, cap=CAP)
        ledger = await SqliteLedger.open(tmp_path / "ledger.sqlite", KEY, clock, rules)
        yield Bench(ledger, clock.later)
        await ledger.close()


@pytest.fixture
async def filled(tmp_path):
    """The path of a ledger with some entries, closed."""
    path = tmp_path / "ledger.sqlite"
    ledger = await SqliteLedger.open(path, KEY, Clock())
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
    ledger = await SqliteLedger.open(filled, KEY, Clock())
    assert await ledger.account("a") == Account(free=50, staked=40)
    with pytest.raises(LedgerInUse):
        await SqliteLedger.open(filled, KEY, Clock())
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
        await SqliteLedger.open(filled, KEY, Clock())


async def test_when_the_disk_refuses_nothing_has_happened(tmp_path):
    ledger = await SqliteLedger.open(tmp_path / "l.sqlite", KEY, Clock())
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
    ledger = await SqliteLedger.open(tmp_path / "l.sqlite", KEY, Clock())
    waiting = [asyncio.ensure_future(post(ledger, l.Mint(to="a", amount=1), start=i)) for i in range(20)]
    await asyncio.sleep(0)
    await ledger.close()
    await ledger.close()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    done = sum(isinstance(outcome, list) for outcome in outcomes)
    assert len(read_entries(tmp_path / "l.sqlite")) == 1 + done
    with pytest.raises(StorageError, match="closed"):
        await post(ledger, l.Mint(to="a", amount=1))


def test_a_key_file_is_made_once_and_kept_private(tmp_path):
    key = Ed25519Key.at(tmp_path / "keys" / "ledger.key")
    assert Ed25519Key.at(tmp_path / "keys" / "ledger.key").public == key.public
    assert (tmp_path / "keys" / "ledger.key").stat().st_mode & 0o777 == 0o600
    assert verify(key.public, b"message", key.sign(b"message"))
    assert not verify(key.public, b"another", key.sign(b"message"))
    assert not verify("no key", b"message", key.sign(b"message"))
