"""Rounds: what happened in each attempt, and why, node by node."""

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from tutti.domain.events import Digest, NodeId
from tutti.domain.history import RoundSummary
from tutti.domain.jobs import Job
from tutti.domain.rounds import Member, Part, Round
from tutti.domain.spec import Metrics
from tutti.services.views.base import View


class RoundView(View, frozen=True, kw_only=True):
    """One attempt at one round. `cohort` were asked, `wanted` updates close it early, `counted` made the model.

    `metrics` are the training metrics, averaged over the counted updates; `evaluations` measure the model that
    the round made or, for a round that only evaluates, started from, by who measured. `bytes` is the size of the
    accepted updates.
    """

    round: int
    attempt: int
    task: Literal["train", "evaluate"]
    status: Literal["open", "closed", "failed"]
    reason: str
    opened_at: float
    closed_at: float | None
    deadline: float
    seconds: float | None
    cohort: int
    wanted: int
    quorum: int
    accepted: int
    counted: int
    bytes: int
    metrics: Metrics
    evaluations: dict[str, Metrics]
    model: Digest


def round_views(job: Job) -> list[RoundView]:
    """Every attempt at every round, in order; the open one is the last."""
    views = [round_view(job, summary) for summary in job.past]
    return [*views, open_round_view(job.round)] if job.round else views


def round_view(job: Job, summary: RoundSummary) -> RoundView:
    """A finished attempt."""
    measured = summary.number - (summary.task == "evaluate")
    return RoundView(
        round=summary.number,
        attempt=summary.attempt,
        task=summary.task,
        status="closed" if summary.succeeded else "failed",
        reason=summary.reason,
        opened_at=summary.opened_at,
        closed_at=summary.closed_at,
        deadline=summary.deadline,
        seconds=summary.closed_at - summary.opened_at,
        cohort=summary.cohort,
        wanted=summary.wanted,
        quorum=summary.quorum,
        accepted=summary.accepted,
        counted=summary.accepted if summary.succeeded else 0,
        bytes=summary.bytes,
        metrics=dict(summary.metrics),
        evaluations=evaluations_of(job, measured) if summary.succeeded else {},
        model=summary.model,
    )


def open_round_view(round: Round) -> RoundView:
    opened, accepted = round.opened, round.accepted
    return RoundView(
        round=opened.round,
        attempt=opened.attempt,
        task=opened.task,
        status="open",
        reason=f"waits for {', '.join(round.waiting_for)}" if round.waiting_for else "is closing",
        opened_at=opened.at,
        closed_at=None,
        deadline=round.deadline,
        seconds=None,
        cohort=len(round.members),
        wanted=opened.wanted,
        quorum=opened.quorum,
        accepted=len(accepted),
        counted=0,
        bytes=sum(update.bytes for update in accepted),
        metrics={},
        evaluations={},
        model="",
    )


def evaluations_of(job: Job, round: int) -> dict[str, Metrics]:
    return {str(by): metrics for by, metrics in job.evaluations.get(round, {}).items()}


class PartView(View, frozen=True, kw_only=True):
    """One node in one attempt. `share` is its part of what was made, `arrived` seconds after the opening.

    A node whose update counts by its weight has that share of the total; a robust reducer gives shares of its own, and
    who gets none is `excluded`. `work` is the share of the local work that it was asked for.
    """

    node: NodeId
    selected: bool
    outcome: Literal["counted", "excluded", "accepted", "assigned", "unanswered", "refused", "dropped", "left out"]
    reason: str = ""
    weight: int = 0
    share: float = 0.0
    arrived: float | None = None
    seconds: float = 0.0
    bytes: int = 0
    digest: Digest = ""
    metrics: Metrics = msgspec.field(default_factory=dict)
    work: float = 1.0


class RefusalView(View, frozen=True, kw_only=True):
    """A submission that did not count. `selected` is False for a node that had not been asked."""

    node: NodeId
    at: float
    reason: str
    selected: bool
    final: bool


class AttemptView(View, frozen=True, kw_only=True):
    """One attempt, node by node. `left_out_more` counts, by reason, further nodes that were not asked."""

    round: RoundView
    nodes: list[PartView]
    refusals: list[RefusalView]
    left_out_more: dict[str, int] = msgspec.field(default_factory=dict)


class WhyView(View, frozen=True, kw_only=True):
    """Who took part in a round, who did not and why, and what each contributed, for every attempt at it."""

    job: str
    round: int
    base: Digest
    model: Digest
    attempts: list[AttemptView]


def why_view(job: Job, round: int, finished: Iterable[RoundSummary]) -> WhyView | None:
    """`finished` are the finished attempts at the round, in full; None if the job has not come to that round."""
    attempts = [_attempt_view(round_view(job, each), each.round, each) for each in finished]
    if job.round is not None and job.round.number == round:
        attempts.append(_attempt_view(open_round_view(job.round), job.round, None))
    if not attempts:
        return None
    return WhyView(
        job=job.id,
        round=round,
        base=job.model_of(round - 1) or "",
        model=job.model_of(round) or "",
        attempts=attempts,
    )


def _attempt_view(view: RoundView, round: Round, summary: RoundSummary | None) -> AttemptView:
    shares = _shares(summary) if summary else {}
    parts = [_part_view(node, member, round, summary, shares) for node, member in sorted(round.members.items())]
    parts += [
        PartView(node=node, selected=False, outcome="left out", reason=reason)
        for node, reason in sorted(round.opened.left_out.items())
    ]
    refusals = [
        RefusalView(node=r.node, at=r.at, reason=r.reason, selected=r.node in round.members, final=r.final)
        for r in round.refusals
    ]
    return AttemptView(round=view, nodes=parts, refusals=refusals, left_out_more=round.opened.left_out_more)


def _shares(summary: RoundSummary) -> Mapping[NodeId, float]:
    """How much of what the attempt made is of whom."""
    total = sum(summary.counted.values())
    return summary.shares or {node: weight / total for node, weight in summary.counted.items()}


def _part_view(
    node: NodeId, member: Member, round: Round, summary: RoundSummary | None, shares: Mapping[NodeId, float]
) -> PartView:
    update = member.update
    if update is None:
        return _part_without_update(node, member, summary)
    share = shares.get(node)
    excluded = "the reducer left it out: too unlike the others, or not among its best"
    return PartView(
        node=node,
        selected=True,
        outcome="accepted" if share is None else "counted" if share > 0 else "excluded",
        reason=excluded if share == 0 else member.reason or round.opened.drawn.get(node, ""),
        weight=update.weight,
        share=share or 0.0,
        arrived=update.at - round.opened.at,
        seconds=update.seconds,
        bytes=update.bytes,
        digest=update.digest,
        metrics=update.metrics,
        work=round.opened.less.get(node, 1.0),
    )


def _part_without_update(node: NodeId, member: Member, summary: RoundSummary | None) -> PartView:
    match member.part:
        case Part.REFUSED:
            return PartView(node=node, selected=True, outcome="refused", reason=member.reason)
        case Part.DROPPED:
            return PartView(node=node, selected=True, outcome="dropped", reason=member.reason)
    if summary is None:
        return PartView(node=node, selected=True, outcome="assigned", reason=member.reason)
    reason = member.reason or "had not answered when the round ended"
    return PartView(node=node, selected=True, outcome="unanswered", reason=reason)
