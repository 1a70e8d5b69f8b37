"""What `tutti ledger export` writes and `tutti ledger verify` reads, and the checks, which trust no coordinator."""

import asyncio
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tutti.core.errors import NotFound, UserError
from tutti.domain.contributions import (
    BadProof,
    Contribution,
    Proof,
    check_audits,
    check_history,
    check_paid,
    check_proof,
    check_signers,
    entry_of,
    payment_key,
)
from tutti.domain.ledger import BadChain, Distribute, Entry, Totals, verify_chain
from tutti.services.views.chain import BlockView, ChainView, TransactionView
from tutti.services.views.ledger import RewardsView, ScoredView

if TYPE_CHECKING:
    from tutti.apps.client import Client


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the file: an entry of the coordinator's own ledger, or of a chain what there is instead of it.

    `block`: of an embedded chain. `round`: what each update of a round was worth. `rewards`: of a job, with
    what drew its audits.
    """

    entry: Entry | None = None
    chain: ChainView | None = None
    transaction: TransactionView | None = None
    block: BlockView | None = None
    round: ScoredView | None = None
    rewards: RewardsView | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """Everything that a coordinator tells of its tokens."""

    entries: Sequence[Entry]
    chain: ChainView | None
    transactions: Sequence[TransactionView]
    blocks: Sequence[BlockView]
    rounds: Sequence[ScoredView]
    rewards: Sequence[RewardsView]

    @classmethod
    def of(cls, lines: Iterable[Line]) -> "Told":
        lines = list(lines)
        return cls(
            [line.entry for line in lines if line.entry],
            next((line.chain for line in lines if line.chain), None),
            [line.transaction for line in lines if line.transaction],
            [line.block for line in lines if line.block],
            [line.round for line in lines if line.round],
            [line.rewards for line in lines if line.rewards],
        )

    @property
    def orders(self) -> "Sequence[Entry | TransactionView]":
        """What moved tokens, under which key."""
        return self.entries if self.chain is None else self.transactions


def ask(client: "Client", jobs: Iterable[str]) -> Iterator[Line]:
    """All of it from a coordinator, with the rounds of these jobs."""
    if client.ledger().public_key:
        yield from (Line(entry=entry) for entry in client.entries())
    else:
        chain = client.chain()
        yield Line(chain=chain)
        yield from (Line(transaction=one) for one in client.transactions())
        if chain.node == "embedded":
            yield from (Line(block=block) for block in client.blocks())
    for job in jobs:
        rewards = client.rewards(job)
        yield Line(rewards=rewards)
        yield from (Line(round=client.scored(job, number)) for number in rewards.scored)


def read(file: Path) -> Iterator[Line]:
    try:
        yield from (msgspec.json.decode(line, type=Line) for line in file.read_bytes().splitlines() if line)
    except msgspec.MsgspecError as error:
        raise UserError(f"{file} does not hold lines as `tutti ledger export` writes them: {error}") from None


def check_books(told: Told, key: str, head: str | None) -> Totals:
    """Of the coordinator's own ledger; raises BadChain."""
    from tutti.adapters.identities.ed25519 import verify

    return verify_chain(told.entries, verify, key, head=head).totals()


def check_chain(told: Told, key: str, head: str | None, rpc: str | None) -> Totals:
    """Of a ledger on a chain, whose operator's address is `key`; raises BadChain, Unavailable."""
    chain = told.chain
    assert chain is not None
    if chain.roles.get("operator", "").lower() != key.lower():
        raise BadChain(f"the transactions are those of {chain.roles.get('operator')}, not of {key}")
    if head is not None and head not in {one.hash for one in told.transactions}:
        raise BadChain(f"no transaction has the hash {head[:18]}…: some are missing")
    if rpc is None and chain.node != "embedded":
        rpc = chain.node
    return asyncio.run(_check_chain(told, chain, rpc))


async def _check_chain(told: Told, chain: ChainView, url: str | None) -> Totals:
    from tutti.adapters.chain.rpc import HttpRpc
    from tutti.adapters.chain.verify import check, replayed

    with tempfile.TemporaryDirectory(prefix="tutti-") as folder:
        place = Path(folder)
        rpc = HttpRpc(url) if url else await replayed(place / "chain.sqlite", told.blocks)
        try:
            return await check(rpc, chain, told.transactions, place)
        finally:
            await rpc.close()


def check_rounds(told: Told, job: str | None) -> tuple[list[ScoredView], list[ScoredView]]:
    """The rounds (of a job) that are paid by the rule, and those not paid yet; raises BadProof for any other.

    And for standings that do not go on from those of the rounds before, and audits that were not drawn.
    """
    rounds = [one for one in told.rounds if _is_of(one.job, job)]
    if job is not None and not rounds:
        raise NotFound(f"there are no scored rounds of {job!r}")
    by_job: dict[str, dict[int, list[Contribution]]] = {}
    for one in rounds:
        by_job.setdefault(one.job, {})[one.round] = [each.contribution for each in one.earned]
    for name, its in by_job.items():
        check_history(name, its)
    _check_all_told(told, rounds, job)
    for rewards in told.rewards:
        if rewards.secret and rewards.job in by_job:
            check_audits(rewards.job, rewards.commitment, rewards.secret, by_job[rewards.job])
    orders = {one.key: one for one in told.orders}
    paid = []
    for one in rounds:
        order = orders.get(payment_key(one.job, one.round))
        paid.append(check_paid(by_job[one.job][one.round], one.pool, [order] if order else []))
    return (
        [one for one, is_paid in zip(rounds, paid, strict=True) if is_paid],
        [one for one, is_paid in zip(rounds, paid, strict=True) if not is_paid],
    )


def _is_of(name: str, job: str | None) -> bool:
    """Whether a job is the one asked for, whose name need not have its suffix."""
    return job in (None, name, name.rpartition("-")[0])


def _check_all_told(told: Told, rounds: Sequence[ScoredView], job: str | None) -> None:
    """No round is left out that its job says it scored, or that tokens were paid for; raises BadProof."""
    known = {payment_key(one.job, one.round) for one in rounds}
    its = [rewards for rewards in told.rewards if _is_of(rewards.job, job)]
    scored = [payment_key(rewards.job, number) for rewards in its for number in rewards.scored]
    names = {one.job for one in rounds} | {rewards.job for rewards in its}
    paid = [one.key for one in told.orders if isinstance(one.operation, Distribute)]
    of_these = [key for key in paid if job is None or key.split("/")[1] in names]
    for key in (*scored, *of_these):
        if key not in known:
            _, name, number = key.split("/")
            raise BadProof(f"round {number} of {name} was scored or paid, and what it was paid for is left out")


def check_signed(contributions: Iterable[Contribution], known: Mapping[str, str]) -> dict[str, tuple[int, str]]:
    """By node, how many updates it has, and as which address it has signed them (empty: it has no key)."""
    from tutti.adapters.identities.secp256k1 import verify

    return check_signers(contributions, verify, known)


def check_one(file: Path, told: Told) -> tuple[Contribution, int]:
    """The contribution of a proof, and the number of the order that pays its round; raises BadProof."""
    try:
        proof = msgspec.json.decode(file.read_bytes(), type=Proof)
    except msgspec.MsgspecError as error:
        raise UserError(f"{file} does not hold a proof as `tutti rewards --proof` writes it: {error}") from None
    check_proof(proof)
    return proof.contribution, entry_of(proof, told.orders).seq
