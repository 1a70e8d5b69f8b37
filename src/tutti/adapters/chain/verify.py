"""Checks a coordinator's account of its transactions against the chain: from what it exported, and public keys alone.

A signed transaction says who sent it and what it does; its receipt, on a node that the verifier trusts, says that it
was carried out. An embedded chain is nobody's but its coordinator's: it is executed again, block by block.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

from eth_abi import decode, encode
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_account.typed_transactions import TypedTransaction
from eth_utils import keccak, to_checksum_address
from hexbytes import HexBytes

from tutti.adapters.chain.connection import Chain, Deployment
from tutti.adapters.chain.contracts import NAMES, contract
from tutti.adapters.chain.embedded import EmbeddedChain
from tutti.adapters.chain.journal import Sent
from tutti.adapters.chain.rpc import Rpc, RpcRefused
from tutti.adapters.chain.wallets import NotInCustody, Wallets
from tutti.adapters.ledgers.evm import TRANSFER_AND_CALL, EvmLedger, encoded, escrow_id, place_of
from tutti.core.errors import Conflict
from tutti.domain import ledger as l
from tutti.domain.ledger import AnyOperation, BadChain, Totals
from tutti.services.views.chain import BlockView, ChainView, TransactionView

AT_ONCE = 100
"""Receipts in one request."""

NOBODY = "0x" + "00" * 20


@dataclass(frozen=True, slots=True)
class Beginning:
    """Equal to all bytes that begin so: what follows, such as a deadline, does not follow from an operation."""

    prefix: bytes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, bytes) and other.startswith(self.prefix)


class Anything:
    def __eq__(self, other: object) -> bool:
        return True


ANY = Anything()
Meaning: TypeAlias = tuple[str, tuple[str, ...], str, tuple[object, ...]]
"""Whose transaction it is, to which contract (one of these), which function it calls, and the arguments."""


class Known(Wallets):
    """The addresses of accounts and roles, as they are told; no keys."""

    def __init__(self, accounts: Mapping[str, str], roles: Mapping[str, str]) -> None:
        super().__init__(b"")
        self._accounts, self._roles = accounts, roles

    def role(self, name: str) -> LocalAccount:
        return SimpleNamespace(address=to_checksum_address(self._roles[name]))

    def _account(self, name: str) -> LocalAccount:
        if name not in self._accounts:
            raise NotInCustody(f"no transaction names {name!r}")
        return SimpleNamespace(address=to_checksum_address(self._accounts[name]))


async def replayed(file: Path, blocks: Iterable[BlockView]) -> EmbeddedChain:
    """An embedded chain, executed again into a new file; raises BadChain if it does not come out the same."""
    now = 0
    chain = EmbeddedChain(file, lambda: now)
    for block in blocks:
        now = block.time
        hash = await chain.call("eth_sendRawTransaction", "0x" + block.raw)
        receipt = await chain.call("eth_getTransactionReceipt", hash)
        if (hash, int(receipt["blockNumber"], 16)) != (block.transaction, block.number):
            raise BadChain(f"block {block.number} does not hold the transaction {block.transaction}")
    return chain


async def check(rpc: Rpc, said: ChainView, transactions: Sequence[TransactionView], folder: Path) -> Totals:
    """Check all of it, and give the sums of the whole chain; raises BadChain for the first that is not right.

    The contracts are this version's. Each transaction is signed, was carried out, and does what its operation says;
    the coordinator's roles and wallets have sent no other; every root of earnings on the chain follows from the
    payments before it, so that nobody is promised what was not distributed; and the sums hold.
    `folder` is empty, for what is kept meanwhile.
    """
    accounts: dict[str, str] = {}
    for one in transactions:
        for name, address in one.accounts.items():
            if accounts.setdefault(name, address) != address:
                raise BadChain(f"transaction {one.seq}: {name!r} is {address}, and was {accounts[name]}")
    payers = {one.operation.escrow: one.operation.payer for one in transactions if isinstance(one.operation, l.Escrow)}
    told: dict[str, list[Sent]] = defaultdict(list)
    deployment = Deployment("", said.chain_id or 0, dict(said.contracts))
    wallets = Known(accounts, said.roles)
    chain = Chain(deployment, rpc, wallets, folder / "sent.sqlite")
    try:
        if int(await rpc.call("eth_chainId"), 16) != said.chain_id:
            raise BadChain(f"the node is of another chain than {said.chain_id}")
        try:
            await chain.check_code()
        except Conflict as fault:
            raise BadChain(str(fault)) from None
        for start in range(0, len(transactions), AT_ONCE):
            some = transactions[start : start + AT_ONCE]
            receipts = await rpc.call_all([("eth_getTransactionReceipt", one.hash) for one in some])
            for one, receipt in zip(some, receipts, strict=True):
                sent = _checked(one, receipt, said, wallets, payers)
                told[sent.sender].append(sent)
                if not one.failed:
                    chain.journal.adopt(sent)
        people = {str(wallets.role(name).address) for name in ("operator", "arbiter")}
        await _nothing_hidden(rpc, told, people | set(map(wallets.address, accounts)), said.block)
        ledger = EvmLedger(chain)
        if unexplained := await ledger.unexplained():
            raise BadChain(
                f"{unexplained} roots of earnings on the chain do not follow from the payments that are told: some are "
                "missing, or more is owed than was paid for"
            )
        totals = await ledger.totals()
        if not totals.conserved:
            raise BadChain(f"the sums do not hold: {totals}")
        return totals
    finally:
        chain.sender.close()


async def _nothing_hidden(rpc: Rpc, told: Mapping[str, list[Sent]], people: set[str], block: int | None) -> None:
    """Raises BadChain if somebody of whom something is told has sent more, up to a block, than is told.

    Each transaction uses the next number of its sender's, so how many there are is the sender's count.
    """
    until = hex(block) if block is not None else "latest"
    for address in sorted(people):
        try:
            count = int(await rpc.call("eth_getTransactionCount", address, until), 16)
        except RpcRefused as refusal:
            raise BadChain(f"the node cannot say what had been sent up to block {block}: {refusal}") from None
        numbers = {one.nonce for one in told.get(address, ()) if block is None or (one.block or 0) <= block}
        if hidden := sorted(set(range(count)) - numbers):
            raise BadChain(
                f"{address} has sent {count} transactions, of which {len(hidden)} are not told: "
                f"number {', '.join(map(str, hidden[:5]))}{'…' if len(hidden) > 5 else ''}"
            )


def _checked(
    one: TransactionView, receipt: dict[str, Any] | None, said: ChainView, wallets: Known, payers: Mapping[str, str]
) -> Sent:
    raw = bytes.fromhex(one.raw)
    if "0x" + keccak(raw).hex() != one.hash:
        raise BadChain(f"transaction {one.seq} ({one.key}): its hash is not that of its bytes")
    if receipt is None or int(receipt["status"], 16) != (0 if one.failed else 1):
        fate = "did not fail on the chain" if one.failed else "was not carried out on the chain"
        raise BadChain(f"transaction {one.seq} ({one.key}): {one.hash} {fate}")
    if one.operation is not None:
        fault = _fault(one.operation, raw, said, wallets, payers)
        if fault:
            raise BadChain(f"transaction {one.seq} ({one.key}) is said to be {type(one.operation).__name__}: {fault}")
    what = encoded(one.operation) if one.operation else b""
    sender, nonce = str(Account.recover_transaction(raw)), int(_parts(one.raw)["nonce"])
    return Sent(one.seq, one.key, what, sender, nonce, one.hash, raw, 0, int(receipt["blockNumber"], 16))


def _parts(raw: str) -> dict[str, Any]:
    found: dict[str, Any] = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
    return found


def _fault(operation: AnyOperation, raw: bytes, said: ChainView, wallets: Known, payers: Mapping[str, str]) -> str:
    """Why a transaction does not do what an operation says; empty if it does."""
    signer, names, function, expected = _meaning(operation, said, wallets, payers)
    parts, sender = _parts(raw.hex()), Account.recover_transaction(raw)
    if sender != to_checksum_address(signer):
        return f"it is signed by {sender}, not by {to_checksum_address(signer)}"
    to = to_checksum_address(parts["to"]) if parts["to"] else NOBODY
    name = next((name for name in names if to == to_checksum_address(said.contracts[name])), None)
    if name is None:
        return f"it goes to {to}, not to {' or '.join(NAMES[name] for name in names)}"
    called, data = contract(name).functions[function], bytes(parts["data"])
    if data[:4] != called.selector:
        return f"it does not call {function}"
    for found, should in zip(decode(called.inputs, data[4:]), expected, strict=True):
        if should != (to_checksum_address(found) if isinstance(found, str) else found):
            return f"it says {found!r} where its operation means {should!r}"
    return ""


def _meaning(operation: AnyOperation, said: ChainView, wallets: Known, payers: Mapping[str, str]) -> Meaning:
    address, operator = wallets.address, str(wallets.role("operator").address)

    def paid_in(payer: str, name: str, amount: int, data: object) -> Meaning:
        holder = to_checksum_address(said.contracts[name])
        return address(payer), ("token",), TRANSFER_AND_CALL, (holder, amount, data)

    def place(escrow: str) -> bytes:
        if escrow not in payers:
            raise BadChain(f"{type(operation).__name__}: no transaction pays in for {escrow!r}")
        return place_of(address(payers[escrow]), escrow)

    match operation:
        case l.Mint(to=to, amount=amount):
            return operator, ("token",), "mint", (address(to), amount)
        case l.Transfer(source=source, to=to, amount=amount):
            return address(source), ("token",), "transfer", (address(to), amount)
        case l.Stake(account=name, amount=amount):
            return paid_in(name, "staking", amount, b"")
        case l.Unstake(account=name, amount=amount):
            return address(name), ("staking",), "unstake", (amount,)
        case l.Withdraw(account=name):
            return address(name), ("staking",), "withdraw", ()
        case l.Escrow(escrow=escrow, payer=payer, amount=amount, purpose=purpose):
            terms = Beginning(encode(["bytes32", "address"], [escrow_id(escrow), operator]))
            return paid_in(payer, "escrow" if purpose == "job" else "rewards", amount, terms)
        case l.Bond(escrow=escrow, account=name, amount=amount):
            return address(name), ("escrow",), "accept", (place(escrow), amount)
        case l.Release(escrow=escrow):
            return operator, ("escrow",), "release", (place(escrow),)
        case l.Penalise(escrow=escrow, compensation=compensation):
            return str(wallets.role("arbiter").address), ("escrow",), "penalise", (place(escrow), compensation)
        case l.Reward(escrow=escrow, to=to):
            return operator, ("escrow",), "pay", (place(escrow), address(to))
        case l.Distribute(escrow=escrow, payments=payments, evidence=evidence):
            proof = bytes.fromhex(evidence or "00" * 32)
            return operator, ("rewards",), "distribute", (place(escrow), sum(payments.values()), ANY, proof)
        case l.Claim(account=name):
            return operator, ("rewards",), "claim", (operator, ANY, address(name), ANY, ANY)
        case l.Refund(escrow=escrow):
            return operator, ("escrow", "rewards"), "refund", (place(escrow),)
        case _:
            raise BadChain(f"{type(operation).__name__}: no transaction can do this")
