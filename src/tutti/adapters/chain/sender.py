"""Sends transactions once, whatever happens: each is signed and written to a journal before it leaves.

A signed transaction can be in a chain at most once, for its sender and number are in it. So one whose fate is not
known (the process was killed, the node did not answer, the chain took another branch) is sent again as it is, before
anything new is decided, and dearer if blocks go by without it. That a node shows no receipt proves nothing: an order
is forgotten, and may be decided anew, only when *another* transaction is seen to have its number, or its own to have
failed, in a block that stays.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eth_account.signers.local import LocalAccount
from eth_utils import to_checksum_address

from tutti.adapters.chain.contracts import Revert, explain
from tutti.adapters.chain.journal import Bid, Journal, Sent
from tutti.adapters.chain.rpc import Rpc, RpcRefused, wait_for_receipt
from tutti.adapters.chain.wallets import sign
from tutti.core.errors import Conflict, Unavailable
from tutti.domain.ledger.operations import as_chosen
from tutti.ports.ledger import KeyReused

log = logging.getLogger(__name__)

DEPTH = 12
"""Blocks after which a transaction is taken to stay where it is, where the chain itself does not say later."""

PATIENCE_SECONDS = 60.0
STUCK_BLOCKS = 3
"""So many blocks without a transaction, and it is sent at twice the price."""

BIDS = 7
"""Prices at which a transaction is signed, each twice the one before."""

GAS_MONEY = 20
"""An account that runs out of gas money is given so many times what its transaction costs."""


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
class Fate:
    """What became of a number: which transaction has it, in which block, and why that is not ours (empty: it is)."""

    hash: str
    block: int
    fault: str = ""


class Sender:
    """`purse` pays for the gas of others. One process owns the journal."""

    def __init__(self, rpc: Rpc, journal: Path, chain_id: int, purse: LocalAccount) -> None:
        self._rpc, self._chain_id, self._purse = rpc, chain_id, purse
        self._turn = asyncio.Lock()
        self._final = -1
        self._doubts: dict[str, str] = {}
        self.journal = Journal(journal)

    def close(self) -> None:
        self.journal.close()

    async def send(self, key: str, what: bytes, make: Callable[[], Awaitable[Call]]) -> Sent:
        """Carry out what `make` decides on, once for each key; `what` is compared when the key comes again.

        `make` is asked after everything before has settled, so what it reads is true. Raises KeyReused; Reverted,
        or whatever `make` raises, and then nothing has happened; Unavailable if it is not known what happened.
        """
        async with self._turn:
            if (known := self.journal.find(key)) is not None and known.what != what:
                raise KeyReused(f"the key {as_chosen(key)!r} was used for something else: choose a new key")
            await self._settle()
            return self._certain(key) or await self._transact(key, what, await make())

    async def settle(self) -> None:
        """See to everything whose fate is not certain; raises Unavailable if there is no chain to ask."""
        async with self._turn:
            await self._settle()

    async def sent(self, key: str) -> Sent | None:
        """What was carried out under a key; raises Unavailable if that is not certain."""
        async with self._turn:
            await self._settle()
            return self._certain(key)

    def _certain(self, key: str) -> Sent | None:
        sent = self.journal.find(key)
        if sent is not None and sent.block is None:
            raise Unavailable(self._doubts[key])
        return sent

    async def _settle(self) -> None:
        head = await self._head()
        if (final := await self._finality(head)) > self._final:
            self._final = final
            self.journal.prune(final)
        watched = self.journal.unsure(self._final)
        receipts = await self._rpc.call_all([("eth_getTransactionReceipt", sent.hash) for sent in watched])
        newest = 0
        for sent, receipt in zip(watched, receipts, strict=True):
            if (landed := await self._land(sent, receipt)) is None:
                log.warning("the transaction %s (%s) will not come", sent.hash, sent.key)
            else:
                newest = max(newest, landed.block or 0)
        await self._catch_up(head, newest)

    async def _catch_up(self, head: int, newest: int) -> None:
        """Wait until the node has come to the newest block of ours: what one that lags says of accounts is old."""
        loop = asyncio.get_running_loop()
        end = loop.time() + PATIENCE_SECONDS
        while head < newest:
            head = await self._head()
            if head < newest:
                if loop.time() >= end:
                    raise Unavailable(
                        f"the node is at block {head}, behind {newest}, which has a transaction of ours: try again, "
                        "or use another node"
                    )
                await asyncio.sleep(0.2)

    async def _head(self) -> int:
        return int(await self._rpc.call("eth_blockNumber"), 16)

    async def _finality(self, head: int) -> int:
        """The newest block that no other branch replaces any more."""
        try:
            block = await self._rpc.call("eth_getBlockByNumber", "finalized", False)
        except RpcRefused:  # a chain without this notion
            block = None
        return min(int(block["number"], 16) if block else head, head - DEPTH)

    # -- the fate of one -----------------------------------------------------------------------------------

    async def _land(self, sent: Sent, receipt: dict[str, Any] | None) -> Sent | None:
        """See a transaction into a block, sending it again if need be; None if that cannot be, or it failed there.

        While another branch of the chain could still change that, it stays in the journal, without a block.
        """
        fate = _fate(receipt) if receipt else await self._push(sent)
        bid = next((bid for bid in self.journal.bids(sent) if bid.hash == fate.hash), None)
        if not fate.fault:
            assert bid is not None
            self.journal.choose(sent, bid, fate.block)
        elif fate.block <= self._final:
            self.journal.forget(sent, bid, fate.block)
        else:
            self.journal.choose(sent, Bid(0, sent.hash, sent.raw, sent.cost), None)
            self._doubts[sent.key] = (
                f"the transaction {sent.hash} for {sent.key!r} {fate.fault} in block {fate.block}, which is not final "
                "yet: repeat your order with its key when it is"
            )
        return self.journal.find(sent.key)

    async def _push(self, sent: Sent) -> Fate:
        refused, head = "", await self._head()
        bids = self.journal.bids(sent)
        if fate := await self._look(bids, 0):
            return fate
        try:
            if await self._is_poor(sent.sender, sent.cost):
                await self._fill_after_all(sent)
        except Conflict as poor:
            raise Unavailable(f"the transaction {sent.hash} for {sent.key!r} waits: {poor}") from None
        try:
            await self._rpc.call("eth_sendRawTransaction", "0x" + sent.raw.hex())
        except RpcRefused as refusal:  # perhaps because it has it already
            refused = str(refusal)
            used = int(await self._rpc.call("eth_getTransactionCount", sent.sender, "latest"), 16)
            if used > sent.nonce:
                return await self._whose(sent, bids)
        if fate := await self._look(bids, 1.0 if refused else PATIENCE_SECONDS):
            return fate
        said = await self._bid_more(sent, bids, head)
        raise Unavailable(
            f"the transaction {sent.hash} for {sent.key!r} is in no block yet{': ' + refused if refused else ''}; "
            f"it is sent again{said} with the next order: repeat yours with its key"
        )

    async def _look(self, bids: list[Bid], seconds: float) -> Fate | None:
        receipt = await wait_for_receipt(self._rpc, [bid.hash for bid in bids], seconds)
        return _fate(receipt) if receipt else None

    async def _bid_more(self, sent: Sent, bids: list[Bid], since: int) -> str:
        """Take the next price if blocks go by without it, or are too dear for it."""
        latest = await self._rpc.call("eth_getBlockByNumber", "latest", False)
        base, height = int(latest.get("baseFeePerGas", "0x0"), 16), int(latest["number"], 16)
        place = next(place for place, bid in enumerate(bids) if bid.hash == sent.hash)
        if base <= bids[place].price and height < since + STUCK_BLOCKS:
            return ""
        if place + 1 == len(bids):
            return f" at {bids[place].price} wei for gas, the most it is signed for (blocks ask {base})"
        self.journal.choose(sent, bids[place + 1], None)
        return f" at {bids[place + 1].price} wei for gas, instead of {bids[place].price} (blocks ask {base})"

    async def _whose(self, sent: Sent, bids: list[Bid]) -> Fate:
        """Which transaction has used a number, from the block itself; raises Unavailable if no node shows that."""
        try:
            block = await self._block_of(sent)
        except RpcRefused as refusal:
            raise Unavailable(f"{self._number_of(sent)} is used, and the node cannot say by what: {refusal}") from None
        if block is not None:
            for one in block["transactions"]:
                if one["from"].lower() == sent.sender.lower() and int(one["nonce"], 16) == sent.nonce:
                    return await self._taken(sent, bids, one["hash"], int(block["number"], 16))
        raise Unavailable(f"{self._number_of(sent)} is used, and the node does not show by what: try again later")

    async def _taken(self, sent: Sent, bids: list[Bid], hash: str, number: int) -> Fate:
        if hash not in {bid.hash for bid in bids}:
            return Fate(hash, number, f"will not come: its number was used by {hash}")
        if fate := await self._look(bids, PATIENCE_SECONDS):
            return fate
        raise Unavailable(
            f"the transaction {hash} for {sent.key!r} is in block {number}, of which the node shows no receipt yet: "
            "repeat your order with its key"
        )

    def _number_of(self, sent: Sent) -> str:
        return f"the number of the transaction {sent.hash} for {sent.key!r} ({sent.nonce} of {sent.sender})"

    async def _block_of(self, sent: Sent) -> dict[str, Any] | None:
        """The block in which a sender's count went beyond a number: back by doubling steps, then by halves."""

        async def is_used(block: int) -> bool:
            return int(await self._rpc.call("eth_getTransactionCount", sent.sender, hex(block)), 16) > sent.nonce

        high = head = await self._head()
        if not await is_used(high):
            return None  # that node lags behind the one that said so
        step = 1
        while (low := max(head - step, 0)) and await is_used(low):
            high, step = low, 2 * step
        while high - low > 1:
            middle = (low + high) // 2
            if await is_used(middle):
                high = middle
            else:
                low = middle
        found: dict[str, Any] | None = await self._rpc.call("eth_getBlockByNumber", hex(high), True)
        return found

    # -- a new one ---------------------------------------------------------------------------------------

    async def _transact(self, key: str, what: bytes, call: Call) -> Sent:
        sender = str(call.key.address)
        wish = {"from": sender, "data": "0x" + call.data.hex(), "value": hex(call.value)}
        if call.to is not None:
            wish["to"] = call.to
        gas = int(await self._ask("eth_estimateGas", wish), 16)
        gas, prices = gas + gas // 5, await self._prices()
        if await self._is_poor(sender, cost := gas * prices[0][0] + call.value):
            await self._fill(sender, cost)
        count = int(await self._rpc.call("eth_getTransactionCount", sender, "latest"), 16)
        nonce = max(count, self.journal.used(sender, self._final))  # a node that lags does not know the newest of ours
        bare = {"chainId": self._chain_id, "nonce": nonce, "gas": gas, "value": call.value, "data": call.data}
        if call.to is not None:
            bare["to"] = to_checksum_address(call.to)
        bids = []
        for price, tip in prices:
            raw, hash = sign(call.key, bare | {"maxFeePerGas": price, "maxPriorityFeePerGas": tip})
            bids.append(Bid(price, hash, raw, gas * price + call.value))
        sent = self.journal.add(key, what, sender, nonce, bids)
        if await self._land(sent, None) is None:
            await self._ask("eth_call", wish, "latest")  # says why, if it still would
            raise Conflict(f"the transaction {sent.hash} failed: what it was decided on had changed; try again")
        landed = self._certain(key)
        assert landed is not None
        return landed

    async def _ask(self, method: str, *params: Any) -> Any:
        try:
            return await self._rpc.call(method, *params)
        except RpcRefused as refusal:
            revert = explain(refusal.data)
            raise Reverted(f"the contract refuses: {revert or refusal}", revert) from None

    async def _prices(self) -> list[tuple[int, int]]:
        """Fee and tip of each bid: the first has room for the base fee to double (EIP-1559), each is twice the last."""
        base = int((await self._rpc.call("eth_getBlockByNumber", "latest", False)).get("baseFeePerGas", "0x0"), 16)
        tip = int(await self._rpc.call("eth_maxPriorityFeePerGas"), 16) if base else 0
        return [((2 * base + tip) << step, tip << step) for step in range(BIDS if base else 1)]

    async def _is_poor(self, sender: str, cost: int) -> bool:
        return cost > 0 and int(await self._rpc.call("eth_getBalance", sender, "latest"), 16) < cost

    async def _fill(self, sender: str, cost: int) -> None:
        """Give an account the money for its gas; raises Conflict if the purse is empty."""
        if sender == self._purse.address:
            raise Conflict(f"{sender} cannot pay for gas: send it at least {GAS_MONEY * cost / 10**18:.4f} ether")
        await self._transact(f"gas/{secrets.token_hex(8)}", b"gas", Call(self._purse, sender, b"", GAS_MONEY * cost))

    async def _fill_after_all(self, sent: Sent) -> None:
        """The purse's numbers come in turn: what it has sent before must be in a block first, though it came later."""
        if sent.sender != self._purse.address:
            for earlier in self.journal.unsure(self._final):
                if earlier.sender == self._purse.address:
                    await self._land(earlier, None)
        await self._fill(sent.sender, sent.cost)


def _fate(receipt: dict[str, Any]) -> Fate:
    failed = int(receipt["status"], 16) == 0
    return Fate(receipt["transactionHash"], int(receipt["blockNumber"], 16), "failed" if failed else "")
