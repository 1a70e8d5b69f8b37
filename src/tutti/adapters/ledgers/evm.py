"""The ledger on an Ethereum chain: each account a wallet, each order a transaction, everything due by proof.

Whoever holds an account's key signs for it: the coordinator for the names of its ledger, nobody here for an account
that is an address. Payments out of a pool are one Merkle root a round over everybody's cumulative earnings; the list
behind it is the journal of transactions, so that a claim needs nothing but this folder and the chain.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256

import msgspec
from eth_abi import encode
from eth_utils import keccak

from tutti.adapters.chain.connection import Chain
from tutti.adapters.chain.journal import Sent
from tutti.adapters.chain.sender import Call, Reverted
from tutti.core import merkle
from tutti.core.errors import NotFound
from tutti.domain import ledger as l
from tutti.domain.ledger import Account, AnyOperation, Order, Totals
from tutti.ports.ledger import Head, Receipt

ESCROW_SECONDS = 90 * 86_400
"""After so long, a payer can take back what is in an escrow without the coordinator."""

TRANSFER_AND_CALL = "transferAndCall(address,uint256,bytes)"

_REFUSALS: Mapping[str, type[Exception]] = {
    "ERC20InsufficientBalance": l.InsufficientFunds,
    "InsufficientStake": l.InsufficientFunds,
    "NothingUnbonds": l.InsufficientFunds,
    "NothingOwed": l.InsufficientFunds,
    "PoolTooSmall": l.InsufficientFunds,
    "StillUnbonding": l.StillUnbonding,
    "OverCap": l.OverCap,
    "JobExists": l.EscrowOver,
    "PoolExists": l.EscrowOver,
    "JobOver": l.EscrowOver,
    "PoolOver": l.EscrowOver,
    "NoSuchJob": NotFound,
    "NoSuchPool": NotFound,
    "WrongState": l.EscrowOver,
    "BadTerms": l.BadOperation,
}

_encoder = msgspec.json.Encoder(order="deterministic")
_decoder: msgspec.json.Decoder[AnyOperation] = msgspec.json.Decoder(AnyOperation)


@dataclass(frozen=True, slots=True)
class Round:
    """A root that was published: everybody's earnings up to then, by address."""

    number: int = -1
    totals: Mapping[str, int] = field(default_factory=dict)
    valid_from: int = 0

    def accounts(self) -> list[str]:
        return sorted(self.totals, key=str.lower)

    def leaves(self) -> list[bytes]:
        """In the order of the addresses."""
        return [merkle.leaf(encode(["address", "uint256"], [who, self.totals[who]])) for who in self.accounts()]

    def root(self) -> bytes:
        return merkle.root(self.leaves())


@dataclass(frozen=True, slots=True)
class Claimable:
    """All that a claim at the contract needs: of which round, for which sum, by which proof."""

    round: int
    address: str
    total: int
    claimed: int
    proof: list[bytes]


