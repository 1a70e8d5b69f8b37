"""The accounts: what every operation moves, and what it must not.

Double entry: an operation is a set of postings that sum to zero. Each balance lies in a bucket, `free:alice`,
`stake:alice`, `unbonding:alice`, `owed:alice`, `escrow:job-1`; `minted:` is the one that goes below zero (its
negative is the supply ever made), `burned:` the one from which nothing returns.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from tutti.core.errors import Conflict, NotFound
from tutti.domain.ledger import operations as o
from tutti.domain.ledger.operations import AnyOperation

Postings: TypeAlias = dict[str, int]

MINTED, BURNED = "minted:", "burned:"


class InsufficientFunds(Conflict):
    """An account holds less than an operation would take from it."""


class EscrowOver(Conflict):
    """The escrow has been paid out or refunded already, or its id is taken."""


class StillUnbonding(Conflict):
    """Unstaked tokens cannot be withdrawn yet."""


class OverCap(Conflict):
    """More would be minted than the ledger's rules allow."""


@dataclass(frozen=True, slots=True)
class Account:
    """One holder's tokens: `free` to use, `staked` at risk, `unbonding` still at risk, `owed` and not claimed yet."""

    free: int = 0
    staked: int = 0
    unbonding: int = 0
    owed: int = 0


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all holders; `minted = free + staked + unbonding + owed + escrowed + stray + burned`, always.

    `stray`: what somebody has sent to a contract by mistake, where it is nobody's.
    """

    minted: int = 0
    burned: int = 0
    free: int = 0
    staked: int = 0
    unbonding: int = 0
    owed: int = 0
    escrowed: int = 0
    stray: int = 0

    @property
    def conserved(self) -> bool:
        held = self.free + self.staked + self.unbonding + self.owed + self.escrowed + self.stray
        return self.minted == held + self.burned


@dataclass(frozen=True, slots=True)
class Held:
    """An escrow; `over` once nothing can come out of it any more. `bond`: who has taken the job, with how much."""

    payer: str
    purpose: Literal["job", "pool"]
    over: bool = False
    bond: tuple[str, int] | None = None


@dataclass(slots=True, eq=False)
class Books:
    """Every balance. Changed in place by `apply` alone: a copy an entry would cost as much as there are accounts."""

    balances: dict[str, int] = field(default_factory=dict)
    escrows: dict[str, Held] = field(default_factory=dict)
    due: dict[str, int] = field(default_factory=dict)
    bound: dict[str, int] = field(default_factory=dict)
    """Of each account's stake, what is bond of jobs."""
    rules: o.Found = field(default_factory=lambda: o.Found(public_key=""))

    def of(self, bucket: str) -> int:
        return self.balances.get(bucket, 0)

    def account(self, name: str) -> Account:
        return Account(*(self.of(f"{kind}:{name}") for kind in ("free", "stake", "unbonding", "owed")))

    def unbound(self, name: str) -> int:
        """Stake that is no bond."""
        return self.of(f"stake:{name}") - self.bound.get(name, 0)

    def holders(self) -> list[str]:
        """Who holds anything, by name."""
        held = (bucket.partition(":") for bucket, amount in self.balances.items() if amount)
        return sorted({name for kind, _, name in held if kind in ("free", "stake", "unbonding", "owed")})

    def totals(self) -> Totals:
        """Added up anew, bucket by bucket."""
        sums = dict.fromkeys(("free", "stake", "unbonding", "owed", "escrow", "minted", "burned"), 0)
        for bucket, amount in self.balances.items():
            sums[bucket.partition(":")[0]] += amount
        return Totals(
            minted=-sums["minted"],
            burned=sums["burned"],
            free=sums["free"],
            staked=sums["stake"],
            unbonding=sums["unbonding"],
            owed=sums["owed"],
            escrowed=sums["escrow"],
        )

    def decide(self, operation: AnyOperation, at: int) -> Postings:
        """What an operation moves at time `at` (ms); raises a Conflict with the reason if it may not.

        Nothing changes, so a refusal leaves no trace. A posting is signed: what the bucket gains.
        """
        postings = self._postings(operation, at)
        for bucket, amount in postings.items():
            if bucket != MINTED and self.of(bucket) + amount < 0:
                kind, _, name = bucket.partition(":")
                raise InsufficientFunds(
                    f"{type(operation).__name__} takes {-amount} from {name!r}, which has {self.of(bucket)} "
                    f"({_IN_WORDS[kind]}): use less, or pay in first"
                )
        return postings

    def _postings(self, operation: AnyOperation, at: int) -> Postings:
        match operation:
            case o.Found():
                return {}
            case o.Mint(to=to, amount=amount):
                if -self.of(MINTED) + amount > self.rules.cap:
                    raise OverCap(f"minting {amount} would make more than the {self.rules.cap} that may ever be")
                return _move(MINTED, f"free:{to}", amount)
            case o.Transfer(source=source, to=to, amount=amount):
                return _move(f"free:{source}", f"free:{to}", amount)
            case o.Stake(account=name, amount=amount):
                return _move(f"free:{name}", f"stake:{name}", amount)
            case o.Unstake(account=name, amount=amount):
                self._require_unbound(operation, name, amount)
                return _move(f"stake:{name}", f"unbonding:{name}", amount)
            case o.Withdraw(account=name):
                return _move(f"unbonding:{name}", f"free:{name}", self._withdrawable(name, at))
            case o.Escrow(escrow=escrow, payer=payer, amount=amount):
                if escrow in self.escrows:
                    raise EscrowOver(f"there is an escrow {escrow!r} already: choose another id")
                return _move(f"free:{payer}", f"escrow:{escrow}", amount)
            case o.Bond():
                return self._bond(operation)
            case o.Release(escrow=escrow):
                self._bonded(escrow)
                return {}
            case o.Penalise():
                return self._penalise(operation)
            case o.Reward(escrow=escrow, to=to):
                held = self._open_escrow(escrow, "job")
                if held.bond is not None and held.bond[0] != to:
                    raise o.BadOperation(f"Reward: {held.bond[0]!r} has taken the job of {escrow!r}, came {to!r}")
                return _move(f"escrow:{escrow}", f"free:{to}", self.of(f"escrow:{escrow}"))
            case o.Distribute(escrow=escrow, payments=payments):
                self._open_escrow(escrow, "pool")
                total = {f"escrow:{escrow}": -sum(payments.values())}
                return total | {f"owed:{name}": amount for name, amount in payments.items()}
            case o.Claim(account=name):
                if (owed := self.of(f"owed:{name}")) == 0:
                    raise InsufficientFunds(f"nothing is owed to {name!r}, or it has been claimed")
                return _move(f"owed:{name}", f"free:{name}", owed)
            case o.Refund(escrow=escrow):
                held = self._open_escrow(escrow, None)
                return _move(f"escrow:{escrow}", f"free:{held.payer}", self.of(f"escrow:{escrow}"))

    def _withdrawable(self, name: str, at: int) -> int:
        amount, due = self.of(f"unbonding:{name}"), self.due.get(name, 0)
        if amount == 0:
            raise InsufficientFunds(f"{name!r} has nothing that unbonds: unstake first")
        if at < due:
            seconds = -(-(due - at) // 1000)
            raise StillUnbonding(
                f"what {name!r} has unstaked can be withdrawn in {seconds} s ({seconds / 86_400:.1f} days)"
            )
        return amount

    def _require_unbound(self, operation: AnyOperation, name: str, amount: int) -> None:
        if amount > (free := self.unbound(name)):
            raise InsufficientFunds(
                f"{type(operation).__name__} takes {amount} from {name!r}, which has {free} (staked, and no bond of a "
                "job): use less, or pay in first"
            )

    def _bond(self, bond: o.Bond) -> Postings:
        """Nothing moves: a bond is stake that cannot go elsewhere."""
        held = self._open_escrow(bond.escrow, "job")
        if held.bond is not None:
            raise EscrowOver(f"{held.bond[0]!r} has taken the job of {bond.escrow!r}: release it first")
        if bond.account == held.payer:
            raise o.BadOperation(f"Bond: {bond.account!r} pays for the job of {bond.escrow!r}, and cannot take it")
        self._require_unbound(bond, bond.account, bond.amount)
        return {}

    def _bonded(self, escrow: str) -> tuple[Held, str, int]:
        held = self._open_escrow(escrow, "job")
        if held.bond is None:
            raise EscrowOver(f"nobody has taken the job of {escrow!r}: there is no bond")
        return held, *held.bond

    def _penalise(self, wrong: o.Penalise) -> Postings:
        held, name, amount = self._bonded(wrong.escrow)
        if wrong.compensation > min(amount // 2, self.of(f"escrow:{wrong.escrow}")):
            raise o.BadOperation(
                f"Penalise: a compensation is at most half the bond {amount}, and the escrow, came {wrong.compensation}"
            )
        burned = amount - wrong.compensation
        postings = {f"stake:{name}": -amount, f"free:{held.payer}": wrong.compensation, BURNED: burned}
        return {bucket: moved for bucket, moved in postings.items() if moved}

    def _open_escrow(self, escrow: str, purpose: str | None) -> Held:
        held = self.escrows.get(escrow)
        if held is None:
            raise NotFound(f"there is no escrow {escrow!r}")
        if held.over:
            raise EscrowOver(f"escrow {escrow!r} has been paid out or refunded: it pays once")
        if purpose is not None and held.purpose != purpose:
            raise EscrowOver(f"escrow {escrow!r} is a {held.purpose}, not a {purpose}")
        return held

    def apply(self, operation: AnyOperation, postings: Mapping[str, int], at: int) -> None:
        """Book what `decide` gave out."""
        for bucket, amount in postings.items():
            self.balances[bucket] = self.balances.get(bucket, 0) + amount
            if self.balances[bucket] == 0:
                del self.balances[bucket]
        match operation:
            case o.Found():
                self.rules = operation
            case o.Unstake(account=name):
                self.due[name] = at + 1000 * self.rules.unbonding
            case o.Escrow(escrow=escrow, payer=payer, purpose=purpose):
                self.escrows[escrow] = Held(payer, purpose)
            case o.Bond(escrow=escrow, account=name, amount=amount):
                self.escrows[escrow] = replace(self.escrows[escrow], bond=(name, amount))
                self.bound[name] = self.bound.get(name, 0) + amount
            case o.Release(escrow=escrow) | o.Penalise(escrow=escrow):
                self._unbind(escrow)
            case o.Reward(escrow=escrow) | o.Refund(escrow=escrow):
                self._unbind(escrow)
                self.escrows[escrow] = replace(self.escrows[escrow], over=True)
            case _:
                pass

    def _unbind(self, escrow: str) -> None:
        held = self.escrows[escrow]
        if held.bond is not None:
            name, amount = held.bond
            self.bound[name] -= amount
            self.escrows[escrow] = replace(held, bond=None)


_IN_WORDS = {
    "free": "free",
    "stake": "staked",
    "unbonding": "unbonding, all its stake counted",
    "owed": "owed",
    "escrow": "in escrow",
}


def _move(source: str, to: str, amount: int) -> Postings:
    if source == to:
        raise o.BadOperation(f"Transfer: source and destination are both {source.partition(':')[2]!r}")
    return {source: -amount, to: amount}
