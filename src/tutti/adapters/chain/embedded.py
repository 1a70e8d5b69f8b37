"""A chain in this process: py-evm's Cancun rules over one SQLite file, a block for each transaction, gas for nothing.

It answers the JSON-RPC that wallets and tools use, so whatever works on it works on any node. For demos, tests and
a single coordinator; whoever owns the file could rewrite it, which a chain that many keep does not allow.
"""

import asyncio
import contextlib
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

_limit = sys.getrecursionlimit()
from eth.constants import BLANK_ROOT_HASH, ZERO_HASH32  # noqa: E402
from eth.db.atomic import AtomicDB  # noqa: E402
from eth.db.backends.base import BaseDB  # noqa: E402
from eth.vm.execution_context import ExecutionContext  # noqa: E402
from eth.vm.forks.cancun.state import CancunState  # noqa: E402
from eth.vm.forks.cancun.transactions import CancunTransactionBuilder  # noqa: E402
from eth.vm.spoof import SpoofTransaction  # noqa: E402
from eth_utils import ValidationError, keccak, to_canonical_address, to_checksum_address  # noqa: E402
from rlp.exceptions import RLPException  # noqa: E402

from tutti.adapters.chain.rpc import RpcRefused  # noqa: E402
from tutti.core.errors import StorageError  # noqa: E402

# py-evm raises the limit so far that deeply nested JSON, which anybody may send to this process, overflows the stack
# and kills it. Contracts of ours call each other three deep, not a thousand.
sys.setrecursionlimit(_limit)

CHAIN_ID = 31_337
GAS_LIMIT = 30_000_000
NOBODY = "0x" + "00" * 20
NEWEST = ("latest", "pending", "safe", "finalized")

SCHEMA = """
CREATE TABLE IF NOT EXISTS trie (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blocks (
    number INTEGER PRIMARY KEY,
    time INTEGER NOT NULL,
    root BLOB NOT NULL,
    hash TEXT NOT NULL,
    tx TEXT UNIQUE,
    raw BLOB,
    receipt BLOB
);
"""


