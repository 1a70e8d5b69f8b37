"""The journal of transactions: each stands here, signed, before it leaves.

A transaction is signed at several prices at once, all under one number, so that at most one of them is ever in a
chain: no key is needed to send it again dearer. The order is in the chain when any of them is.
"""

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutti.core.errors import StorageError

SCHEMA = """
CREATE TABLE IF NOT EXISTS sent (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    what BLOB NOT NULL,
    sender TEXT NOT NULL,
    nonce INTEGER NOT NULL,
    hash TEXT NOT NULL, -- of the bid that is in a block, or that is sent now
    raw BLOB NOT NULL,
    cost TEXT NOT NULL, -- wei, at most: more than 64 bits hold
    block INTEGER
);
CREATE INDEX IF NOT EXISTS sent_block ON sent (block);
CREATE TABLE IF NOT EXISTS failed ( -- in a block that stays; their keys may come again
    seq INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    what BLOB NOT NULL,
    sender TEXT NOT NULL,
    nonce INTEGER NOT NULL,
    hash TEXT NOT NULL,
    raw BLOB NOT NULL,
    cost TEXT NOT NULL,
    block INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS bids (
    seq INTEGER NOT NULL,
    price TEXT NOT NULL,
    hash TEXT NOT NULL,
    raw BLOB NOT NULL,
    cost TEXT NOT NULL,
    PRIMARY KEY (seq, hash)
);
"""


@dataclass(frozen=True, slots=True)
class Bid:
    """A transaction signed at one price: wei for a unit of gas, and `cost` altogether, at most."""

    price: int
    hash: str
    raw: bytes
    cost: int


@dataclass(frozen=True, slots=True)
class Sent:
    """`block`: where it was seen; None while it is not certain to be in a block, or that it carried out its order."""

    seq: int
    key: str
    what: bytes
    sender: str
    nonce: int
    hash: str
    raw: bytes
    cost: int
    block: int | None


