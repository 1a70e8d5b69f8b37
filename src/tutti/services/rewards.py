"""Scores the rounds of jobs that have rewards, and pays for them, behind the back of the rounds themselves.

A projection of the event log: `observe` is told every event and only notes what is owed; `run` works it off, one
round after another. A round's scores are an event of their own, and every payment has a key that is made of job and
round, so that all of it may happen again after a crash.
"""

import asyncio
import contextlib
import hmac
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MappingProxyType

from tutti.core.errors import Conflict, NotFound, StorageError, TuttiError
from tutti.domain import events as e
from tutti.domain.contributions import (
    account_of,
    commitment_to,
    escrow_of,
    is_audited,
    payment_key,
    root_of,
    settle,
)
from tutti.domain.events import Digest
from tutti.domain.history import is_in
from tutti.domain.jobs import Job
from tutti.domain.ledger import AnyOperation, Distribute, Escrow, Order, Refund
from tutti.domain.spec import Rewards
from tutti.ports import BlobStore, Recorded, Workbench
from tutti.ports.ledger import Ledger
from tutti.services.journal import Journal
from tutti.services.scoring import Closed, Past, Scorer

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0


@dataclass(slots=True, eq=False)
class Account:
    """What is known of one job's rewards. `due`: rounds to score; `unpaid`: why the pool does not pay, if so.

    `commitment`: to the secret that draws the audits; `secret`: itself, in hex, once all is settled.
    """

    rewards: Rewards
    opened: e.RoundOpened | None = None
    accepted: dict[str, e.UpdateAccepted] = field(default_factory=dict)
    due: dict[int, Closed] = field(default_factory=dict)
    scored: dict[int, e.ContributionsScored] = field(default_factory=dict)
    standings: dict[str, int] = field(default_factory=dict)
    past: Past = field(default_factory=lambda: Past(set(), []))
    paid: set[int] = field(default_factory=set)
    over: bool = False
    settled: bool = False
    unpaid: str = ""
    commitment: str = ""
    secret: str = ""


