"""Jobs: where each one stands."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from tutti.domain.events import Digest
from tutti.domain.jobs import Job, Status
from tutti.domain.nodes import why_not
from tutti.domain.spec import DataSchema, JobSpec, Metrics
from tutti.services.views.base import View
from tutti.services.views.rounds import RoundView, open_round_view

if TYPE_CHECKING:
    from tutti.services.presence import Offer


class JobView(View, frozen=True, kw_only=True):
    """A job. `status` adds `paused` and `pausing` (the open round still runs to its end) to the life cycle's.

    `reason` says why it is over, paused or waiting. `accuracy`, `loss` and `metrics` are the latest evaluation
    that steers the job. `nodes_ready` counts the connected nodes that may work on it.
    """

    id: str
    name: str
    status: str
    reason: str
    dataset: str
    model: str
    strategy: str
    rounds: int
    rounds_done: int
    failures: int
    parameters: int
    accuracy: float | None
    loss: float | None
    metrics: Metrics
    best_round: int | None
    model_digest: Digest
    submitted_at: float
    by: str
    nodes_needed: int
    nodes_ready: int
    open_round: RoundView | None
    spec: JobSpec
    data: DataSchema


def job_view(job: Job, offers: "Mapping[Offer, int]" = MappingProxyType({}), trouble: str = "") -> JobView:
    """One job as people see it.

    `offers` is what connected nodes offer, and how many of them; `trouble` is what keeps the coordinator from going on
    with the job, if anything does.
    """
    spec, latest = job.spec, latest_score(job)
    ready = ready_for(spec, job.data, offers)
    return JobView(
        id=job.id,
        name=spec.name,
        status=status_of_job(job),
        reason=_reason(job, ready, trouble),
        dataset=spec.dataset,
        model=str(spec.model),
        strategy=str(spec.strategy),
        rounds=spec.rounds,
        rounds_done=job.rounds_done,
        failures=job.failures,
        parameters=job.parameters,
        accuracy=latest.get("accuracy"),
        loss=latest.get("loss"),
        metrics=latest,
        best_round=best_round(job),
        model_digest=job.model,
        submitted_at=job.submitted_at,
        by=job.by,
        nodes_needed=spec.cohort.min_nodes,
        nodes_ready=ready,
        open_round=open_round_view(job.round) if job.round else None,
        spec=spec,
        data=job.data,
    )


class CheckView(View, frozen=True, kw_only=True):
    """A job that could be run as written. `nodes_ready` counts the connected nodes that may work on it."""

    data: DataSchema
    nodes_ready: int
    nodes_needed: int


def check_view(spec: JobSpec, data: DataSchema, offers: "Mapping[Offer, int]") -> CheckView:
    return CheckView(data=data, nodes_ready=ready_for(spec, data, offers), nodes_needed=spec.cohort.min_nodes)


def latest_score(job: Job) -> Metrics:
    """The newest of the evaluations that steer the job; empty if there is none yet."""
    by = job.steered_by
    measured = [round for round, found in job.evaluations.items() if by in found]
    return job.evaluations[max(measured)][by] if measured else {}


def best_round(job: Job) -> int | None:
    return job.best[0] if job.best else None


def status_of_job(job: Job) -> str:
    if job.paused is None or job.final:
        return str(job.status)
    return "pausing" if job.round else "paused"


def _reason(job: Job, ready: int, trouble: str) -> str:
    if job.final:
        return job.outcome
    if job.paused is not None:
        return job.paused
    if not trouble and job.status is Status.WAITING and ready < job.spec.cohort.min_nodes:
        return f"waits for nodes: {job.spec.cohort.min_nodes} are needed, {ready} are ready"
    return trouble


def ready_for(spec: JobSpec, data: DataSchema, offers: "Mapping[Offer, int]") -> int:
    """How many nodes could be asked to work on such a job, once they have nothing else to do."""
    expected = spec.cohort.size or spec.cohort.min_nodes
    return sum(
        count for (summary, terms), count in offers.items() if why_not(spec, data, summary, terms, expected) is None
    )