class _Trie(BaseDB):  # type: ignore[misc]  # no types there
    """Nodes of the state's tries, which are never removed: every past state can still be read."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __getitem__(self, key: bytes) -> bytes:
        row = self._db.execute("SELECT value FROM trie WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise KeyError(key)
        found: bytes = row[0]
        return found

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO trie VALUES (?, ?)", (key, value))

    def __delitem__(self, key: bytes) -> None:
        self._db.execute("DELETE FROM trie WHERE key = ?", (key,))

    def _exists(self, key: bytes) -> bool:
        return self._db.execute("SELECT 1 FROM trie WHERE key = ?", (key,)).fetchone() is not None


@dataclass(frozen=True, slots=True)
class _Block:
    number: int
    time: int
    root: bytes
    hash: str
    tx: str | None


class EmbeddedChain:
    """An Rpc. `clock` gives seconds since the epoch; raises StorageError if the file cannot be used."""

    url = "embedded"

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._clock, self._turn = clock, threading.Lock()
        with _storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(SCHEMA)
            genesis = (0, int(clock()), BLANK_ROOT_HASH, "0x" + bytes(32).hex())
            self._db.execute("INSERT OR IGNORE INTO blocks (number, time, root, hash) VALUES (?, ?, ?, ?)", genesis)
        self._path, self._trie = path, AtomicDB(_Trie(self._db))
        self._builder = CancunTransactionBuilder()

    async def call(self, method: str, *params: Any) -> Any:
        return await asyncio.to_thread(self._answer, method, params)

    async def call_all(self, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        return await asyncio.to_thread(lambda: [self._answer(method, params) for method, *params in calls])

    async def close(self) -> None:
        with self._turn:
            self._db.close()

    def blocks(self, after: int, limit: int) -> list[tuple[int, int, str, bytes]]:
        """Number, time, hash of the transaction, and the transaction itself, of at most `limit` blocks behind one."""
        query = "SELECT number, time, tx, raw FROM blocks WHERE number > ? AND raw IS NOT NULL ORDER BY number LIMIT ?"
        with self._turn, _storage_errors(self._path):
            return self._db.execute(query, (after, limit)).fetchall()

    def rewind(self, blocks: int) -> None:
        """Forget the newest blocks, as a chain does that finds a longer branch."""
        with self._turn:
            self._db.execute("DELETE FROM blocks WHERE number > ?", (self._head().number - blocks,))

    def _answer(self, method: str, params: Sequence[Any]) -> Any:
        answer = _METHODS.get(method)
        if answer is None:
            raise RpcRefused(f"the embedded chain does not know the method {method}")
        with self._turn, _storage_errors(self._path):
            try:
                return answer(self, *params)
            except (ValidationError, RLPException, ValueError, TypeError, RecursionError) as error:
                raise RpcRefused(f"{method}: {error}") from None

    # -- methods -----------------------------------------------------------------------------------------

    def _send(self, raw: str) -> str:
        transaction = self._builder.decode(_bytes(raw))
        transaction.validate()
        head = self._head()
        state = self._state(head.number + 1)
        state.validate_transaction(transaction)
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            done = state.apply_transaction(transaction)
            state.persist()
            hash = "0x" + transaction.hash.hex()
            sealed = "0x" + keccak(_bytes(head.hash) + state.state_root + transaction.hash).hex()
            block = (head.number + 1, self._now(), state.state_root, sealed, hash, _bytes(raw))
            receipt = msgspec.json.encode(_receipt(transaction, done, block[0], sealed))
            self._db.execute("INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?)", (*block, receipt))
        return str(hash)

    def _estimate(self, wish: dict[str, Any], _block: str = "latest") -> str:
        done, gas = self._try(wish)
        if done.is_error:
            raise RpcRefused("execution reverted", bytes(done.output))
        used = gas - done.get_gas_remaining()
        return hex(used + used // 4 + 5_000)  # inner calls must leave a 64th behind

    def _call(self, wish: dict[str, Any], _block: str = "latest") -> str:
        done, _ = self._try(wish)
        if done.is_error:
            raise RpcRefused("execution reverted", bytes(done.output))
        return "0x" + bytes(done.output).hex()

    def _try(self, wish: dict[str, Any]) -> tuple[Any, int]:
        """What a transaction would do; nothing is kept of it."""
        state, sender = self._state(self._head().number + 1), to_canonical_address(wish.get("from") or NOBODY)
        gas = GAS_LIMIT // 2
        unsigned = self._builder.create_unsigned_transaction(
            nonce=state.get_nonce(sender),
            gas_price=0,
            gas=gas,
            to=to_canonical_address(wish["to"]) if wish.get("to") else b"",
            value=int(wish.get("value") or "0x0", 16),
            data=_bytes(wish.get("data") or wish.get("input") or "0x"),
        )
        return state.apply_transaction(SpoofTransaction(unsigned, from_=sender)), gas

    def _block(self, number: str, whole: bool = False) -> dict[str, Any] | None:
        block = self._head() if number in NEWEST else self._at(_height(number))
        if block is None:
            return None
        before = self._at(block.number - 1)
        return {
            "number": hex(block.number),
            "hash": block.hash,
            "parentHash": before.hash if before else "0x" + bytes(32).hex(),
            "timestamp": hex(self._now() if number == "pending" else block.time),
            "stateRoot": "0x" + block.root.hex(),
            "transactions": self._transactions(block, whole),
            "baseFeePerGas": "0x0",
            "gasLimit": hex(GAS_LIMIT),
        }

    def _receipt_of(self, hash: str) -> dict[str, Any] | None:
        row = self._db.execute("SELECT receipt FROM blocks WHERE tx = ?", (hash,)).fetchone()
        return msgspec.json.decode(row[0]) if row else None

    def _transactions(self, block: _Block, whole: bool) -> list[Any]:
        if block.tx is None or not whole:
            return [block.tx] if block.tx else []
        (raw,) = self._db.execute("SELECT raw FROM blocks WHERE number = ?", (block.number,)).fetchone()
        one = self._builder.decode(raw)
        sender = to_checksum_address(one.sender)
        return [{"hash": block.tx, "from": sender, "nonce": hex(one.nonce), "blockNumber": hex(block.number)}]

    def _nonce(self, address: str, block: str = "latest") -> str:
        at = self._head() if block in NEWEST else self._at(_height(block))
        if at is None:
            raise ValueError(f"there is no block {block}")
        return hex(self._state(at.number, at.root).get_nonce(to_canonical_address(address)))

    def _balance(self, address: str, _block: str = "latest") -> str:
        return hex(self._state(self._head().number).get_balance(to_canonical_address(address)))

    def _code(self, address: str, _block: str = "latest") -> str:
        return "0x" + bytes(self._state(self._head().number).get_code(to_canonical_address(address))).hex()

    # -- what lies below ---------------------------------------------------------------------------------

    def _head(self) -> _Block:
        found = self._read("SELECT number, time, root, hash, tx FROM blocks ORDER BY number DESC LIMIT 1")
        assert found is not None
        return found

    def _at(self, number: int) -> _Block | None:
        return self._read("SELECT number, time, root, hash, tx FROM blocks WHERE number = ?", number)

    def _read(self, query: str, *values: Any) -> _Block | None:
        row = self._db.execute(query, values).fetchone()
        return _Block(*row) if row else None

    def _now(self) -> int:
        """A clock that is set back does not turn the chain's time round."""
        return max(int(self._clock()), self._head().time)

    def _state(self, number: int, root: bytes | None = None) -> CancunState:
        context = ExecutionContext(
            coinbase=bytes(20),
            timestamp=self._now(),
            block_number=number,
            difficulty=0,
            mix_hash=ZERO_HASH32,
            gas_limit=GAS_LIMIT,
            prev_hashes=(),
            chain_id=CHAIN_ID,
            base_fee_per_gas=0,
            excess_blob_gas=0,
        )
        return CancunState(self._trie, context, root or self._head().root)


