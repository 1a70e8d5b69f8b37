"""The market's desk on the coordinator: who takes part, which jobs there are, and what people may ask of it.

A projection of the event log, like every reader of it: `observe` is told every event. Nothing is done to tokens but by
orders with keys of their own, so whatever a crash leaves undone is done again without harm.
"""

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from blake3 import blake3
from msgspec.structs import replace

from tutti.core.errors import Conflict, Forbidden, NotFound, UserError
from tutti.core.registry import Choice
from tutti.core.workload import workloads
from tutti.domain.events import Digest, MarketEvent, NodeDrained
from tutti.domain.ledger import Account, InsufficientFunds, Mint, Order, Stake, StillUnbonding, Unstake, Withdraw
from tutti.domain.market import events as e
from tutti.domain.market import jobs as j
from tutti.domain.market.jobs import ComputeJob
from tutti.domain.market.money import client_account, worker_account
from tutti.domain.market.rules import RULES, Rules
from tutti.domain.market.standing import Market, Worker
from tutti.ports import BlobStore, Recorded
from tutti.ports.ledger import KeyReused, Ledger
from tutti.services.journal import Journal
from tutti.services.market.judging import admit
from tutti.services.market.tables import sample

STREAM = "market"
KEEP_TABLES = 86_400.0
"""Seconds for which an uploaded table waits for a job."""

TABLES_AT_MOST, TABLES_OF_ONE = 200, 20
"""Tables that wait for jobs; so that nobody's keep others from working, less of one person."""


def _suffix(who: str, key: str) -> str:
    """Of a job's id: the same for the same wish of the same person."""
    return blake3(f"{who}\n{key}".encode()).hexdigest()[:16] if key else secrets.token_hex(4)


