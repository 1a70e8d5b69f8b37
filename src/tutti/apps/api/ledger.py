"""The ledger, and what nodes have earned: everything that is needed to check both."""

from itertools import islice
from typing import Annotated

import msgspec
from fastapi import Depends, Header, Query

from tutti.adapters.ledgers.sqlite import SqliteLedger
from tutti.apps.api.jobs import page_by_name
from tutti.apps.api.schema import After, Answer, Api, Body, Limit
from tutti.domain.contributions import Proof, prove
from tutti.domain.ledger import Claim, Entry, Mint, Order
from tutti.domain.ledger.operations import AccountName, Amount, Key
from tutti.services.market.floor import MarketFloor
from tutti.services.rewards import RewardDesk
from tutti.services.views.base import Page
from tutti.services.views.ledger import (
    BalanceView,
    LedgerView,
    RewardsView,
    ScoredView,
    balance_view,
    ledger_view,
    rewards_view,
    scored_view,
)


class MintRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """New tokens. The same `key` again mints nothing more."""

    to: AccountName
    amount: Amount
    key: Key


class LedgerRoutes:
    def __init__(self, desk: RewardDesk, ledger: SqliteLedger, market: MarketFloor) -> None:
        self._desk, self._ledger, self._market = desk, ledger, market

    async def show(self) -> Answer[LedgerView]:
        """The sums over all accounts, the key that signs entries, and the newest entry's hash."""
        newest = await self._ledger.newest()
        return Answer(ledger_view(self._ledger.public_key, newest, await self._ledger.totals()))

    async def entries(self, limit: Limit = 1000, after: Annotated[int, Query(ge=-1)] = -1) -> Answer[Page[Entry]]:
        """Every entry from the founding (0) on; `tutti ledger verify` checks them all."""
        found = await self._ledger.read(after, limit)
        return Answer(Page(items=found, next=str(found[-1].seq) if len(found) == limit else None))

    async def accounts(self, limit: Limit = 100, after: After = "") -> Answer[Page[BalanceView]]:
        """Who holds tokens, by name."""
        held = {name: account for name, account in (await self._ledger.holders()).items() if name > after}
        found = [balance_view(name, account) for name, account in islice(held.items(), limit)]
        return Answer(Page(items=found, next=found[-1].account if len(held) > limit else None))

    async def account(self, name: str) -> Answer[BalanceView]:
        return Answer(balance_view(name, await self._ledger.account(name)))

    async def claim(self, name: str, key: Annotated[str, Header(alias="Idempotency-Key")]) -> Answer[BalanceView]:
        """Take everything that is owed to an account."""
        await self._ledger.post(Order(key, Claim(account=name)))
        return await self.account(name)

    async def mint(self, wish: Annotated[MintRequest, Depends(Body(MintRequest))]) -> Answer[BalanceView]:
        """Make new tokens, for instance for a sponsor of rewards."""
        await self._ledger.post(Order(wish.key, Mint(to=wish.to, amount=wish.amount)))
        self._desk.poke()
        self._market.raise_stakes()
        return await self.account(wish.to)

    async def all_rewards(self, limit: Limit = 100, after: After = "") -> Answer[Page[RewardsView]]:
        """The jobs that pay for contributions, newest first."""
        jobs = page_by_name([*reversed(self._desk.accounts)], limit, after, str)
        views = [rewards_view(job, self._desk.accounts[job]) for job in jobs.items]
        return Answer(Page(items=views, next=jobs.next))

    async def rewards(self, job: str) -> Answer[RewardsView]:
        """Which rounds of a job are scored and paid."""
        return Answer(rewards_view(job, self._desk.account(job)))

    async def scored(self, job: str, round: int) -> Answer[ScoredView]:
        """What each node earned in a round, and why."""
        return Answer(scored_view(self._desk.scored(job, round)))

    async def proof(self, job: str, round: int, node: str) -> Answer[Proof]:
        """That a node's update is among those of a round: a path to the root in the ledger."""
        return Answer(prove(self._desk.scored(job, round).contributions, node))


def add_routes(api: Api, ledger: LedgerRoutes) -> None:
    root = "/api/v1/ledger"
    api.add("GET", root, ledger.show, "ledger")
    api.add("GET", root + "/entries", ledger.entries, "ledger")
    api.add("POST", root + "/mint", ledger.mint, "ledger")
    api.add("GET", root + "/accounts", ledger.accounts, "ledger")
    api.add("GET", root + "/accounts/{name}", ledger.account, "ledger")
    api.add("POST", root + "/accounts/{name}/claim", ledger.claim, "ledger")
    api.add("GET", "/api/v1/rewards", ledger.all_rewards, "ledger")
    api.add("GET", "/api/v1/jobs/{job}/rewards", ledger.rewards, "ledger")
    api.add("GET", "/api/v1/jobs/{job}/rewards/{round}", ledger.scored, "ledger")
    api.add("GET", "/api/v1/jobs/{job}/rewards/{round}/proof/{node}", ledger.proof, "ledger")