class EvmLedger:
    """A Ledger over a Chain, which it does not close before `close`."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self._wallets, self._operator = chain.wallets, chain.operator
        self._rounds = [Round()]  # the newest that is valid, and those after it
        self._read = 0  # up to where the journal is in them
        self._payers: dict[str, str] = {}  # by escrow, from the journal
        self._known = 0

    async def post(self, order: Order) -> Receipt:
        l.check(order)
        operation = order.operation
        try:
            if isinstance(operation, l.Bond):  # two transactions: its settler offers the job, and who takes it accepts
                offer = b"offer " + encoded(operation)
                await self.chain.send(f"{order.key}/offer", offer, lambda: self._offer(operation))
            sent = await self.chain.send(order.key, encoded(operation), lambda: self._call(operation))
        except Reverted as refusal:
            raise _refusal(operation, refusal) from None
        return Receipt(order.key, sent.hash)

    async def known(self, key: str) -> Receipt | None:
        sent = await self.chain.sender.sent(key)
        return Receipt(key, sent.hash) if sent else None

    async def account(self, name: str) -> Account:
        address = self._wallets.address(name)
        free, (staked, unbonding, _, _), claimed, count = await self.chain.views(
            ("token", "balanceOf", address),
            ("staking", "positions", address),
            ("rewards", "claimed", self._operator.address, address),
            ("rewards", "roundCount", self._operator.address),
        )
        earned = (await self._published(count))[-1].totals.get(address, 0)
        return Account(free=free, staked=staked, unbonding=unbonding, owed=earned - claimed)

    async def holders(self) -> dict[str, Account]:
        """Those whom the journal of transactions names: what strangers hold, the chain alone knows."""
        known: dict[str, str] = {}
        for operation in map(operation_of, self.chain.journal.told()):
            for name in l.accounts_of(operation) if operation else ():
                known.setdefault(self._wallets.address(name), name)
        held = {name: await self.account(name) for name in sorted(known.values())}
        return {name: account for name, account in held.items() if account != Account()}

    async def totals(self) -> Totals:
        minted, supply, staked, unbonding, owed, jobs, pools, *held = await self.chain.views(
            ("token", "minted"),
            ("token", "totalSupply"),
            ("staking", "totalStaked"),
            ("staking", "totalUnbonding"),
            ("rewards", "totalOwed"),
            ("escrow", "totalEscrowed"),
            ("rewards", "totalPooled"),
            *(("token", "balanceOf", self.chain.to(name)) for name in ("staking", "escrow", "rewards")),
        )
        return Totals(
            minted=minted,
            burned=minted - supply,
            free=supply - sum(held),
            staked=staked,
            unbonding=unbonding,
            owed=owed,
            escrowed=jobs + pools,
            stray=sum(
                max(has - counts, 0) for has, counts in zip(held, (staked + unbonding, jobs, pools + owed), strict=True)
            ),
        )

    async def head(self) -> Head:
        """Of this coordinator's transactions: others have theirs on the same chain."""
        return Head(*self.chain.journal.newest())

    async def close(self) -> None:
        await self.chain.close()

    def transactions(self, after: int, limit: int) -> list[tuple[Sent, bool, AnyOperation | None]]:
        """At most `limit` of the journal that are on the chain, behind a number: whether each failed there, and what
        it is for, if tokens.
        """
        found = self.chain.journal.mined(after, limit)
        return [(sent, failed, None if failed else operation_of(sent.what)) for sent, failed in found]

    async def unexplained(self) -> int:
        """How many roots of earnings on the chain do not follow from the payments in the journal: 0."""
        count: int = await self.chain.view("rewards", "roundCount", self._operator.address)
        return count - 1 - (await self._published(count))[-1].number

    async def claimable(self, name: str) -> Claimable:
        """What the account can claim of rounds that are valid by now; raises InsufficientFunds if nothing is owed."""
        address = self._wallets.address(name)
        rounds, now = await self._published(), await self.chain.now()
        claimed = await self.chain.view("rewards", "claimed", self._operator.address, address)
        valid = next(one for one in reversed(rounds) if one.valid_from <= now)
        total = valid.totals.get(address, 0)
        if total <= claimed:
            later = next((one for one in rounds if one.totals.get(address, 0) > claimed), None)
            if later is None:
                raise l.InsufficientFunds(f"nothing is owed to {name!r}, or it has been claimed")
            since = datetime.fromtimestamp(later.valid_from, UTC).isoformat(timespec="seconds")
            raise l.InsufficientFunds(
                f"{later.totals[address] - claimed} tokens can be claimed for {name!r} from {since} on: until then "
                "the guardian can veto them"
            )
        path = merkle.proof(valid.leaves(), valid.accounts().index(address))
        return Claimable(valid.number, address, total, claimed, path)

    # -- what an order is on the chain -------------------------------------------------------------------

    async def _call(self, operation: AnyOperation) -> Call:
        chain, key = self.chain, self._wallets.account
        match operation:
            case l.Mint(to=to, amount=amount):
                return chain.call(self._operator, "token", "mint", self._wallets.address(to), amount)
            case l.Transfer(source=source, to=to, amount=amount):
                if source == to:
                    raise l.BadOperation(f"Transfer: source and destination are both {source!r}")
                return chain.call(key(source), "token", "transfer", self._wallets.address(to), amount)
            case l.Stake(account=name, amount=amount):
                return self._pay(name, "staking", amount, b"")
            case l.Unstake(account=name, amount=amount):
                return chain.call(key(name), "staking", "unstake", amount)
            case l.Withdraw(account=name):
                return chain.call(key(name), "staking", "withdraw")
            case l.Escrow(escrow=escrow, payer=payer, amount=amount, purpose=purpose):
                return await self._escrow(escrow, payer, amount, "escrow" if purpose == "job" else "rewards")
            case l.Bond(escrow=escrow, account=name, amount=amount):
                _, place = await self._place(escrow, "escrow")
                return chain.call(key(name), "escrow", "accept", place, amount)
            case l.Release(escrow=escrow):
                _, place = await self._place(escrow, "escrow")
                return chain.call(self._operator, "escrow", "release", place)
            case l.Penalise(escrow=escrow, compensation=compensation):
                _, place = await self._place(escrow, "escrow")
                return chain.call(self._wallets.role("arbiter"), "escrow", "penalise", place, compensation)
            case l.Reward(escrow=escrow, to=to):
                _, place = await self._place(escrow, "escrow")
                return chain.call(self._operator, "escrow", "pay", place, self._wallets.address(to))
            case l.Distribute(escrow=escrow, payments=payments, evidence=evidence):
                _, place = await self._place(escrow, "rewards")
                return await self._distribute(place, payments, evidence)
            case l.Claim(account=name):
                due = await self.claimable(name)
                claim = (self._operator.address, due.round, due.address, due.total, due.proof)
                return chain.call(self._operator, "rewards", "claim", *claim)
            case l.Refund(escrow=escrow):
                holder, place = await self._place(escrow, None)
                return chain.call(self._operator, holder, "refund", place)
            case _:
                raise l.BadOperation(f"{type(operation).__name__}: an order cannot do this")

    async def _offer(self, bond: l.Bond) -> Call:
        _, place = await self._place(bond.escrow, "escrow")
        worker = self._wallets.address(bond.account)
        return self.chain.call(self._operator, "escrow", "offer", place, worker, bond.amount)

    def _pay(self, payer: str, to: str, amount: int, data: bytes) -> Call:
        return self.chain.call(
            self._wallets.account(payer), "token", TRANSFER_AND_CALL, self.chain.to(to), amount, data
        )

    async def _escrow(self, escrow: str, payer: str, amount: int, holder: str) -> Call:
        if (await self._found(escrow, self._wallets.address(self._payer(escrow) or payer))) is not None:
            raise l.EscrowOver(f"there is an escrow {escrow!r} already: choose another id")
        terms = (escrow_id(escrow), self._operator.address, await self.chain.now() + ESCROW_SECONDS)
        return self._pay(payer, holder, amount, encode(["bytes32", "address", "uint64"], terms))

    def _payer(self, escrow: str) -> str | None:
        """Who has paid an escrow in, as the journal has it: another may have paid in under the same name elsewhere."""
        for sent in self.chain.journal.since(self._known):
            self._known = sent.seq
            operation = operation_of(sent.what) if b'"Escrow"' in sent.what else None
            if isinstance(operation, l.Escrow):
                self._payers[operation.escrow] = operation.payer
        return self._payers.get(escrow)

    async def _found(self, escrow: str, payer: str) -> str | None:
        """Which contract holds an escrow, or held it."""
        place = place_of(payer, escrow)
        (_, job, *_), (sponsor, *_) = await self.chain.views(("escrow", "jobs", place), ("rewards", "pools", place))
        return "escrow" if job else "rewards" if int(sponsor, 16) else None

    async def _place(self, escrow: str, wanted: str | None) -> tuple[str, bytes]:
        """Which contract holds an escrow, and under which key; raises NotFound, EscrowOver if it is of another kind."""
        payer = self._payer(escrow)
        address = self._wallets.address(payer) if payer is not None else ""
        holder = await self._found(escrow, address) if payer is not None else None
        if holder is None:
            raise NotFound(f"there is no escrow {escrow!r}")
        if wanted not in (None, holder):
            kinds = {"escrow": "job", "rewards": "pool"}
            raise l.EscrowOver(f"escrow {escrow!r} is a {kinds[holder]}, not a {kinds[str(wanted)]}")
        return holder, place_of(address, escrow)

    # -- earnings ----------------------------------------------------------------------------------------

    async def _distribute(self, pool: bytes, payments: Mapping[str, int], evidence: str) -> Call:
        root = _with((await self._published())[-1], self._addressed(payments)).root()
        amount, proof = sum(payments.values()), bytes.fromhex(evidence or "00" * 32)
        return self.chain.call(self._operator, "rewards", "distribute", pool, amount, root, proof)

    def _addressed(self, payments: Mapping[str, int]) -> list[tuple[str, int]]:
        return [(self._wallets.address(name), amount) for name, amount in payments.items()]

    async def _published(self, count: int | None = None) -> list[Round]:
        """What stands on the chain; payments of the journal that a guardian has vetoed are left out."""
        if count is None:
            count = await self.chain.view("rewards", "roundCount", self._operator.address)
        if count <= self._rounds[-1].number:  # vetoed, or the chain took another branch
            self._rounds, self._read = [Round()], 0
        if count > self._rounds[-1].number + 1:
            for sent in self.chain.journal.done(self._read, -1):
                if self._rounds[-1].number + 1 == count:
                    break
                await self._add(sent)
                self._read = sent.seq
        if len(self._rounds) > 1:
            now = await self.chain.now()
            valid = [index for index, one in enumerate(self._rounds) if one.valid_from <= now]
            del self._rounds[: valid[-1]]
        return self._rounds

    async def _add(self, sent: Sent) -> None:
        """What a transaction of the journal has distributed, if its root stands on the chain."""
        last = self._rounds[-1]
        if b'"Distribute"' not in sent.what:
            return
        operation = operation_of(sent.what)
        if isinstance(operation, l.Distribute):
            question = ("rewards", "rounds", self._operator.address, last.number + 1)
            root, _, _, _, valid_from = await self.chain.view(*question)
            tried = replace(_with(last, self._addressed(operation.payments)), valid_from=valid_from)
            if tried.root() == root:
                self._rounds.append(tried)


def encoded(operation: AnyOperation) -> bytes:
    """As the journal has it."""
    return _encoder.encode(operation)


def operation_of(what: bytes) -> AnyOperation | None:
    """What a transaction of the journal is for; None if it is for another part than the ledger."""
    try:
        return _decoder.decode(what)
    except msgspec.MsgspecError:
        return None


def _with(before: Round, payments: list[tuple[str, int]]) -> Round:
    totals = dict(before.totals)
    for address, amount in payments:
        totals[address] = totals.get(address, 0) + amount
    return Round(before.number + 1, totals)


def escrow_id(escrow: str) -> bytes:
    """The name of an escrow on the chain."""
    return sha256(f"escrow/{escrow}".encode()).digest()


def place_of(payer: str, escrow: str) -> bytes:
    """Where the contracts keep what this address has paid in under this name: each payer has names of its own."""
    return bytes(keccak(encode(["address", "bytes32"], [payer, escrow_id(escrow)])))


def _refusal(operation: AnyOperation, refusal: Reverted) -> Exception:
    kind = _REFUSALS.get(refusal.revert.name) if refusal.revert else None
    return kind(f"{type(operation).__name__}: {refusal}") if kind else refusal
