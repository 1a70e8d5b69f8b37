"""The coordinator as a whole: its events, its status, its counters."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from tutti.domain.jobs import FINAL, Job, Status
from tutti.domain.nodes import Register
from tutti.domain.spec import CohortRules, Evaluation, Training
from tutti.ports import Recorded
from tutti.services.views.base import View
from tutti.services.views.jobs import latest_score, status_of_job

if TYPE_CHECKING:
    from tutti.services.members import NodeStatus
    from tutti.services.stats import Stats

SECRET_FIELDS = frozenset({"token", "secret", "invite"})
"""Fields of events that no reader gets, although they hold hashes only."""


class EventView(View, frozen=True, kw_only=True):
    """A logged event with its place; ask for what follows with `after=<offset>`."""

    offset: int
    stream: str
    type: str
    at: float
    data: dict[str, Any]


def event_view(recorded: Recorded) -> EventView:
    event = recorded.event
    shown = [name for name in event.__struct_fields__ if name not in ("at", "snapshot") and name not in SECRET_FIELDS]
    data = {name: getattr(event, name) for name in shown}
    return EventView(offset=recorded.offset, stream=recorded.stream, type=type(event).__name__, at=event.at, data=data)


class StatusView(View, frozen=True, kw_only=True):
    """The coordinator in one look. `jobs` counts them by status; `offset` is that of the newest event.

    `maintenance` is why nothing new begins, empty if it does; `maintenance_by`, `maintenance_since`: by whom, when.
    """

    status: Literal["training", "waiting", "idle"]
    version: str
    timestamp: float
    nodes: int
    nodes_connected: int
    jobs: dict[str, int]
    offset: int
    maintenance: str = ""
    maintenance_by: str = ""
    maintenance_since: float | None = None


def status_view(
    all_jobs: Iterable[Job], nodes: "Sequence[NodeStatus]", register: Register, *, version: str, now: float, offset: int
) -> StatusView:
    counts = Counter(map(status_of_job, all_jobs))
    by, since = register.maintained
    live = counts.total() - sum(counts[status] for status in FINAL)
    return StatusView(
        status="training" if counts[Status.TRAINING] else "waiting" if live else "idle",
        version=version,
        timestamp=now,
        nodes=len(nodes),
        nodes_connected=sum(node.connected for node in nodes),
        jobs=dict(counts),
        offset=offset,
        maintenance=register.maintenance,
        maintenance_by=by,
        maintenance_since=since if register.maintenance else None,
    )


class Health(View, frozen=True, kw_only=True):
    status: str
    timestamp: str


class Configuration(View, frozen=True, kw_only=True):
    """How this coordinator is set up, and what a job gets that does not say otherwise."""

    host: str
    port: int
    authentication: bool
    training: Training
    cohort: CohortRules
    evaluation: Evaluation


class Durations(View, frozen=True, kw_only=True):
    """Of something that happens again and again: how often, how long in all, and quantiles of the latest 1000."""

    count: int
    seconds: float
    p50: float | None
    p90: float | None
    p99: float | None


class JobScore(View, frozen=True, kw_only=True):
    job: str
    name: str
    status: str
    rounds_done: int
    rounds: int
    accuracy: float | None
    loss: float | None


class MetricsView(View, frozen=True, kw_only=True):
    """Counters since the coordinator started, and where every job stands."""

    nodes_connected: int
    rounds_completed: int
    updates_accepted: int
    updates_refused: int
    bytes_in: int
    bytes_out: int
    aggregation: Durations
    training: Durations
    jobs: list[JobScore]


def metrics_view(all_jobs: Iterable[Job], nodes: "Sequence[NodeStatus]", stats: "Stats") -> MetricsView:
    return MetricsView(
        nodes_connected=sum(node.connected for node in nodes),
        rounds_completed=stats.rounds_completed,
        updates_accepted=stats.updates_accepted,
        updates_refused=stats.updates_refused,
        bytes_in=stats.bytes_in,
        bytes_out=stats.bytes_out,
        aggregation=_durations(stats.aggregation_seconds, stats.rounds_completed, stats.aggregation_total),
        training=_durations(stats.training_seconds, stats.updates_accepted, stats.training_total),
        jobs=[_job_score(job) for job in all_jobs],
    )


def _durations(latest: Sequence[float], count: int, total: float) -> Durations:
    ordered = sorted(latest)

    def quantile(share: float) -> float | None:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None

    return Durations(count=count, seconds=total, p50=quantile(0.5), p90=quantile(0.9), p99=quantile(0.99))


def _job_score(job: Job) -> JobScore:
    latest = latest_score(job)
    return JobScore(
        job=job.id,
        name=job.spec.name,
        status=status_of_job(job),
        rounds_done=job.rounds_done,
        rounds=job.spec.rounds,
        accuracy=latest.get("accuracy"),
        loss=latest.get("loss"),
    )