def stream_of(job: str) -> str:
    return f"compute:{job}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Who:
    """Who asks; an `admin` may make tokens, and speak for everybody."""

    name: str
    admin: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A compute job as a client asks for it; without `data`, it is on a bundled sample. See `ComputeSubmitted`."""

    client: str
    kind: Choice
    reward: int
    data: Digest = ""
    seed: int = 0
    replicas: int = 1
    gpu: bool = False
    seconds: float = 3600.0
    window: float = 0.0


class MarketDesk:
    """Made before the journal is loaded, so that it sees every event from the first on.

    Attributes:
        market: What is known; changed by events alone.
        stakes: What each worker has staked, as the ledger last said.
        reserved: Bonds of assignments that are being recorded.
        changed: Called with the id of a compute job, or nothing, after each event.
    """

    def __init__(
        self,
        journal: Journal,
        blobs: BlobStore,
        ledger: Ledger,
        clock: Callable[[], float],
        rules: Rules = RULES,
    ) -> None:
        self.market = Market(rules)
        self.ledger, self.blobs, self.clock = ledger, blobs, clock
        self.stakes: dict[str, int] = {}
        self.reserved: dict[str, int] = {}
        self.changed: Callable[[str], None] = lambda _: None
        self._journal = journal
        self._tables: dict[Digest, tuple[str, float]] = {}  # whose, and since when
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        journal.projections.append(self.observe)

    @property
    def rules(self) -> Rules:
        return self.market.rules

    def observe(self, recorded: Recorded) -> None:
        if isinstance(recorded.event, NodeDrained):
            if recorded.event.forged:
                self.market.note_forgery(recorded.event.node)
        elif isinstance(recorded.event, MarketEvent):
            job = recorded.stream.removeprefix("compute:") if recorded.stream != STREAM else ""
            self.market.apply(recorded.event, job)
            self.changed(job)

    def retained(self) -> set[Digest]:
        """Blobs that must stay: tables of jobs that go on or are about to come, and results."""
        kept = set(self._waiting_tables())
        for job in self.market.jobs.values():
            if not job.settled:
                kept.add(job.submitted.data)
            kept |= {
                attempt.result for attempt in job.attempts if attempt.result and (attempt.holds or not job.settled)
            }
        return kept

    def _waiting_tables(self) -> dict[Digest, tuple[str, float]]:
        now = self.clock()
        self._tables = {digest: its for digest, its in self._tables.items() if now - its[1] < KEEP_TABLES}
        return self._tables

    # -- looking things up -------------------------------------------------------------------------------

    def worker(self, name: str) -> Worker:
        if name not in self.market.workers:
            raise NotFound(f"there is no worker {name!r}: `tutti join <link> --worker --stake N` makes one")
        return self.market.workers[name]

    def client(self, name: str) -> e.ClientRegistered:
        if name not in self.market.clients:
            raise NotFound(f"there is no client {name!r}: register it first (`tutti market client {name}`)")
        return self.market.clients[name]

    def job(self, job_id: str) -> ComputeJob:
        if job_id not in self.market.jobs:
            raise NotFound(f"there is no compute job {job_id!r}")
        return self.market.jobs[job_id]

    async def balance(self, client: str) -> int:
        """The free tokens of a client."""
        self.client(client)
        return (await self.ledger.account(client_account(client))).free

    # -- who may what ------------------------------------------------------------------------------------

    def check_spends(self, account: str, who: Who) -> None:
        """Raises Forbidden unless this person may spend what an account has: who registered a client, or an admin."""
        client = self.market.clients.get(account.removeprefix("client:")) if account.startswith("client:") else None
        if who.admin or (client is not None and client.by == who.name):
            return
        whose = f"was registered by {client.by}" if client else "is nobody's client: an admin spends it"
        raise Forbidden(f"{account!r} {whose}, so {who.name} cannot spend its tokens")

    def check_speaks(self, worker: str, who: Who) -> None:
        """Raises Forbidden unless this person may change a worker's offer and stake: who registered it, or an admin.

        A worker whose node came by itself, and one that is not there yet, is changed by admins only: its account may
        have tokens already, such as what the node has earned by training.
        """
        known = self.market.workers.get(worker)
        if who.admin or (known is not None and known.by == who.name):
            return
        whose = f"was registered by {known.by}" if known else "is not a worker yet"
        raise Forbidden(f"{worker!r} {whose}: {who.name} cannot change it, an admin can; its node joins by --worker")

    # -- taking part -------------------------------------------------------------------------------------

    async def register_worker(self, offer: e.WorkerRegistered, who: Who, *, grant: bool = False) -> Worker:
        """Take a worker on, or change its offer; and stake what it says, if it has the tokens.

        With `grant` an admin makes the tokens that it lacks, once; without, InsufficientFunds is raised if it lacks
        any, and nothing is changed.
        """
        self.check_speaks(offer.worker, who)
        if offer.stake < self.rules.min_stake:
            raise UserError(
                f"insufficient stake: a worker stakes {self.rules.min_stake} tokens or more, came {offer.stake}"
            )
        if unknown := sorted(set(offer.kinds) - set(workloads)):
            raise UserError(f"there is no kind of compute job {unknown[0]!r}; there are: {', '.join(workloads)}")
        async with self._turns[offer.worker]:
            held = await self.ledger.account(worker_account(offer.worker))
            lacking = offer.stake - held.staked - held.free
            if lacking > 0:
                if not (grant and who.admin):
                    raise InsufficientFunds(
                        f"node:{offer.worker} has {held.free} free tokens and {held.staked} staked, "
                        f"to stake {offer.stake} it lacks {lacking}: an admin can give it some (`tutti ledger mint`)"
                    )
                mint = Mint(to=worker_account(offer.worker), amount=lacking)
                await self.ledger.post(Order(f"market/grant/{offer.worker}/{offer.stake}", mint))
            await self._offer(offer, who.name)
        return self.worker(offer.worker)

    async def take_offer(self, offer: e.WorkerRegistered) -> str:
        """A connected node offers its work: note it, and stake what it can; returns what it lacks, in words."""
        async with self._turns[offer.worker]:
            await self._offer(offer, worker_account(offer.worker))
        staked = self.stakes[offer.worker]
        if staked >= offer.stake:
            return ""
        return f"has {staked} of {offer.stake} tokens at stake: it lacks {offer.stake - staked} in node:{offer.worker}"

    async def _offer(self, offer: e.WorkerRegistered, by: str) -> None:
        known = self.market.workers.get(offer.worker)
        news = replace(offer, at=self.clock(), by=by)
        if known is None or replace(known.offer, at=news.at, by=by) != news:
            await self._journal.market(STREAM, lambda: [news])
        await self.raise_stake(offer.worker)

    async def raise_stake(self, worker: str) -> None:
        """Stake what the worker's offer says, as far as its free tokens go."""
        held, wanted = await self.ledger.account(worker_account(worker)), self.worker(worker).offer.stake
        more = min(wanted - held.staked, held.free)
        if more > 0:
            key = f"market/stake/{worker}/{secrets.token_hex(8)}"  # to a target: asking again adds nothing
            await self.ledger.post(Order(key, Stake(account=worker_account(worker), amount=more)))
        self.stakes[worker] = held.staked + max(more, 0)
        self.changed("")

    async def unstake(self, worker: str, amount: int, key: str, who: Who) -> int:
        """Take stake back, as far as it is not at risk with work that goes on; returns what stays staked.

        The same key again takes nothing more, after a restart too.
        """
        self.worker(worker)
        self.check_speaks(worker, who)
        async with self._turns[worker]:
            if await self.ledger.known(key) is None:
                await self._spare(worker, amount)
            try:
                await self.ledger.post(Order(key, Unstake(account=worker_account(worker), amount=amount)))
                with suppress(StillUnbonding):  # there is an unbonding period: see `withdraw`
                    await self.withdraw(worker, f"{key}/withdraw", who)
            finally:
                await self._refresh(worker)
        return self.stakes[worker]

    async def _spare(self, worker: str, amount: int) -> None:
        """Keep so much of a stake from being given to jobs; raises InsufficientFunds if they have it."""
        held = await self.ledger.account(worker_account(worker))
        free = held.staked - self.market.locked.get(worker, 0) - self.reserved.get(worker, 0)
        if amount > free:
            raise InsufficientFunds(
                f"{worker} has {held.staked} tokens at stake, {held.staked - free} of them with jobs that go on: "
                f"at most {free} can be taken back now"
            )
        self.stakes[worker] = held.staked - amount  # nobody gives it away meanwhile

    async def withdraw(self, worker: str, key: str, who: Who) -> Account:
        """Take what has unbonded; raises StillUnbonding before the period is over."""
        self.worker(worker)
        self.check_speaks(worker, who)
        account = worker_account(worker)
        await self.ledger.post(Order(key, Withdraw(account=account)))
        return await self.ledger.account(account)

    async def register_client(self, name: str, balance: int, who: Who) -> e.ClientRegistered:
        """Take a client on; an admin may give it a first balance, which is made once. Again: the same again."""
        if balance > 0 and not who.admin:
            raise Forbidden(
                f"only an admin makes tokens: register {name!r} with the balance 0, and have an admin give some"
            )
        known = self.market.clients.get(name)
        if known is None:
            if not who.admin and (held := (await self.ledger.account(client_account(name))).free):
                raise Forbidden(f"{client_account(name)!r} has {held} tokens already: an admin registers this client")
            event = e.ClientRegistered(at=self.clock(), client=name, by=who.name)
            await self._journal.market(STREAM, lambda: [] if name in self.market.clients else [event])
        if balance > 0:
            mint = Mint(to=client_account(name), amount=balance)
            try:
                await self.ledger.post(Order(f"market/client/{name}", mint))
            except KeyReused:
                raise Conflict(
                    f"{name!r} was given its first balance before: more is made by "
                    f"`tutti ledger mint {client_account(name)} AMOUNT --key KEY`"
                ) from None
        return self.client(name)

    async def coordinate(self, on: bool, by: str) -> None:
        """Assign jobs, or stop doing so; what is assigned goes on."""
        event = e.CoordinationStarted(at=self.clock(), by=by) if on else e.CoordinationStopped(at=self.clock(), by=by)
        await self._journal.market(STREAM, lambda: [] if self.market.coordinating == on else [event])

    # -- jobs --------------------------------------------------------------------------------------------

    async def keep_table(self, data: bytes, who: Who) -> Digest:
        """Store a table for jobs to come; raises Conflict if too many wait for theirs."""
        waiting = self._waiting_tables()
        own = sum(name == who.name for name, _ in waiting.values())
        if len(waiting) >= TABLES_AT_MOST or (own >= TABLES_OF_ONE and not who.admin):
            raise Conflict(
                f"{own} tables of {who.name} wait for jobs, and {len(waiting)} in all: submit these first, for at "
                f"most {TABLES_OF_ONE} of one person may wait and {TABLES_AT_MOST} of all"
            )
        digest = await self.blobs.put(data)
        self._tables[digest] = (who.name, self.clock())
        return digest

    async def submit(self, wish: Wish, who: Who, key: str = "") -> ComputeJob:
        """Take a job on: its reward is put in escrow, and a worker is looked for.

        With a `key`, asking again gives the same job, after a restart too; Conflict if the job differs.
        """
        self.client(wish.client)
        self.check_spends(client_account(wish.client), who)
        if wish.reward < wish.replicas:
            raise UserError(
                f"{wish.replicas} replicas need a reward of {wish.replicas} tokens or more, came {wish.reward}"
            )
        job_id = f"{wish.kind.name.replace('_', '-')[:40]}-{_suffix(who.name, key)}"
        data = wish.data or await self.keep_table(sample(), who)
        if job_id not in self.market.jobs:
            await self._submit(job_id, wish, data, who)
        return self._same(self.job(job_id), wish, data, key)

    async def _submit(self, job_id: str, wish: Wish, data: Digest, who: Who) -> None:
        rows, columns = await asyncio.to_thread(admit, wish.kind, await self.blobs.read(data))
        if sum(self.job(it).submitted.client == wish.client for it in self.market.open) >= self.rules.queue:
            raise Conflict(f"{self.rules.queue} jobs of {wish.client!r} go on: wait until some are done")
        if (free := await self.balance(wish.client)) < wish.reward:
            raise InsufficientFunds(f"{wish.client!r} has {free} tokens, the reward is {wish.reward}")
        event = e.ComputeSubmitted(
            at=self.clock(),
            job=job_id,
            client=wish.client,
            kind=wish.kind,
            data=data,
            rows=rows,
            columns=columns,
            seed=wish.seed,
            reward=wish.reward,
            replicas=wish.replicas,
            gpu=wish.gpu,
            seconds=wish.seconds,
            window=wish.window,
            by=who.name,
        )
        await self._journal.market(stream_of(job_id), lambda: [] if job_id in self.market.jobs else [event])
        self._tables.pop(data, None)

    def _same(self, job: ComputeJob, wish: Wish, data: Digest, key: str) -> ComputeJob:
        s = job.submitted
        asked = (wish.client, wish.kind, wish.reward, data, wish.seed, wish.replicas, wish.gpu)
        known = (s.client, s.kind, s.reward, s.data, s.seed, s.replicas, s.gpu)
        if (*known, s.seconds, s.window) != (*asked, wish.seconds, wish.window):
            raise Conflict(f"the key {key!r} was used for another compute job, {job.id}: choose a new key")
        return job

    async def dispute(self, job_id: str, who: Who, reason: str) -> ComputeJob:
        """Have a result made again by a further worker, at the client's cost, and replayed in full."""
        job = self.job(job_id)
        client = self.client(job.submitted.client)
        self.check_spends(client_account(client.client), who)
        deposit = job.share(len(job.slots))
        if (free := await self.balance(client.client)) < deposit:
            raise InsufficientFunds(f"{client.client!r} has {free} tokens, a further worker takes {deposit}")
        await self.do(job_id, j.Dispute(by=who.name, reason=reason))
        return self.job(job_id)

    async def do(self, job_id: str, command: j.Command) -> list[e.ComputeEvent]:
        """Carry out a command on a compute job; raises Conflict with the reason for a refusal."""
        found: list[e.ComputeEvent] = []

        def decide() -> list[e.ComputeEvent]:
            found[:] = j.decide(self.job(job_id), command, self.rules, now=self.clock())
            return found

        await self._journal.market(stream_of(job_id), decide)
        return found

    async def note(self, event: e.StandingEvent) -> None:
        await self._journal.market(STREAM, lambda: [event])

    async def refresh_stakes(self) -> None:
        for worker in self.market.workers:
            await self._refresh(worker)

    async def _refresh(self, worker: str) -> None:
        self.stakes[worker] = (await self.ledger.account(worker_account(worker))).staked
