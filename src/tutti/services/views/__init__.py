"""What people and programs get to see: pure functions from the state to plain values.

REST, `tutti … --json`, the Python client and the dashboard all show exactly these. Times are seconds since
the epoch, durations seconds, sizes bytes, shares 0 to 1.
"""

from tutti.services.views.base import Page, View
from tutti.services.views.evaluation import (
    EvaluationView,
    FairnessView,
    confusion_of,
    fairness_of,
    job_evaluation,
)
from tutti.services.views.jobs import CheckView, JobView, check_view, job_view, latest_score, status_of_job
from tutti.services.views.models import (
    ContributionView,
    Ingredient,
    MetricPoint,
    ModelView,
    contribution_views,
    described,
    metric_points,
    model_views,
    rounds_with_model,
)
from tutti.services.views.nodes import Invitation, NodeView, node_view
from tutti.services.views.overview import (
    Configuration,
    Durations,
    EventView,
    Health,
    JobScore,
    MetricsView,
    StatusView,
    event_view,
    metrics_view,
    status_view,
)
from tutti.services.views.preflight import ColumnView, NodePreflight, PreflightView, preflight_view
from tutti.services.views.rounds import AttemptView, PartView, RefusalView, RoundView, WhyView, round_views, why_view

__all__ = [
    "AttemptView",
    "CheckView",
    "ColumnView",
    "Configuration",
    "ContributionView",
    "Durations",
    "EvaluationView",
    "EventView",
    "FairnessView",
    "Health",
    "Ingredient",
    "Invitation",
    "JobScore",
    "JobView",
    "MetricPoint",
    "MetricsView",
    "ModelView",
    "NodePreflight",
    "NodeView",
    "Page",
    "PartView",
    "PreflightView",
    "RefusalView",
    "RoundView",
    "StatusView",
    "View",
    "WhyView",
    "check_view",
    "confusion_of",
    "contribution_views",
    "described",
    "event_view",
    "fairness_of",
    "job_evaluation",
    "job_view",
    "latest_score",
    "metric_points",
    "metrics_view",
    "model_views",
    "node_view",
    "preflight_view",
    "round_views",
    "rounds_with_model",
    "status_of_job",
    "status_view",
    "why_view",
]