class Journal:
    """One process owns the file. Raises StorageError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(SCHEMA)

    def close(self) -> None:
        self._db.close()

    def find(self, key: str) -> Sent | None:
        return next(iter(self._read("key = ?", key)), None)

    def done(self, after: int, limit: int) -> list[Sent]:
        """Those that were seen in a block, in the order of sending, behind a number."""
        return self._read("block IS NOT NULL AND seq > ? ORDER BY seq LIMIT ?", after, limit)

    def since(self, after: int) -> list[Sent]:
        """All behind a number, in the order of sending, wherever they are by now."""
        return self._read("seq > ? ORDER BY seq", after)

    def mined(self, after: int, limit: int) -> list[tuple[Sent, bool]]:
        """As `done`, and those that failed on the chain, with whether they did."""
        query = (
            "SELECT *, 0 FROM sent WHERE block IS NOT NULL AND seq > ? UNION ALL SELECT *, 1 FROM failed WHERE seq > ? "
            "ORDER BY seq LIMIT ?"
        )
        with self._errors():
            return [(_sent(row[:-1]), bool(row[-1])) for row in self._db.execute(query, (after, after, limit))]

    def unsure(self, final: int) -> list[Sent]:
        """Those that are not in a block up to `final`, in the order of sending: each may rest on those before it."""
        return self._read("block IS NULL OR block > ? ORDER BY seq", final)

    def used(self, sender: str, final: int) -> int:
        """The number behind those that a sender has used since a block."""
        query = "SELECT coalesce(max(nonce) + 1, 0) FROM sent WHERE sender = ? AND (block IS NULL OR block > ?)"
        with self._errors():
            (found,) = self._db.execute(query, (sender, final)).fetchone()
        return int(found)

    def told(self) -> list[bytes]:
        """What each is for, in the order of sending."""
        with self._errors():
            return [what for (what,) in self._db.execute("SELECT what FROM sent ORDER BY seq")]

    def newest(self) -> tuple[int, str]:
        """How many were seen in a block, and the hash of the last."""
        query = "SELECT hash FROM sent WHERE block IS NOT NULL ORDER BY seq DESC LIMIT 1"
        with self._errors():
            last = self._db.execute(query).fetchone()
            (count,) = self._db.execute("SELECT count(*) FROM sent WHERE block IS NOT NULL").fetchone()
        return count, last[0] if last else ""

    def bids(self, sent: Sent) -> list[Bid]:
        """At which prices it is signed, cheapest first."""
        with self._errors():
            rows = self._db.execute("SELECT price, hash, raw, cost FROM bids WHERE seq = ?", (sent.seq,)).fetchall()
        found = [Bid(int(price), hash, raw, int(cost)) for price, hash, raw, cost in rows]
        return sorted(found, key=lambda bid: bid.price) or [Bid(0, sent.hash, sent.raw, sent.cost)]

    def add(self, key: str, what: bytes, sender: str, nonce: int, bids: Sequence[Bid]) -> Sent:
        """A new one, of which the first bid is sent."""
        insert = "INSERT INTO sent (key, what, sender, nonce, hash, raw, cost) VALUES (?, ?, ?, ?, ?, ?, ?)"
        first = bids[0]
        with self._errors(), self._db:
            self._db.execute("BEGIN")
            values = (key, what, sender, nonce, first.hash, first.raw, str(first.cost))
            seq = self._db.execute(insert, values).lastrowid
            rows = [(seq, str(bid.price), bid.hash, bid.raw, str(bid.cost)) for bid in bids]
            self._db.executemany("INSERT INTO bids VALUES (?, ?, ?, ?, ?)", rows)
        assert seq is not None
        return Sent(seq, key, what, sender, nonce, first.hash, first.raw, first.cost, None)

    def adopt(self, sent: Sent) -> None:
        """Take over what another journal has."""
        fields = (sent.seq, sent.key, sent.what, sent.sender, sent.nonce, sent.hash, sent.raw, str(sent.cost))
        self._write("INSERT INTO sent VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", *fields, sent.block)

    def choose(self, sent: Sent, bid: Bid, block: int | None) -> None:
        """This bid is in a block, or (None) is the one to send."""
        if (bid.hash, block) != (sent.hash, sent.block):
            change = "UPDATE sent SET hash = ?, raw = ?, cost = ?, block = ? WHERE seq = ?"
            self._write(change, bid.hash, bid.raw, str(bid.cost), block, sent.seq)

    def forget(self, sent: Sent, failed: Bid | None, block: int) -> None:
        """It can never be carried out any more. `failed`: which bid failed in a block."""
        with self._errors(), self._db:
            self._db.execute("BEGIN")
            self._db.execute("DELETE FROM sent WHERE seq = ?", (sent.seq,))
            if failed is not None:
                fields = (
                    sent.seq,
                    sent.key,
                    sent.what,
                    sent.sender,
                    sent.nonce,
                    failed.hash,
                    failed.raw,
                    str(failed.cost),
                )
                self._db.execute("INSERT INTO failed VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*fields, block))
            self._db.execute("DELETE FROM bids WHERE seq = ?", (sent.seq,))

    def prune(self, final: int) -> None:
        """Bids for what stays where it is are waste paper."""
        self._write(
            "DELETE FROM bids WHERE seq IN (SELECT seq FROM bids JOIN sent USING (seq) WHERE block <= ?)", final
        )

    def _read(self, which: str, *values: Any) -> list[Sent]:
        with self._errors():
            rows = self._db.execute(f"SELECT * FROM sent WHERE {which}", values)  # noqa: S608 - only conditions of ours
            return [_sent(row) for row in rows]

    def _write(self, query: str, *values: Any) -> None:
        with self._errors():
            self._db.execute(query, values)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StorageError(f"cannot use the journal of transactions {self._path}: {error}") from error


def _sent(row: tuple[Any, ...]) -> Sent:
    seq, key, what, sender, nonce, hash, raw, cost, block = row
    return Sent(seq, key, what, sender, nonce, hash, raw, int(cost), block)
