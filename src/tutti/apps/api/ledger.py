"""The ledger, and what nodes have earned: everything that is needed to check both."""

import re
from itertools import islice
from typing import Annotated

import msgspec
from fastapi import Depends, Query, Request

from tutti.adapters.ledgers.signed import SignedLedger
from tutti.apps.api.jobs import order_key, page_by_name
from tutti.apps.api.schema import After, Answer, Api, Body, Limit, OrderKey
from tutti.core.errors import Conflict, UserError
from tutti.domain.contributions import Proof, prove
from tutti.domain.ledger import Claim, Entry, Mint, Order, Transfer
from tutti.domain.ledger.operations import AccountName, Amount, PeoplesKey
from tutti.ports.ledger import Ledger
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

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")


class MintRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """New tokens. The same `key` again mints nothing more."""

    to: AccountName
    amount: Amount
    key: PeoplesKey


class TransferRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tokens for another account. The same `key` again moves nothing more."""

    to: AccountName
    amount: Amount
    key: PeoplesKey


class LedgerRoutes:
    def __init__(self, desk: RewardDesk, ledger: Ledger, market: MarketFloor) -> None:
        self._desk, self._ledger, self._market = desk, ledger, market

    @property
    def _book(self) -> SignedLedger:
        """The ledger as a chain of signed entries."""
        if not isinstance(self._ledger, SignedLedger):
            raise Conflict(
                "the tokens are on a chain, whose transactions are the entries: GET /api/v1/blockchain/transactions "
                "has this coordinator's, and `tutti ledger verify` checks them"
            )
        return self._ledger

    async def show(self) -> Answer[LedgerView]:
        """The sums over all accounts, the key that signs entries, and the newest entry's hash."""
        return Answer(ledger_view(await self._ledger.head(), await self._ledger.totals()))

    async def entries(self, limit: Limit = 1000, after: Annotated[int, Query(ge=-1)] = -1) -> Answer[Page[Entry]]:
        """Every entry from the founding (0) on; `tutti ledger verify` checks them all."""
        found = await self._book.read(after, limit)
        return Answer(Page(items=found, next=str(found[-1].seq) if len(found) == limit else None))

    async def accounts(self, limit: Limit = 100, after: After = "") -> Answer[Page[BalanceView]]:
        """Who holds tokens, by name."""
        held = {name: account for name, account in (await self._ledger.holders()).items() if name > after}
        found = [balance_view(name, account) for name, account in islice(held.items(), limit)]
        return Answer(Page(items=found, next=found[-1].account if len(held) > limit else None))

    async def account(self, name: str) -> Answer[BalanceView]:
        return Answer(balance_view(name, await self._ledger.account(name)))

    async def claim(self, request: Request, name: str, key: OrderKey) -> Answer[BalanceView]:
        """Take everything that is owed to an account."""
        await self._ledger.post(Order(order_key(request, key), Claim(account=name)))
        return await self.account(name)

    async def transfer(
        self, request: Request, name: str, wish: Annotated[TransferRequest, Depends(Body(TransferRequest))]
    ) -> Answer[BalanceView]:
        """Move tokens of an account to another; on a chain that may be an address, 0x and 40 hex digits."""
        _check_address(wish.to)
        await self._ledger.post(
            Order(order_key(request, wish.key), Transfer(source=name, to=wish.to, amount=wish.amount))
        )
        self._desk.poke()
        return await self.account(name)

    async def mint(
        self, request: Request, wish: Annotated[MintRequest, Depends(Body(MintRequest))]
    ) -> Answer[BalanceView]:
        """Make new tokens, for instance for a sponsor of rewards."""
        _check_address(wish.to)
        await self._ledger.post(Order(order_key(request, wish.key), Mint(to=wish.to, amount=wish.amount)))
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


def _check_address(account: str) -> None:
    """Raises UserError for what was meant to be an address: tokens would be lost in an account that nobody has."""
    if account[:2].lower() == "0x" and not _ADDRESS.fullmatch(account):
        raise UserError(f"an address is 0x and 40 hex digits, and no other name begins with 0x; came {account!r}")


def add_routes(api: Api, ledger: LedgerRoutes) -> None:
    root = "/api/v1/ledger"
    api.add("GET", root, ledger.show, "ledger")
    api.add("GET", root + "/entries", ledger.entries, "ledger")
    api.add("POST", root + "/mint", ledger.mint, "ledger")
    api.add("GET", root + "/accounts", ledger.accounts, "ledger")
    api.add("GET", root + "/accounts/{name}", ledger.account, "ledger")
    api.add("POST", root + "/accounts/{name}/claim", ledger.claim, "ledger")
    api.add("GET", "/api/v1/rewards", ledger.all_rewards, "ledger")
    api.add("POST", root + "/accounts/{name}/transfer", ledger.transfer, "ledger")
    api.add("GET", "/api/v1/jobs/{job}/rewards", ledger.rewards, "ledger")
    api.add("GET", "/api/v1/jobs/{job}/rewards/{round}", ledger.scored, "ledger")
    api.add("GET", "/api/v1/jobs/{job}/rewards/{round}/proof/{node}", ledger.proof, "ledger")
