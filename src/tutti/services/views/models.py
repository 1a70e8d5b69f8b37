"""What a job has brought: models with their lineage, the history of their metrics, and who contributed."""

from collections.abc import Iterable

import msgspec

from tutti.domain.events import Digest, NodeId
from tutti.domain.history import Contribution, RoundSummary
from tutti.domain.jobs import Job
from tutti.domain.spec import DataSchema, JobSpec, Metrics
from tutti.services.views.base import View
from tutti.services.views.jobs import best_round
from tutti.services.views.rounds import evaluations_of


def described(spec: JobSpec, data: DataSchema, digest: Digest, round: int) -> dict[str, str]:
    """What a model file says of itself, for `tutti predict`; `model` and `data` are JSON."""
    return {
        "tutti.name": spec.name,
        "tutti.round": str(round),
        "tutti.digest": digest,
        "tutti.dataset": spec.dataset,
        "tutti.model": msgspec.json.encode(spec.model).decode(),
        "tutti.data": msgspec.json.encode(data).decode(),
    }


class MetricPoint(View, frozen=True, kw_only=True):
    """The model after `round` (0: the initial one): how training went, and what was measured of it by whom."""

    round: int
    at: float
    train: Metrics
    nodes: Metrics
    coordinator: Metrics
    seconds: float
    bytes: int


def metric_points(job: Job) -> list[MetricPoint]:
    first = _metric_point(job, 0, None) if job.initial_model else None
    trained = [_metric_point(job, summary.number, summary) for summary in job.past if summary.made_model]
    return [first, *trained] if first else trained


def _metric_point(job: Job, round: int, summary: RoundSummary | None) -> MetricPoint:
    measured = job.evaluations.get(round, {})
    return MetricPoint(
        round=round,
        at=summary.closed_at if summary else job.submitted_at,
        train=dict(summary.metrics) if summary else {},
        nodes=measured.get("nodes", {}),
        coordinator=measured.get("coordinator", {}),
        seconds=summary.closed_at - summary.opened_at if summary else 0.0,
        bytes=summary.bytes if summary else 0,
    )


class Ingredient(View, frozen=True, kw_only=True):
    """An update that went into a model."""

    node: NodeId
    digest: Digest
    weight: int
    share: float


class ModelView(View, frozen=True, kw_only=True):
    """A model with its lineage: the updates in `made_from`, folded onto `base`, made it. Round 0 has neither."""

    job: str
    name: str
    model: str
    dataset: str
    round: int
    digest: Digest
    base: Digest
    made_at: float
    made_from: list[Ingredient]
    evaluations: dict[str, Metrics]
    parameters: int
    current: bool
    best: bool


def rounds_with_model(job: Job) -> range:
    """The rounds that made the job's models; 0 stands for the initial one."""
    return range(job.rounds_done + 1 if job.initial_model else 0)


def model_views(job: Job, rounds: Iterable[int], attempts: Iterable[RoundSummary]) -> list[ModelView]:
    """The models of these rounds; `attempts` are the finished attempts at them, in full."""
    made = {attempt.number: attempt for attempt in attempts if attempt.made_model}
    return [_model_view(job, round, made.get(round)) for round in rounds]


def _model_view(job: Job, round: int, made: RoundSummary | None) -> ModelView:
    digest = made.model if made else job.initial_model
    return ModelView(
        job=job.id,
        name=job.spec.name,
        model=str(job.spec.model),
        dataset=job.spec.dataset,
        round=round,
        digest=digest,
        base=made.base if made else "",
        made_at=made.closed_at if made else job.submitted_at,
        made_from=_ingredients(made) if made else [],
        evaluations=evaluations_of(job, round),
        parameters=job.parameters,
        current=digest == job.model,
        best=round == best_round(job),
    )


def _ingredients(made: RoundSummary) -> list[Ingredient]:
    updates = made.round.accepted
    total = sum(update.weight for update in updates)
    return [
        Ingredient(node=update.node, digest=update.digest, weight=update.weight, share=update.weight / total)
        for update in updates
    ]


class ContributionView(View, frozen=True, kw_only=True):
    """What one node gave to one job: the updates that were counted, and their share of all counted weight."""

    node: NodeId
    job: str
    name: str
    model: str
    dataset: str
    updates: int
    weight: int
    share: float
    seconds: float
    bytes: int
    first_at: float
    last_at: float


def contribution_views(job: Job) -> list[ContributionView]:
    """One per node that was counted at least once in training, by name."""
    total = sum(given.weight for given in job.contributions.values())
    return [_contribution(job, node, given, total) for node, given in sorted(job.contributions.items())]


def _contribution(job: Job, node: NodeId, given: Contribution, total: int) -> ContributionView:
    return ContributionView(
        node=node,
        job=job.id,
        name=job.spec.name,
        model=str(job.spec.model),
        dataset=job.spec.dataset,
        updates=given.updates,
        weight=given.weight,
        share=given.weight / total,
        seconds=given.seconds,
        bytes=given.bytes,
        first_at=given.first_at,
        last_at=given.last_at,
    )
