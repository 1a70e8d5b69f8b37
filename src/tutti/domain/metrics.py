"""What nodes say of their work in numbers: what is taken from them, and the mean over a cohort."""

from collections.abc import Iterable
from math import isfinite

from tutti.domain.events import UpdateAccepted
from tutti.domain.spec import Metrics

MOST_METRICS = 64
"""Metrics of one submission, and of one mean over a cohort."""

LONGEST_NAME = 64

LARGEST_METRIC = 1e38
"""About what a float32 holds. A mean of such numbers is finite in float64, whatever nodes make up."""

COUNTS = ("train_examples", "eval_examples")
"""Metrics that weight the others of their prefix."""


def fault_of(metrics: Metrics) -> str | None:
    """Why these metrics of a node are not taken; None when they are."""
    if len(metrics) > MOST_METRICS:
        return f"{len(metrics)} metrics came, at most {MOST_METRICS} are taken"
    for name, value in metrics.items():
        if len(name) > LONGEST_NAME:
            return f"the metric {name[:LONGEST_NAME]!r}… has a name of {len(name)} characters, expected {LONGEST_NAME}"
        if not isfinite(value):
            return f"the metric {name!r} is {value}, expected a finite number"
        if abs(value) > LARGEST_METRIC:
            return f"the metric {name!r} is {value:g}, expected at most {LARGEST_METRIC:g} in size"
        if name in COUNTS and value < 0:
            return f"the metric {name!r} is {value:g}, expected a number of examples, 0 or more"
    return None


def finite(metrics: Metrics) -> Metrics:
    """The metrics that are numbers: JSON knows no others, and a diverged model is no reason to fail."""
    return {name: value for name, value in metrics.items() if isfinite(value)}


def average(updates: Iterable[UpdateAccepted], prefix: str, *, max_weight: int) -> Metrics:
    """Mean of the nodes' metrics of one prefix (`train_`, `eval_`), which is dropped from their names.

    Weighted by the count that each node reports, at most `max_weight`: as with its update, no node weighs more.
    A mean that is not finite is left out, and so are the rarest names beyond MOST_METRICS.
    """
    weight = f"{prefix}examples"
    means: dict[str, float] = {}
    totals: dict[str, float] = {}
    nodes: dict[str, int] = {}
    for update in updates:
        examples = min(update.metrics.get(weight, 0.0), max_weight)
        if not examples > 0:
            continue
        for name, value in update.metrics.items():
            if name.startswith(prefix) and name != weight:
                totals[name] = totals.get(name, 0.0) + examples
                mean = means.get(name, 0.0)
                means[name] = mean + examples / totals[name] * (value - mean)
                nodes[name] = nodes.get(name, 0) + 1
    common = sorted(means, key=lambda name: (-nodes[name], name))[:MOST_METRICS]
    mean_of = finite({name.removeprefix(prefix): means[name] for name in common})
    return {**mean_of, "examples": max(totals.values())} if mean_of else {}
