"""The ledger in one SQLite file: entries are only ever added, each chained to the one before and signed.

Balances are kept in memory and rebuilt, with every check, from the entries at each start. Orders that come while
one commit runs share the next. One process owns a ledger (flock on `<file>.lock`).
"""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tutti.adapters.identities.ed25519 import Ed25519Key, verify
from tutti.core.errors import Conflict, StorageError
from tutti.domain.ledger import Account, Books, Entry, Found, Order, Totals, check, seal, verify_chain
from tutti.domain.ledger.chain import START
from tutti.ports.ledger import Head, KeyReused, Receipt

SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    seq INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    entry BLOB NOT NULL
)
"""
INSERT = "INSERT INTO entries (seq, key, entry) VALUES (?, ?, ?)"
READ = "SELECT entry FROM entries WHERE seq > ? ORDER BY seq LIMIT ?"
FIND = "SELECT entry FROM entries WHERE key = ?"
LAST = "SELECT entry FROM entries ORDER BY seq DESC LIMIT 1"

GROUP = 256
"""Orders in one commit."""


class LedgerInUse(Conflict):
    """Another process owns this ledger."""


@dataclass(slots=True, eq=False)
class _Waiting:
    order: Order
    done: "asyncio.Future[Receipt]"


class SqliteLedger:
    """A Ledger, made by `open`. `clock` gives milliseconds since the epoch."""

    def __init__(self, path: Path, key: Ed25519Key, clock: Callable[[], int], files: ExitStack) -> None:
        self.path = path
        self._key, self._clock, self._files = key, clock, files
        self._db: sqlite3.Connection
        self._books = Books()
        self._last: Entry | None = None
        self._waiting: asyncio.Queue[_Waiting] = asyncio.Queue(maxsize=4096)
        self._writer: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()  # nobody reads balances while they are being changed
        self._stale = False
        self.closed = ""
        """Why nothing can be booked, if so."""

    @classmethod
    async def open(
        cls, path: Path, key: Ed25519Key, clock: Callable[[], int], rules: Found | None = None
    ) -> "SqliteLedger":
        """Open a ledger, or found one by `rules` (its public key is filled in).

        Raises LedgerInUse, StorageError, or BadChain if it was changed, or signed by another key.
        """
        with ExitStack() as stack:
            ledger = cls(path, key, clock, stack)
            await asyncio.to_thread(ledger._open, stack, rules or Found(public_key=key.public))
            ledger._files = stack.pop_all()
        ledger._writer = asyncio.create_task(ledger._write_all())
        return ledger

    async def post(self, order: Order) -> Receipt:
        check(order)
        if self.closed:
            raise Conflict(self.closed)
        if self._writer is None or self._writer.done():
            raise StorageError(f"the ledger {self.path} is closed")
        done: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        await self._waiting.put(_Waiting(order, done))
        return await done

    async def known(self, key: str) -> Receipt | None:
        async with self._turn:  # no commit runs
            entry = await asyncio.to_thread(self._find, key)
        return Receipt(key, entry.hash) if entry else None

    async def account(self, name: str) -> Account:
        async with self._turn:
            return (await self._present_books()).account(name)

    async def holders(self) -> dict[str, Account]:
        """What everybody holds, by name, of those who hold anything."""
        async with self._turn:
            books = await self._present_books()
            return {name: books.account(name) for name in books.holders()}

    async def totals(self) -> Totals:
        async with self._turn:
            return (await self._present_books()).totals()

    async def _present_books(self) -> Books:
        if self._stale:
            await asyncio.to_thread(self._load)
        return self._books

    @property
    def public_key(self) -> str:
        """With which every entry can be checked."""
        return self._key.public

    async def head(self) -> Head:
        async with self._turn:
            await self._present_books()
            assert self._last is not None
            return Head(self._last.seq + 1, self._last.hash, self._key.public)

    async def read(self, after: int, limit: int) -> list[Entry]:
        """At most `limit` entries behind number `after` (-1: from the founding on)."""
        return await asyncio.to_thread(read_entries, self.path, after, limit)

    async def close(self) -> None:
        """Orders that still wait are refused."""
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        writer.cancel()
        await asyncio.wait([writer])
        while not self._waiting.empty():
            waiting = self._waiting.get_nowait()
            if not waiting.done.done():
                waiting.done.set_exception(StorageError(f"the ledger {self.path} is closed"))
        self._files.close()

    # -- writing -----------------------------------------------------------------------------------------

    async def _write_all(self) -> None:
        while True:
            group = [await self._waiting.get()]
            while not self._waiting.empty() and len(group) < GROUP:
                group.append(self._waiting.get_nowait())
            async with self._turn:
                writing = asyncio.ensure_future(asyncio.to_thread(self._write, [waiting.order for waiting in group]))
                try:
                    await asyncio.wait([writing])
                finally:  # closing: the commit that runs is still told to those who wait for it
                    if not writing.done():
                        await asyncio.wait([writing])
                    error = writing.exception()
                    _tell(group, [error] * len(group) if error else writing.result())

    def _write(self, orders: Sequence[Order]) -> Sequence[Receipt | Exception]:
        """In a thread: decide on each as if those before it had been written, and write all of it at once."""
        if self._stale:
            self._load()
        outcomes: list[Receipt | Exception] = []
        before = self._last
        try:
            with _storage_errors("write", self.path), self._db:
                self._db.execute("BEGIN IMMEDIATE")
                for order in orders:
                    try:
                        outcomes.append(self._book(order))
                    except (StorageError, sqlite3.Error):
                        raise
                    except Exception as refusal:
                        outcomes.append(refusal)
        except StorageError:
            self._stale = self._last is not before  # in memory it has happened already
            raise
        return outcomes

    def _book(self, order: Order) -> Receipt:
        if (known := self._find(order.key)) is not None:
            if known.operation != order.operation:
                raise KeyReused(f"the key {order.key!r} was used for another operation: choose a new key")
            return Receipt(order.key, known.hash)
        last = self._last
        at = max(self._clock(), last.at if last else 0)  # a clock that is set back does not turn time round
        postings = self._books.decide(order.operation, at)
        entry = seal(
            Entry(
                seq=last.seq + 1 if last else 0,
                at=at,
                key=order.key,
                operation=order.operation,
                postings=postings,
                previous=last.hash if last else START,
            ),
            self._key.sign,
        )
        self._db.execute(INSERT, (entry.seq, entry.key, msgspec.json.encode(entry)))
        self._books.apply(entry.operation, entry.postings, entry.at)
        self._last = entry
        return Receipt(entry.key, entry.hash)

    def _find(self, key: str) -> Entry | None:
        with _storage_errors("read", self.path):
            row = self._db.execute(FIND, (key,)).fetchone()
        return msgspec.json.decode(row[0], type=Entry) if row is not None else None

    # -- opening -----------------------------------------------------------------------------------------

    def _open(self, stack: ExitStack, rules: Found) -> None:
        with _storage_errors("open", self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _lock(self.path, stack)
            self._db = stack.enter_context(closing(_connect(self.path)))
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute(SCHEMA)
            if self._db.execute(LAST).fetchone() is None:
                self._write([Order("founding", msgspec.structs.replace(rules, public_key=self._key.public))])
            self._load()

    def _load(self) -> None:
        with _storage_errors("read", self.path):
            self._books = verify_chain(_entries(self._db), verify, self._key.public)
            self._last = msgspec.json.decode(self._db.execute(LAST).fetchone()[0], type=Entry)
            self._stale = False


def read_entries(path: Path, after: int = -1, limit: int = -1) -> list[Entry]:
    """Entries of a ledger, in order, whoever owns it; all, or those behind a number. Raises StorageError."""
    with _storage_errors("read", path), closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
        return list(_entries(db, after, limit))


def _entries(db: sqlite3.Connection, after: int = -1, limit: int = -1) -> Iterator[Entry]:
    decoder = msgspec.json.Decoder(Entry)
    for (entry,) in db.execute(READ, (after, limit)):
        try:
            yield decoder.decode(entry)
        except msgspec.MsgspecError as error:
            raise StorageError(f"an entry of the ledger is damaged ({error}): restore the file from a copy") from None


def _tell(group: Sequence[_Waiting], outcomes: Sequence[Receipt | BaseException]) -> None:
    for waiting, outcome in zip(group, outcomes, strict=True):
        if waiting.done.done():  # cancelled
            continue
        if isinstance(outcome, Receipt):
            waiting.done.set_result(outcome)
        else:
            waiting.done.set_exception(outcome)


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)


def _lock(path: Path, stack: ExitStack) -> None:
    file = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LedgerInUse(f"the ledger {path} is in use by another process: stop it first") from None


@contextmanager
def _storage_errors(doing: str, path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StorageError(f"cannot {doing} the ledger {path}: {error}; nothing was recorded") from error
    except OSError as error:
        raise StorageError(f"cannot {doing} the ledger {path}: {error.strerror or error}") from error
