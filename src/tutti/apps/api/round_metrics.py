"""What the event log tells of training rounds, counted for Prometheus: phases, outcomes, exclusions.

Counts start with the process, as Prometheus expects of counters: old events are not counted again, nor rounds that
were open when it started, nor those that only evaluate.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram

from tutti.core.codec import NONE, codecs
from tutti.domain import events as e
from tutti.domain.events import NodeId
from tutti.domain.nodes import CLOSED
from tutti.ports import Recorded

PHASES = ("waiting", "training", "aggregating")
"""A round waits for enough nodes, then for their updates, and then for its sum to become a model."""

BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0, 21600.0)

LEFT_OUT = {
    "not connected": "disconnected",
    "drained": "drained",
    CLOSED: "closed",
    "busy": "busy",
}
"""Beginnings of the scheduler's reasons, and their labels; the rest is `ineligible`: data, policy or models differ."""

REASONS = (*LEFT_OUT.values(), "ineligible", "refused", "dropped", "lost", "unanswered", "reducer")


@dataclass(slots=True)
class _Open:
    at: float
    silent: set[NodeId] = field(default_factory=set)


class RoundMetrics:
    """A projection of the journal; `told` may be called with any event, and never raises."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._phases = Histogram(
            "tutti_round_phase_seconds",
            "How long rounds spend in each phase.",
            ["phase"],
            buckets=BUCKETS,
            registry=registry,
        )
        self._rounds = Counter("tutti_rounds", "Rounds by how they ended.", ["outcome"], registry=registry)
        self._excluded = Counter(
            "tutti_exclusions", "Nodes that did not count in a round, by reason.", ["reason"], registry=registry
        )
        self._bytes = Counter("tutti_update_bytes", "Bytes of accepted updates by codec.", ["codec"], registry=registry)
        for codec in codecs:
            self._bytes.labels(codec)
        for phase in PHASES:
            self._phases.labels(phase)
        for outcome in ("closed", "failed"):
            self._rounds.labels(outcome)
        for reason in REASONS:
            self._excluded.labels(reason)
        self._waiting: dict[str, float] = {}
        self._open: dict[str, _Open] = {}

    def told(self, recorded: Recorded) -> None:
        job = recorded.stream
        match recorded.event:
            case e.JobSubmitted(at=at) | e.JobResumed(at=at):
                self._waiting[job] = at
            case e.JobPaused():
                self._waiting.pop(job, None)
            case e.RoundOpened(task="train") as opened:
                self._begin(job, opened)
            case e.UpdateAccepted(node=node, bytes=size, codec=codec):
                self._bytes.labels(codec or NONE.name).inc(size)
                self._heard(job, node)
            case e.UpdateRefused(node=node, final=final):
                self._exclude("refused")
                if final:
                    self._heard(job, node)
            case e.NodeDropped(node=node):
                self._exclude("dropped")
                self._heard(job, node)
            case e.UpdateLost():
                self._exclude("lost")
            case e.RoundClosed() as closed:
                self._close(job, closed)
            case e.RoundFailed(at=at):
                if self._open.pop(job, None) is not None:
                    self._rounds.labels("failed").inc()
                    self._waiting[job] = at
            case e.JobCompleted() | e.JobStopped() | e.JobFailed():
                self._waiting.pop(job, None)
                self._open.pop(job, None)
            case _:
                pass

    def _begin(self, job: str, opened: e.RoundOpened) -> None:
        if (since := self._waiting.pop(job, None)) is not None:
            self._took("waiting", opened.at - since)
        self._open[job] = _Open(opened.at, set(opened.cohort))
        for reason in opened.left_out.values():
            self._exclude(_label(reason))
        for reason, count in opened.left_out_more.items():
            self._exclude(_label(reason), count)

    def _heard(self, job: str, node: NodeId) -> None:
        if (opened := self._open.get(job)) is not None:
            opened.silent.discard(node)

    def _close(self, job: str, closed: e.RoundClosed) -> None:
        if (opened := self._open.pop(job, None)) is None:
            return
        self._rounds.labels("closed").inc()
        self._took("training", closed.at - closed.aggregation_seconds - opened.at)
        self._took("aggregating", closed.aggregation_seconds)
        self._exclude("unanswered", len(opened.silent))
        self._exclude("reducer", _weighed_nothing(closed.shares))
        self._waiting[job] = closed.at

    def _took(self, phase: str, seconds: float) -> None:
        self._phases.labels(phase).observe(max(0.0, seconds))

    def _exclude(self, reason: str, count: int = 1) -> None:
        self._excluded.labels(reason).inc(count)


def _label(reason: str) -> str:
    return next((label for start, label in LEFT_OUT.items() if reason.startswith(start)), "ineligible")


def _weighed_nothing(shares: Mapping[NodeId, float]) -> int:
    return sum(share == 0 for share in shares.values())
