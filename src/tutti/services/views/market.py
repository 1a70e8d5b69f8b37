"""The compute market: workers, clients, compute jobs, and the sums over all of them."""

from collections.abc import Mapping
from typing import Any

from tutti.domain.events import Digest
from tutti.domain.ledger import Totals
from tutti.domain.market.jobs import Attempt, ComputeJob, Status
from tutti.domain.market.standing import Market, Worker
from tutti.services.views.base import View


class WorkerView(View, frozen=True, kw_only=True):
    """A worker. `gflops` and `gpu_gflops` are measured, `gpu_type` and `claimed` are only what it says: `note` tells
    which of that no measurement supports. `reputation` is from 0 to 100, by kind too.

    `trust` is what its results hold with at least, with 95 % certainty: what jobs are assigned by. `locked` of its
    `staked` tokens are at risk with the work that goes on. `note` also says why it gets none, if so.
    """

    worker_id: str
    connected: bool
    owner: str
    gpu_type: str
    claimed: float
    gflops: float
    gpu_gflops: float
    stake: int
    staked: int
    locked: int
    price: int
    kinds: list[str]
    reputation: int
    reputation_by_kind: dict[str, int]
    trust: float
    jobs_completed: int
    jobs_failed: int
    jobs_lost: int
    job: str
    since: float
    note: str


def worker_view(worker: Worker, market: Market, *, connected: bool, staked: int, note: str = "") -> WorkerView:
    offer, busy = worker.offer, market.busy.get(worker.name)
    return WorkerView(
        worker_id=worker.name,
        connected=connected,
        owner=worker.owner,
        gpu_type=offer.gpu,
        claimed=offer.claimed,
        gflops=worker.gflops,
        gpu_gflops=worker.gpu_gflops,
        stake=offer.stake,
        staked=staked,
        locked=market.locked.get(worker.name, 0),
        price=offer.price,
        kinds=list(offer.kinds),
        reputation=worker.overall.score,
        reputation_by_kind={kind: record.score for kind, record in sorted(worker.records.items())},
        trust=round(worker.overall.bound, 4),
        jobs_completed=worker.completed,
        jobs_failed=worker.failed,
        jobs_lost=worker.lost,
        job=busy[0] if busy else "",
        since=worker.since,
        note=note,
    )


class ClientView(View, frozen=True, kw_only=True):
    """A client. `balance` is free to use, `escrowed` are the rewards of its jobs that go on; `by` speaks for it."""

    client_address: str
    balance: int
    escrowed: int
    jobs: int
    by: str


class AttemptView(View, frozen=True, kw_only=True):
    """One worker's work on one replica: `holds` is null until the result was judged."""

    attempt: int
    replica: int
    worker_id: str
    at: float
    bond: int
    committed: bool
    result: Digest
    holds: bool | None
    replayed: bool
    reason: str
    paid: int


class ComputeJobView(View, frozen=True, kw_only=True):
    """A compute job. `status`: pending, assigned, completed (its results are here), verified, or failed.

    `settled`: everything is paid. `worker_id`: whose result it has. `trouble` says what keeps it from going on.
    """

    job_id: str
    status: str
    client_address: str
    model_type: str
    kind: str
    reward: int
    replicas: int
    gpu: bool
    rows: int
    columns: int
    data: Digest
    submitted_at: float
    expires_at: float
    worker_id: str
    result: Digest
    disputed: str
    reason: str
    settled: bool
    trouble: str
    attempts: list[AttemptView]


def job_view(job: ComputeJob, trouble: str = "") -> ComputeJobView:
    s = job.submitted
    won = job.attempt(job.verified) if job.verified is not None else None
    return ComputeJobView(
        job_id=job.id,
        status=Status.PENDING if job.status is Status.FUNDING else job.status,
        client_address=s.client,
        model_type=s.kind.name,
        kind=str(s.kind),
        reward=s.reward,
        replicas=s.replicas,
        gpu=s.gpu,
        rows=s.rows,
        columns=s.columns,
        data=s.data,
        submitted_at=s.at,
        expires_at=job.expires,
        worker_id=won.worker if won else job.live[0].worker if job.live else "",
        result=won.result if won else "",
        disputed=job.disputed,
        reason=job.failed,
        settled=job.settled,
        trouble=trouble,
        attempts=[_attempt_view(job, attempt) for attempt in job.attempts],
    )


def _attempt_view(job: ComputeJob, attempt: Attempt) -> AttemptView:
    paid = job.settled and job.verified is not None and attempt.live and bool(attempt.holds)
    return AttemptView(
        attempt=attempt.number,
        replica=attempt.slot + 1,
        worker_id=attempt.worker,
        at=attempt.at,
        bond=attempt.bond,
        committed=bool(attempt.commitment),
        result=attempt.result,
        holds=attempt.holds,
        replayed=attempt.replayed,
        reason=attempt.reason,
        paid=job.share(attempt.slot) if paid else 0,
    )


class TableView(View, frozen=True, kw_only=True):
    """An uploaded table; jobs name it by `data`."""

    data: str
    rows: int
    columns: int
    target: bool


class ResultView(View, frozen=True, kw_only=True):
    """What came out, as lists of numbers: `coefficients`, `intercept` and `mse`, and so on, by kind.

    Long ones (labels, the steps of a run) are cut after 10,000 numbers and named in `cut`: the blob `digest` has all.
    """

    job_id: str
    model_type: str
    digest: Digest
    worker_id: str
    values: dict[str, Any]
    cut: list[str]


class KindView(View, frozen=True, kw_only=True):
    """A kind of compute job, and the JSON schema of its options."""

    name: str
    description: str
    options: dict[str, Any]
    needs_target: bool


class MarketView(View, frozen=True, kw_only=True):
    """The market in one look. `success_rate`: verified among the jobs that are over; null while none is.

    `contract_balance` is what lies in escrow, `staked` what workers have at risk, `burned` what was slashed for nobody.
    """

    coordinating: bool
    workers: int
    workers_active: int
    clients: int
    jobs: int
    jobs_by_status: dict[str, int]
    jobs_completed: int
    success_rate: float | None
    contract_balance: int
    staked: int
    burned: int
    minted: int
    min_stake: int
    kinds: list[KindView]
    gpus: dict[str, float]


def market_view(
    market: Market, active: int, totals: Totals, kinds: list[KindView], gpus: Mapping[str, float]
) -> MarketView:
    counts: dict[str, int] = dict.fromkeys((s for s in Status if s is not Status.FUNDING), 0)
    for job in market.jobs.values():
        status = job.status
        counts[Status.PENDING if status is Status.FUNDING else status] += 1
    over = counts[Status.VERIFIED] + counts[Status.FAILED]
    return MarketView(
        coordinating=market.coordinating,
        workers=len(market.workers),
        workers_active=active,
        clients=len(market.clients),
        jobs=len(market.jobs),
        jobs_by_status=counts,
        jobs_completed=counts[Status.VERIFIED],
        success_rate=counts[Status.VERIFIED] / over if over else None,
        contract_balance=totals.escrowed,
        staked=totals.staked,
        burned=totals.burned,
        minted=totals.minted,
        min_stake=market.rules.min_stake,
        kinds=kinds,
        gpus=dict(gpus),
    )
