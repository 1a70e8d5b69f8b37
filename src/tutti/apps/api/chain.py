"""The chain: whether it is there, what is recorded on it, and what can be claimed from it."""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from fastapi import Query

from tutti.apps.api.schema import Answer, Api, Limit
from tutti.core.errors import NotFound, TuttiError
from tutti.domain.contributions import prove
from tutti.domain.ledger import accounts_of
from tutti.domain.signing import session_of
from tutti.services.notary import NotaryDesk
from tutti.services.views.base import Page
from tutti.services.views.chain import (
    BlockView,
    ChainSessionView,
    ChainView,
    ClaimView,
    ProvenView,
    RecordedView,
    TransactionView,
)

if TYPE_CHECKING:
    from tutti.adapters.ledgers.evm import EvmLedger
    from tutti.adapters.notaries.evm import EvmNotary

NO_CHAIN = "this coordinator uses no chain, and keeps its own ledger: `tutti chain deploy` gives it one"
ROLES = ("operator", "arbiter", "guardian")

Number = Annotated[int, Query(ge=0, description="Continue after this one.")]


@dataclass(frozen=True, slots=True)
class OnChain:
    """A coordinator's parts that speak to its chain."""

    desk: NotaryDesk
    notary: "EvmNotary"
    ledger: "EvmLedger"


class ChainRoutes:
    def __init__(self, parts: OnChain | None) -> None:
        self._maybe = parts

    @property
    def _parts(self) -> OnChain:
        if self._maybe is None:
            raise NotFound(NO_CHAIN)
        return self._maybe

    async def status(self) -> Answer[ChainView]:
        """Whether the chain answers, where its contracts are, and what they hold."""
        if self._maybe is None:
            return Answer(ChainView(connected=False, error=NO_CHAIN))
        chain, desk = self._parts.ledger.chain, self._parts.desk
        facts: dict[str, Any] = {
            "node": _shown(chain.deployment.rpc),
            "chain_id": chain.deployment.chain_id,
            "contracts": chain.deployment.contracts,
            "roles": {role: chain.role(role) for role in ROLES},
            "waiting": desk.waiting,
        }
        try:
            block = int(await chain.rpc.call("eth_blockNumber"), 16)
            totals, sessions = await self._parts.ledger.totals(), await self._parts.notary.count()
        except TuttiError as error:
            return Answer(ChainView(connected=False, error=str(error), **facts))
        return Answer(
            ChainView(
                connected=True,
                error=desk.trouble,
                block=block,
                sessions=sessions,
                minted=totals.minted,
                staked=totals.staked,
                owed=totals.owed,
                escrowed=totals.escrowed,
                **facts,
            )
        )

    async def sessions(self, limit: Limit = 50, after: str = "") -> Answer[Page[ChainSessionView]]:
        """The jobs of this coordinator that the chain knows, newest first."""
        names = [job for job, session in self._parts.desk.sessions.items() if session.opened][::-1]
        start = names.index(after) + 1 if after in names else 0
        chosen = names[start : start + limit]
        more = chosen[-1] if start + limit < len(names) else None
        return Answer(Page(items=[await self._session(job) for job in chosen], next=more))

    async def session(self, job: str) -> Answer[ChainSessionView]:
        """A job as it stands on the chain."""
        return Answer(await self._session(job))

    async def _session(self, job: str) -> ChainSessionView:
        found = await self._parts.notary.session(job)
        known = self._parts.desk.sessions.get(job)
        return ChainSessionView(
            job=job,
            session="0x" + session_of(job).hex(),
            coordinator=found.coordinator,
            opened_at=found.opened_at,
            closed_at=found.closed_at,
            rounds=found.rounds,
            spec=found.spec,
            data=found.data,
            model=found.model,
            recorded=sorted(known.recorded) if known else [],
        )

    async def recorded(self, job: str, round: int) -> Answer[RecordedView]:
        """A round's root as it stands on the chain."""
        found = await self._parts.notary.round(job, round)
        return Answer(
            RecordedView(job=job, round=round, root=found.root, model=found.model, count=found.count, at=found.at)
        )

    async def proof(self, job: str, round: int, node: str) -> Answer[ProvenView]:
        """That a node's update is among those of a round, as the contract itself checks it."""
        proof = prove(self._parts.desk.round(job, round).contributions, node)
        return Answer(ProvenView(proof=proof, verified=await self._parts.notary.holds(proof)))

    async def transactions(self, limit: Limit = 100, after: Number = 0) -> Answer[Page[TransactionView]]:
        """This coordinator's transactions, in order: what `tutti ledger verify` checks against the chain."""
        found = self._parts.ledger.transactions(after, limit)
        address = self._parts.ledger.chain.wallets.address
        views = [
            TransactionView(
                seq=sent.seq,
                key=sent.key,
                hash=sent.hash,
                raw=sent.raw.hex(),
                failed=failed,
                operation=operation,
                accounts={name: address(name) for name in (accounts_of(operation) if operation else ())},
            )
            for sent, failed, operation in found
        ]
        return Answer(Page(items=views, next=str(views[-1].seq) if len(views) == limit else None))

    async def blocks(self, limit: Limit = 100, after: Number = 0) -> Answer[Page[BlockView]]:
        """The blocks of an embedded chain, which anybody can execute again; of any other, ask its nodes."""
        from tutti.adapters.chain.embedded import EmbeddedChain

        rpc = self._parts.ledger.chain.rpc
        if not isinstance(rpc, EmbeddedChain):
            raise NotFound(f"the blocks are on {_shown(self._parts.ledger.chain.deployment.rpc)}: ask a node of it")
        found = await asyncio.to_thread(rpc.blocks, after, limit)
        views = [
            BlockView(number=number, time=time, transaction=hash, raw=raw.hex()) for number, time, hash, raw in found
        ]
        return Answer(Page(items=views, next=str(views[-1].number) if len(views) == limit else None))

    async def claimable(self, name: str) -> Answer[ClaimView]:
        """What an account can claim, with the proof: enough to claim it from any wallet, without this coordinator."""
        ledger = self._parts.ledger
        found = await ledger.claimable(name)
        return Answer(
            ClaimView(
                account=name,
                address=found.address,
                owed=found.total - found.claimed,
                contract=ledger.chain.to("rewards"),
                coordinator=str(ledger.chain.operator.address),
                round=found.round,
                total=found.total,
                proof=["0x" + step.hex() for step in found.proof],
            )
        )


def _shown(rpc: str) -> str:
    """A node's address without what may be secret in it, such as a provider's key in the path."""
    parts = urlsplit(rpc)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}" if parts.hostname else rpc


def add_routes(api: Api, its: ChainRoutes) -> None:
    root = "/api/v1/blockchain"
    api.add("GET", root + "/status", its.status, "blockchain")
    api.add("GET", root + "/sessions", its.sessions, "blockchain")
    api.add("GET", root + "/sessions/{job}", its.session, "blockchain")
    api.add("GET", root + "/sessions/{job}/rounds/{round}", its.recorded, "blockchain")
    api.add("GET", root + "/sessions/{job}/rounds/{round}/proof/{node}", its.proof, "blockchain")
    api.add("GET", root + "/claims/{name}", its.claimable, "blockchain")
    api.add("GET", root + "/transactions", its.transactions, "blockchain")
    api.add("GET", root + "/blocks", its.blocks, "blockchain")