_METHODS: dict[str, Callable[..., Any]] = {
    "eth_chainId": lambda chain: hex(CHAIN_ID),
    "net_version": lambda chain: str(CHAIN_ID),
    "web3_clientVersion": lambda chain: "tutti/embedded",
    "eth_blockNumber": lambda chain: hex(chain._head().number),
    "eth_gasPrice": lambda chain: "0x0",
    "eth_maxPriorityFeePerGas": lambda chain: "0x0",
    "eth_getBlockByNumber": EmbeddedChain._block,
    "eth_getTransactionCount": EmbeddedChain._nonce,
    "eth_getBalance": EmbeddedChain._balance,
    "eth_getCode": EmbeddedChain._code,
    "eth_estimateGas": EmbeddedChain._estimate,
    "eth_call": EmbeddedChain._call,
    "eth_sendRawTransaction": EmbeddedChain._send,
    "eth_getTransactionReceipt": EmbeddedChain._receipt_of,
}


def _receipt(transaction: Any, done: Any, number: int, block: str) -> dict[str, Any]:
    used = transaction.gas - done.get_gas_remaining()
    if not done.is_error:
        used -= min(done.get_gas_refund(), used // 5)  # https://eips.ethereum.org/EIPS/eip-3529
    hash = "0x" + transaction.hash.hex()
    logs = [
        {
            "address": to_checksum_address(address),
            "topics": [f"0x{topic:064x}" for topic in topics],
            "data": "0x" + data.hex(),
            "blockNumber": hex(number),
            "blockHash": block,
            "transactionHash": hash,
            "transactionIndex": "0x0",
            "logIndex": hex(index),
            "removed": False,
        }
        for index, (address, topics, data) in enumerate(() if done.is_error else done.get_log_entries())
    ]
    return {
        "transactionHash": hash,
        "transactionIndex": "0x0",
        "blockNumber": hex(number),
        "blockHash": block,
        "from": to_checksum_address(transaction.sender),
        "to": to_checksum_address(transaction.to) if transaction.to else None,
        "contractAddress": None if transaction.to else to_checksum_address(done.msg.storage_address),
        "status": "0x0" if done.is_error else "0x1",
        "gasUsed": hex(used),
        "cumulativeGasUsed": hex(used),
        "effectiveGasPrice": "0x0",
        "type": "0x2",
        "logs": logs,
    }


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def _height(number: str) -> int:
    return 0 if number == "earliest" else int(number, 16)


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StorageError(f"cannot use the chain in {path}: {error}") from error
