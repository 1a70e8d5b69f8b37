"""Tokens and what they were paid for."""

from tutti.domain.contributions import Contribution, Proof, payments_of, why
from tutti.domain.events import ContributionsScored, Digest
from tutti.domain.ledger import Account, Entry, Totals
from tutti.ports.ledger import Head
from tutti.services.rewards import Account as RewardAccount
from tutti.services.views.base import View

__all__ = ["BalanceView", "EarnedView", "Entry", "LedgerView", "Proof", "RewardsView", "ScoredView"]


class BalanceView(View, frozen=True, kw_only=True):
    """What an account holds, in whole tokens."""

    account: str
    free: int
    staked: int
    unbonding: int
    owed: int


def balance_view(name: str, account: Account) -> BalanceView:
    return BalanceView(
        account=name, free=account.free, staked=account.staked, unbonding=account.unbonding, owed=account.owed
    )


class LedgerView(View, frozen=True, kw_only=True):
    """The ledger as a whole. `head` is the newest entry's hash: whoever notes it sees if the chain is cut short.

    Where the tokens are on a chain, an entry is a transaction of this coordinator's, and there is no `public_key`.
    """

    public_key: str
    head: str
    entries: int
    minted: int
    burned: int
    free: int
    staked: int
    unbonding: int
    owed: int
    escrowed: int
    stray: int


def ledger_view(head: Head, totals: Totals) -> LedgerView:
    return LedgerView(
        public_key=head.public_key,
        head=head.hash,
        entries=head.entries,
        minted=totals.minted,
        burned=totals.burned,
        free=totals.free,
        staked=totals.staked,
        unbonding=totals.unbonding,
        owed=totals.owed,
        escrowed=totals.escrowed,
        stray=totals.stray,
    )


class EarnedView(View, frozen=True, kw_only=True):
    """What one node earned in a round, and why."""

    contribution: Contribution
    why: str


class ScoredView(View, frozen=True, kw_only=True):
    """A round's contributions, in the order of the Merkle tree whose root stands in the ledger."""

    job: str
    round: int
    base: Digest
    model: Digest
    data: str
    rows: Digest
    seed: int
    pool: int
    root: str
    note: str
    earned: list[EarnedView]


def scored_view(event: ContributionsScored) -> ScoredView:
    sound = sum(not one.fault for one in event.contributions)
    return ScoredView(
        job=event.job,
        round=event.round,
        base=event.base,
        model=event.model,
        data=str(event.data),
        rows=event.rows,
        seed=event.seed,
        pool=event.pool,
        root=event.root,
        note=event.note,
        earned=[EarnedView(contribution=one, why=why(one, event.pool, sound)) for one in event.contributions],
    )


class RewardsView(View, frozen=True, kw_only=True):
    """A job's rewards. `earned`: by node, over all scored rounds; `unpaid`: why they are not paid yet, if so.

    `commitment`: to the secret that draws the rounds that are audited; `secret`: itself, once all is settled.
    """

    job: str
    pool: int
    sponsor: str
    scored: list[int]
    waiting: list[int]
    settled: bool
    unpaid: str
    earned: dict[str, int]
    commitment: str = ""
    secret: str = ""


def rewards_view(job: str, account: RewardAccount) -> RewardsView:
    earned: dict[str, int] = {}
    for event in account.scored.values():
        for one, paid in zip(event.contributions, payments_of(event.contributions, event.pool), strict=True):
            earned[one.node] = earned.get(one.node, 0) + paid
    return RewardsView(
        job=job,
        pool=account.rewards.pool,
        sponsor=account.rewards.sponsor,
        scored=sorted(account.scored),
        waiting=sorted(account.due),
        settled=account.settled,
        unpaid=account.unpaid,
        earned=dict(sorted(earned.items())),
        commitment=account.commitment,
        secret=account.secret,
    )
