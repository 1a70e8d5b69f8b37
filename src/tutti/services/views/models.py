"""What a job has brought: models with their lineage, the history of their metrics, and who contributed."""

from collections.abc import Sequence

from tutti.domain.events import Digest, NodeId, UpdateAccepted
from tutti.domain.jobs import Job
from tutti.domain.rounds import RoundSummary
from tutti.domain.spec import Metrics
from tutti.services.views.base import View
from tutti.services.views.jobs import best_round
from tutti.services.views.rounds import evaluations_of


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
    trained = [_metric_point(job, summary.round.number, summary) for summary in made_models(job)]
    return [first, *trained] if first else trained


def made_models(job: Job) -> list[RoundSummary]:
    return [summary for summary in job.past if summary.succeeded and summary.round.opened.task == "train"]


def _metric_point(job: Job, round: int, summary: RoundSummary | None) -> MetricPoint:
    measured = job.evaluations.get(round, {})
    return MetricPoint(
        round=round,
        at=summary.closed_at if summary else job.submitted_at,
        train=dict(summary.metrics) if summary else {},
        nodes=measured.get("nodes", {}),
        coordinator=measured.get("coordinator", {}),
        seconds=summary.closed_at - summary.round.opened.at if summary else 0.0,
        bytes=sum(update.bytes for update in summary.round.accepted) if summary else 0,
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


def model_views(job: Job) -> list[ModelView]:
    """Every model of a job, the initial one first."""
    if not job.initial_model:
        return []
    best = best_round(job)
    views = [_model_view(job, 0, job.initial_model, None, best)]
    for summary in made_models(job):
        views.append(_model_view(job, summary.round.number, summary.model, summary, best))
    return views


def _model_view(job: Job, round: int, digest: Digest, summary: RoundSummary | None, best: int | None) -> ModelView:
    return ModelView(
        job=job.id,
        name=job.spec.name,
        model=str(job.spec.model),
        dataset=job.spec.dataset,
        round=round,
        digest=digest,
        base=summary.round.opened.model if summary else "",
        made_at=summary.closed_at if summary else job.submitted_at,
        made_from=_ingredients(summary) if summary else [],
        evaluations=evaluations_of(job, round),
        parameters=job.parameters,
        current=digest == job.model,
        best=round == best,
    )


def _ingredients(summary: RoundSummary) -> list[Ingredient]:
    total = sum(summary.counted.values())
    return [
        Ingredient(node=node, digest=update.digest, weight=weight, share=weight / total)
        for node, weight in sorted(summary.counted.items())
        if (update := summary.round.members[node].update) is not None
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
    given: dict[NodeId, list[UpdateAccepted]] = {}
    for summary in made_models(job):
        for update in summary.round.accepted:
            if update.node in summary.counted:
                given.setdefault(update.node, []).append(update)
    total = sum(update.weight for updates in given.values() for update in updates)
    return [_contribution(job, node, updates, total) for node, updates in sorted(given.items())]


def _contribution(job: Job, node: NodeId, updates: Sequence[UpdateAccepted], total: int) -> ContributionView:
    weight = sum(update.weight for update in updates)
    return ContributionView(
        node=node,
        job=job.id,
        name=job.spec.name,
        model=str(job.spec.model),
        dataset=job.spec.dataset,
        updates=len(updates),
        weight=weight,
        share=weight / total,
        seconds=sum(update.seconds for update in updates),
        bytes=sum(update.bytes for update in updates),
        first_at=updates[0].at,
        last_at=updates[-1].at,
    )