class RewardDesk:
    """Made before the journal is loaded, so that it sees every event from the first on."""

    def __init__(
        self,
        journal: Journal,
        blobs: BlobStore,
        workbench: Workbench,
        ledger: Ledger,
        clock: Callable[[], float],
        key: bytes,
    ) -> None:
        """`key`: 32 bytes that nobody else knows, and that stay; the secrets of the jobs' audits follow from it."""
        self.ledger, self._key = ledger, key
        self._journal, self._clock = journal, clock
        self._scorer = Scorer(blobs, workbench)
        self._accounts: dict[str, Account] = {}
        self._changed = asyncio.Event()
        journal.projections.append(self.observe)

    @property
    def accounts(self) -> MappingProxyType[str, Account]:
        """By job."""
        return MappingProxyType(self._accounts)

    def retained(self) -> set[Digest]:
        """Blobs of rounds that are still to be scored."""
        kept: set[Digest] = set()
        for account in self._accounts.values():
            for closed in account.due.values():
                kept |= {closed.base, closed.model, *(update.digest for update in closed.updates)}
        return kept

    def poke(self) -> None:
        """Try again: perhaps a sponsor has been given tokens."""
        self._changed.set()

    def account(self, job: str) -> Account:
        """What is known of a job's rewards; raises NotFound if it has none."""
        if job not in self._accounts:
            raise NotFound(f"job {job!r} has no rewards: give it some with rewards.pool and rewards.data")
        return self._accounts[job]

    def scored(self, job: str, round: int) -> e.ContributionsScored:
        """The scores of a round; raises NotFound while there are none."""
        account = self.account(job)
        if round not in account.scored:
            raise NotFound(f"round {round} of job {job!r} has not been scored")
        return account.scored[round]

    # -- the projection ----------------------------------------------------------------------------------

    def observe(self, recorded: Recorded) -> None:
        event = recorded.event
        if isinstance(event, e.JobSubmitted):
            if event.spec.rewards is not None:
                self._accounts[event.job] = Account(event.spec.rewards)
                self._changed.set()
            return
        account = self._accounts.get(recorded.stream.partition(":")[2])
        if account is None or recorded.stream == "nodes":
            return
        match event:
            case e.RoundOpened():
                account.opened, account.accepted = event, {}
            case e.UpdateAccepted(node=node):
                account.accepted[node] = event
            case e.UpdateLost(node=node) | e.NodeDropped(node=node):
                account.accepted.pop(node, None)
            case e.RoundClosed():
                self._closed(recorded.stream.partition(":")[2], account, event)
            case e.AuditsCommitted(commitment=commitment):
                account.commitment = commitment
            case e.ContributionsScored():
                self._scored(account, event)
            case e.RewardsSettled(secret=secret):
                account.settled, account.secret = True, secret
            case e.JobCompleted() | e.JobStopped() | e.JobFailed():
                account.over = True
            case _:
                return
        self._changed.set()

    def _closed(self, job: str, account: Account, event: e.RoundClosed) -> None:
        opened, account.opened = account.opened, None
        if opened is not None and opened.task == "train" and event.round not in account.scored:
            counted = [update for node, update in account.accepted.items() if node in event.counted]
            account.due[event.round] = Closed(
                job,
                event.round,
                opened.model,
                event.model,
                updates=tuple(update for update in counted if is_in(event.shares, update.node)),
                left_out=tuple(update for update in counted if not is_in(event.shares, update.node)),
            )

    def _scored(self, account: Account, event: e.ContributionsScored) -> None:
        account.due.pop(event.round, None)
        account.scored[event.round] = event
        account.standings |= {one.node: one.standing for one in event.contributions}
        account.past.add([one.digest for one in event.contributions])

    # -- the work ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled. Trouble with one job is told in its `unpaid`, waited out, and keeps no other waiting."""
        while True:
            self._changed.clear()
            in_trouble = False
            for job in [job for job, account in self._accounts.items() if not account.settled]:
                account = self._accounts[job]
                try:
                    await self._work_off(self._journal.jobs[job], account)
                except (TuttiError, OSError) as error:
                    log.error("job %s: its rewards wait: %s", job, error)
                    account.unpaid, in_trouble = str(error), True
            if in_trouble:
                await asyncio.sleep(RETRY_SECONDS)
            else:
                await self._changed.wait()

    async def _work_off(self, job: Job, account: Account) -> None:
        secret = self._secret(job.id)
        if not account.commitment and not account.scored:
            commitment = commitment_to(secret)
            await self._journal.reward(e.AuditsCommitted(at=self._clock(), job=job.id, commitment=commitment))
        for number in sorted(account.due):
            await self._score(job, account, account.due[number])
        account.unpaid = await self._pay(job, account)
        if account.over and not account.due and not (account.unpaid and account.scored):
            with contextlib.suppress(NotFound):  # nothing could be set aside, and nobody has earned anything
                await self._post(f"refund/{job.id}", Refund(escrow=escrow_of(job.id)))
            await self._journal.reward(e.RewardsSettled(at=self._clock(), job=job.id, secret=secret.hex()))

    def _secret(self, job: str) -> bytes:
        return hmac.digest(self._key, f"tutti audits of {job}".encode(), "sha256")

    async def _score(self, job: Job, account: Account, closed: Closed) -> None:
        audited = is_audited(self._secret(job.id), closed.round)
        measured = await self._scorer.measure(closed, job, account.rewards.data, account.past, audited=audited)
        contributions = settle(measured.contributions, account.standings, account.rewards.pool)
        await self._journal.reward(
            e.ContributionsScored(
                at=self._clock(),
                job=job.id,
                round=closed.round,
                base=closed.base,
                model=closed.model,
                data=account.rewards.data,
                rows=measured.rows,
                seed=job.spec.seed,
                pool=account.rewards.pool,
                contributions=tuple(contributions),
                root=root_of(contributions),
                note=measured.note,
            )
        )
        account.past.add((), measured.sketches)

    async def _pay(self, job: Job, account: Account) -> str:
        """Set the pool aside and pay every scored round; returns why not, in words, or nothing."""
        amount = account.rewards.pool * job.spec.rounds
        fund = Escrow(escrow=escrow_of(job.id), payer=account.rewards.sponsor, amount=amount, purpose="pool")
        try:
            await self._post(f"fund/{job.id}", fund)
        except StorageError:
            raise
        except Conflict as refusal:
            return f"the pool of {amount} tokens is not there: {refusal}"
        for number in sorted(account.scored.keys() - account.paid):
            scored = account.scored[number]
            payments = {account_of(one.node): one.payment for one in scored.contributions if one.payment}
            pay = Distribute(escrow=escrow_of(job.id), payments=payments, evidence=scored.root)
            await self._post(payment_key(job.id, number), pay)
            account.paid.add(number)
        return ""

    async def _post(self, key: str, operation: AnyOperation) -> None:
        await self.ledger.post(Order(key, operation))
