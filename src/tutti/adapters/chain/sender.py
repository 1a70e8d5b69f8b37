"""Sends transactions once, whatever happens: each is signed and written to a journal before it leaves.

A signed transaction can be in a chain at most once, for its sender and number are in it. So one whose fate is not
known (the process was killed, the node did not answer, the chain took another branch) is sent again as it is, before
anything new is decided. Only when its number was used by another transaction is it forgotten, and the order decided
anew.
"""

import asyncio
import contextlib
import logging
import secrets
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eth_account.signers.local import LocalAccount
from eth_utils import to_checksum_address

from tutti.adapters.chain.contracts import Revert, explain
from tutti.adapters.chain.rpc import Rpc, RpcRefused, wait_for_receipt
from tutti.adapters.chain.wallets import sign
from tutti.core.errors import Conflict, StorageError, Unavailable
from tutti.ports.ledger import KeyReused

log = logging.getLogger(__name__)

DEPTH = 12
"""Blocks after which a transaction is taken to stay where it is."""

PATIENCE_SECONDS = 60.0
GAS_MONEY = 20
"""An account that runs out of gas money is given so many times what its transaction costs."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS sent (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    what BLOB NOT NULL,
    sender TEXT NOT NULL,
    nonce INTEGER NOT NULL,
    hash TEXT NOT NULL,
    raw BLOB NOT NULL,
    cost TEXT NOT NULL, -- wei, at most: more than 64 bits hold
    block INTEGER
)
"""


class Reverted(Conflict):
    """A contract refused. `revert` is its error, or None if it is none that we know."""

    def __init__(self, message: str, revert: Revert | None) -> None:
        super().__init__(message)
        self.revert = revert


@dataclass(frozen=True, slots=True)
class Call:
    """A transaction to be: whose key signs it, where it goes (None: makes a contract), what it says and carries."""

    key: LocalAccount
    to: str | None
    data: bytes
    value: int = 0


@dataclass(frozen=True, slots=True)
class Sent:
    seq: int
    key: str
    what: bytes
    sender: str
    nonce: int
    hash: str
    raw: bytes
    cost: int
    block: int | None


