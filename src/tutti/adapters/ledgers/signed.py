"""The ledger as a chain of signed entries: only ever added to, each names the one before, wherever they are kept.

Balances are kept in memory and rebuilt, with every check, from the entries. Orders that come while one commit runs
share the next.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, Self, TypeAlias

import msgspec

from tutti.adapters.identities.ed25519 import Ed25519Key, verify
from tutti.core.errors import Conflict, StorageError, UserError
from tutti.domain.ledger import Account, Books, Entry, Found, Order, Totals, check, seal, verify_chain
from tutti.domain.ledger.chain import START
from tutti.domain.ledger.operations import UNBONDING, as_chosen
from tutti.ports.ledger import Head, KeyReused, Receipt

GROUP = 256
"""Orders in one commit."""

PAGE = 4096
"""Entries that are read at once."""

Decide: TypeAlias = Callable[[Mapping[str, Entry]], Sequence[Entry]]
"""Given the entries that have some of the keys already: the new ones, in order. It may take a while."""


class Overtaken(StorageError):
    """Another process has written entries of its own there: nothing was recorded."""


class Entries(Protocol):
    """Where entries are kept. Every method raises StorageError."""

    @property
    def where(self) -> str:
        """For people, without secrets."""
        ...

    async def open(self) -> None:
        """Raises UserError, FormatTooNew, LedgerInUse too."""
        ...

    async def read(self, after: int, limit: int) -> list[Entry]:
        """At most `limit` entries behind number `after`, in order."""
        ...

    async def extend(self, after: int, keys: Sequence[str], decide: Decide) -> None:
        """Add what `decide` makes of the entries with these keys, all of it or nothing.

        Raises Overtaken if the newest entry is not, or no longer, number `after` (-1: there is none). It survives loss
        of power once this returns. After another error it may have been written, and shows sooner or later.
        """
        ...

    async def close(self) -> None: ...


@dataclass(slots=True, eq=False)
class _Waiting:
    order: Order
    done: "asyncio.Future[Receipt]"


class SignedLedger:
    """A Ledger, once it is opened. `clock` gives milliseconds since the epoch.

    Two that write to one place are safe: an entry's number is there once, and who is overtaken reads the others'
    entries and decides anew.
    """

    def __init__(self, entries: Entries, key: Ed25519Key, clock: Callable[[], int]) -> None:
        self._entries, self._key, self._clock = entries, key, clock
        self._books = Books()
        self._last: Entry | None = None
        self._waiting: asyncio.Queue[_Waiting] = asyncio.Queue(maxsize=4096)
        self._writer: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()  # nobody reads balances while they are being changed
        self._stale = True
        self.closed = ""
        """Why nothing can be booked, if so."""

    async def open(self, rules: Found | None = None) -> Self:
        """Read what is there, or found a ledger by `rules` with our public key; by default stake unbonds for a week.

        Raises UserError, FormatTooNew, LedgerInUse, StorageError, or BadChain if it was changed, or is another key's.
        """
        await self._entries.open()
        try:
            if not await self._entries.read(-1, 1):
                await self._found(rules or Found(public_key=self._key.public, unbonding=UNBONDING))
            await self._load()
        except BaseException:
            await self._entries.close()
            raise
        self._writer = asyncio.create_task(self._write_all())
        return self

    async def check_key(self) -> None:
        """Raise UserError if what is there was founded with another key, which could not go on with it; else as `open`.

        For whoever may have to open it later. What is not there yet is not founded.
        """
        await self._entries.open()
        try:
            founding = await self._entries.read(-1, 1)
        finally:
            await self._entries.close()
        for theirs in (each.operation.public_key for each in founding if isinstance(each.operation, Found)):
            if theirs != self._key.public:
                raise UserError(
                    f"the ledger {self._entries.where} was founded with the key {theirs[:16]}…, came "
                    f"{self._key.public[:16]}…: give every coordinator the same --ledger-key-file"
                )

    async def post(self, order: Order) -> Receipt:
        check(order)
        if self.closed:
            raise Conflict(self.closed)
        if self._writer is None or self._writer.done():
            raise StorageError(f"the ledger {self._entries.where} is closed")
        done: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        await self._waiting.put(_Waiting(order, done))
        return await done

    async def known(self, key: str) -> Receipt | None:
        found: list[Entry] = []

        def look(known: Mapping[str, Entry]) -> Sequence[Entry]:
            found.extend(known.values())
            return ()

        async with self._turn:  # no commit runs
            await self._extend([key], look)
        return Receipt(key, found[0].hash) if found else None

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

    async def head(self) -> Head:
        async with self._turn:
            await self._present_books()
            assert self._last is not None
            return Head(self._last.seq + 1, self._last.hash, self._key.public)

    async def read(self, after: int, limit: int) -> list[Entry]:
        """At most `limit` entries behind number `after` (-1: from the founding on)."""
        return await self._entries.read(after, limit)

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
                waiting.done.set_exception(StorageError(f"the ledger {self._entries.where} is closed"))
        await self._entries.close()

    # -- writing -----------------------------------------------------------------------------------------

    async def _write_all(self) -> None:
        while True:
            group = [await self._waiting.get()]
            while not self._waiting.empty() and len(group) < GROUP:
                group.append(self._waiting.get_nowait())
            async with self._turn:
                writing = asyncio.ensure_future(self._write([waiting.order for waiting in group]))
                try:
                    await asyncio.wait([writing])
                finally:  # closing: the commit that runs is still told to those who wait for it
                    if not writing.done():
                        await asyncio.wait([writing])
                    error = writing.exception()
                    _tell(group, [error] * len(group) if error else writing.result())

    async def _write(self, orders: Sequence[Order]) -> Sequence[Receipt | BaseException]:
        """Decide on each as if those before it had been written, and write all of it at once."""
        outcomes: list[Receipt | BaseException] = []

        def decide(known: Mapping[str, Entry]) -> list[Entry]:
            made: dict[str, Entry] = {}
            outcomes.clear()
            for order in orders:
                try:
                    outcomes.append(self._book(order, known.get(order.key) or made.get(order.key), made))
                except Exception as refusal:
                    outcomes.append(refusal)
            return list(made.values())

        await self._extend([order.key for order in orders], decide)
        return outcomes

    async def _extend(self, keys: Sequence[str], decide: Decide) -> None:
        while True:
            await self._present_books()
            before = self._last
            assert before is not None
            try:
                return await self._entries.extend(before.seq, keys, decide)
            except Overtaken:
                self._stale = True
            except StorageError:
                self._stale = self._last is not before  # in memory it has happened already
                raise

    def _book(self, order: Order, known: Entry | None, made: dict[str, Entry]) -> Receipt:
        if known is not None:
            if known.operation != order.operation:
                raise KeyReused(f"the key {as_chosen(order.key)!r} was used for another operation: choose a new key")
            return Receipt(order.key, known.hash)
        last = self._last
        assert last is not None
        at = max(self._clock(), last.at)  # a clock that is set back does not turn time round
        entry = self._sealed(order, last.seq + 1, at, last.hash, self._books)
        self._books.apply(entry.operation, entry.postings, entry.at)
        self._last = made[entry.key] = entry
        return Receipt(entry.key, entry.hash)

    def _sealed(self, order: Order, seq: int, at: int, previous: str, books: Books) -> Entry:
        postings = books.decide(order.operation, at)
        entry = Entry(seq=seq, at=at, key=order.key, operation=order.operation, postings=postings, previous=previous)
        return seal(entry, self._key.sign)

    async def _found(self, rules: Found) -> None:
        order = Order("founding", Found(public_key=self._key.public, unbonding=rules.unbonding, cap=rules.cap))
        founding = self._sealed(order, 0, self._clock(), START, Books())
        with suppress(Overtaken):  # somebody else has founded it just now
            await self._entries.extend(-1, [], lambda known: [founding])

    # -- reading -----------------------------------------------------------------------------------------

    async def _present_books(self) -> Books:
        if self._stale:
            await self._load()
        return self._books

    async def _load(self) -> None:
        loop, last = asyncio.get_running_loop(), list[Entry]()

        def pages() -> Iterator[Entry]:
            after = -1
            while page := asyncio.run_coroutine_threadsafe(self._entries.read(after, PAGE), loop).result():
                yield from page
                last[:], after = page[-1:], page[-1].seq

        self._books = await asyncio.to_thread(verify_chain, pages(), verify, self._key.public)
        (self._last,) = last
        self._stale = False


def decoded(data: bytes) -> Entry:
    """An entry as it is kept; raises StorageError."""
    try:
        return msgspec.json.decode(data, type=Entry)
    except msgspec.MsgspecError as error:
        raise StorageError(f"an entry of the ledger is damaged ({error}): restore it from a copy") from None


def _tell(group: Sequence[_Waiting], outcomes: Sequence[Receipt | BaseException]) -> None:
    for waiting, outcome in zip(group, outcomes, strict=True):
        if waiting.done.done():  # cancelled
            continue
        if isinstance(outcome, Receipt):
            waiting.done.set_result(outcome)
        else:
            waiting.done.set_exception(outcome)
