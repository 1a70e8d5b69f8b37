"""How good a model is for whom: node by node, for all together, and how evenly."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from tutti.core.evaluation import confusion, fairness
from tutti.domain.events import NodeId
from tutti.domain.history import RoundSummary
from tutti.domain.metrics import average
from tutti.domain.spec import Metrics
from tutti.services.views.base import View

if TYPE_CHECKING:
    from tutti.domain.jobs import Job

LOWER_IS_BETTER = frozenset({"loss", "mse", "calibration"})
MEASURED = "eval_"
"""Prefix of what a node measures of the model that it was sent."""


class FairnessView(View, frozen=True, kw_only=True):
    """How evenly a metric falls on the nodes, each counting once."""

    mean: float
    variance: float
    worst: float
    worst_node: NodeId
    best: float


class EvaluationView(View, frozen=True, kw_only=True):
    """What the model of a round measures.

    Attributes:
        nodes: By node, on the rows that it holds out, whose number is `examples`.
        pooled: Over all those rows; `auc` and `calibration` are the nodes' means where rows stay at home.
        coordinator: On the coordinator's own rows, if the job has any.
        fairness: By metric.
        confusion: Rows by true class (first index) and predicted one; empty where rows stay at home.
        class_names: Of the confusion matrix.
    """

    round: int
    nodes: dict[NodeId, Metrics]
    pooled: Metrics
    coordinator: Metrics
    fairness: dict[str, FairnessView]
    confusion: list[list[int]] = msgspec.field(default_factory=list)
    class_names: list[str] = msgspec.field(default_factory=list)


def job_evaluation(job: "Job", round: int, attempts: Iterable[RoundSummary]) -> EvaluationView:
    """What the nodes measured of the model of `round`: they told it in the attempt that started from that model."""
    wanted = next((a for a in attempts if a.succeeded and a.base == job.model_of(round)), None)
    updates = wanted.round.accepted if wanted else ()
    by_node = {update.node: _measured(update.metrics) for update in updates}
    told = {node: metrics for node, metrics in sorted(by_node.items()) if metrics}
    most = job.spec.cohort.max_weight
    return EvaluationView(
        round=round,
        nodes=told,
        pooled=average(updates, MEASURED, max_weight=most),
        coordinator=job.evaluations.get(round, {}).get("coordinator", {}),
        fairness=fairness_of(told),
    )


def _measured(metrics: Metrics) -> Metrics:
    return {name.removeprefix(MEASURED): value for name, value in metrics.items() if name.startswith(MEASURED)}


def fairness_of(nodes: Mapping[NodeId, Metrics]) -> dict[str, FairnessView]:
    """For every metric that all nodes have."""
    shared = set.intersection(*(set(metrics) for metrics in nodes.values())) if nodes else set()
    found = {}
    for name in sorted(shared - {"examples"}):
        even = fairness({n: m[name] for n, m in nodes.items()}, lower_is_better=name in LOWER_IS_BETTER)
        found[name] = FairnessView(
            mean=even.mean, variance=even.variance, worst=even.worst, worst_node=even.worst_node, best=even.best
        )
    return found


def confusion_of(y: NDArray[np.int64], outputs: NDArray[np.float32]) -> list[list[int]]:
    """Of classes and their logits (n, classes)."""
    found: list[list[int]] = confusion(y, outputs.argmax(axis=1), outputs.shape[1]).tolist()
    return found