class Sender:
    """`purse` pays for the gas of others. One process owns the journal."""

    def __init__(self, rpc: Rpc, journal: Path, chain_id: int, purse: LocalAccount) -> None:
        self._rpc, self._path, self._chain_id, self._purse = rpc, journal, chain_id, purse
        self._turn = asyncio.Lock()
        with self._journal():
            journal.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(journal, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute(SCHEMA)

    def close(self) -> None:
        self._db.close()

    def done(self, after: int = 0, limit: int = -1) -> list[Sent]:
        """Transactions that were seen in a block, in the order of sending: all, or some behind number `after`."""
        query = "SELECT * FROM sent WHERE block IS NOT NULL AND seq > ? ORDER BY seq LIMIT ?"
        with self._journal():
            rows = self._db.execute(query, (after, limit))
            return [_sent(row) for row in rows]

    def told(self) -> list[bytes]:
        """What every transaction is for, as it was told to `send`, in the order of sending."""
        with self._journal():
            return [what for (what,) in self._db.execute("SELECT what FROM sent ORDER BY seq")]

    def adopt(self, sent: Sent) -> None:
        """Take over what another journal has."""
        values = (
            sent.seq,
            sent.key,
            sent.what,
            sent.sender,
            sent.nonce,
            sent.hash,
            sent.raw,
            str(sent.cost),
            sent.block,
        )
        self._write("INSERT INTO sent VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", *values)

    def newest(self) -> tuple[int, str]:
        """How many transactions were seen in a block, and the hash of the last."""
        with self._journal():
            rows = self._db.execute(
                "SELECT hash FROM sent WHERE block IS NOT NULL ORDER BY seq DESC LIMIT 1"
            ).fetchone()
            (count,) = self._db.execute("SELECT count(*) FROM sent WHERE block IS NOT NULL").fetchone()
        return count, rows[0] if rows else ""

    async def send(self, key: str, what: bytes, make: Callable[[], Awaitable[Call]]) -> Sent:
        """Carry out what `make` decides on, once for each key; `what` is compared when the key comes again.

        `make` is asked after everything before has settled, so what it reads is true. Raises KeyReused; Reverted,
        or whatever `make` raises, and then nothing has happened; Unavailable if it is not known what happened.
        """
        async with self._turn:
            if (known := self._find(key)) is not None and known.what != what:
                raise KeyReused(f"the key {key!r} was used for something else: choose a new key")
            await self._settle()
            return self._find(key) or await self._transact(key, what, await make())

    async def settle(self) -> None:
        """See to everything whose fate is not certain; raises Unavailable if there is no chain to ask."""
        async with self._turn:
            await self._settle()

    async def sent(self, key: str) -> Sent | None:
        """What was carried out under a key; raises Unavailable if that is not certain."""
        async with self._turn:
            await self._settle()
            return self._find(key)

    async def _settle(self) -> None:
        head = int(await self._rpc.call("eth_blockNumber"), 16)
        with self._journal():
            unsure = self._db.execute(
                "SELECT * FROM sent WHERE coalesce(block, ?) > ? ORDER BY seq", (head, head - DEPTH)
            )
            rows = [_sent(row) for row in unsure]
        for sent in rows:
            if await self._land(sent) is None:
                log.warning("the transaction %s (%s) will not come: its number is another's", sent.hash, sent.key)

    async def _land(self, sent: Sent) -> Sent | None:
        """See a transaction into a block, sending it again if need be; None if that cannot be, or it failed there."""
        receipt = await self._rpc.call("eth_getTransactionReceipt", sent.hash) or await self._push(sent)
        if receipt is None or int(receipt["status"], 16) == 0:
            self._write("DELETE FROM sent WHERE seq = ?", sent.seq)
            return None
        block = int(receipt["blockNumber"], 16)
        if block != sent.block:
            self._write("UPDATE sent SET block = ? WHERE seq = ?", block, sent.seq)
        return self._find(sent.key)

    async def _push(self, sent: Sent) -> dict[str, Any] | None:
        said = ""
        await self._fill(sent.sender, sent.cost)
        try:
            await self._rpc.call("eth_sendRawTransaction", "0x" + sent.raw.hex())
        except RpcRefused as refusal:  # perhaps because it has it already
            said = str(refusal)
            used = int(await self._rpc.call("eth_getTransactionCount", sent.sender, "latest"), 16)
            if used > sent.nonce:
                return await wait_for_receipt(self._rpc, sent.hash, 0)
        receipt = await wait_for_receipt(self._rpc, sent.hash, PATIENCE_SECONDS if not said else 1.0)
        if receipt is None:
            raise Unavailable(
                f"the transaction {sent.hash} for {sent.key!r} is in no block yet{': ' + said if said else ''}; "
                "it is sent again with the next order: repeat yours with its key"
            )
        return receipt

    async def _transact(self, key: str, what: bytes, call: Call) -> Sent:
        sender = str(call.key.address)
        wish = {"from": sender, "data": "0x" + call.data.hex(), "value": hex(call.value)}
        if call.to is not None:
            wish["to"] = call.to
        gas = int(await self._ask("eth_estimateGas", wish), 16)
        gas, fees = gas + gas // 5, await self._fees()
        cost = gas * fees["maxFeePerGas"] + call.value
        await self._fill(sender, cost)
        nonce = int(await self._rpc.call("eth_getTransactionCount", sender, "latest"), 16)
        bare = {"chainId": self._chain_id, "nonce": nonce, "gas": gas, "value": call.value, **fees}
        raw, hash = sign(
            call.key, bare | {"data": call.data} | ({"to": to_checksum_address(call.to)} if call.to else {})
        )
        insert = "INSERT INTO sent (key, what, sender, nonce, hash, raw, cost) VALUES (?, ?, ?, ?, ?, ?, ?)"
        self._write(insert, key, what, sender, nonce, hash, raw, str(cost))
        sent = self._find(key)
        assert sent is not None
        landed = await self._land(sent)
        if landed is None:
            await self._ask("eth_call", wish, "latest")  # says why, if it still would
            raise Conflict(f"the transaction {hash} failed: what it was decided on had changed; try again")
        return landed

    async def _ask(self, method: str, *params: Any) -> Any:
        try:
            return await self._rpc.call(method, *params)
        except RpcRefused as refusal:
            revert = explain(refusal.data)
            raise Reverted(f"the contract refuses: {revert or refusal}", revert) from None

    async def _fees(self) -> dict[str, int]:
        """https://eips.ethereum.org/EIPS/eip-1559: room for the base fee to double."""
        base = int((await self._rpc.call("eth_getBlockByNumber", "latest", False)).get("baseFeePerGas", "0x0"), 16)
        tip = int(await self._rpc.call("eth_maxPriorityFeePerGas"), 16) if base else 0
        return {"maxFeePerGas": 2 * base + tip, "maxPriorityFeePerGas": tip}

    async def _fill(self, sender: str, cost: int) -> None:
        """Give an account that has too little the money for its gas; raises Conflict if the purse is empty."""
        if cost == 0 or int(await self._rpc.call("eth_getBalance", sender, "latest"), 16) >= cost:
            return
        if sender == self._purse.address:
            raise Conflict(f"{sender} cannot pay for gas: send it at least {GAS_MONEY * cost / 10**18:.4f} ether")
        await self._transact(f"gas/{secrets.token_hex(8)}", b"gas", Call(self._purse, sender, b"", GAS_MONEY * cost))

    # -- the journal -------------------------------------------------------------------------------------

    def _find(self, key: str) -> Sent | None:
        with self._journal():
            row = self._db.execute("SELECT * FROM sent WHERE key = ?", (key,)).fetchone()
        return _sent(row) if row else None

    def _write(self, query: str, *values: Any) -> None:
        with self._journal():
            self._db.execute(query, values)

    @contextlib.contextmanager
    def _journal(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StorageError(f"cannot use the journal of transactions {self._path}: {error}") from error


def _sent(row: tuple[Any, ...]) -> Sent:
    seq, key, what, sender, nonce, hash, raw, cost, block = row
    return Sent(seq, key, what, sender, nonce, hash, raw, int(cost), block)
