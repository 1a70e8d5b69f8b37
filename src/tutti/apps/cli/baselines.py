"""The table that puts a federated model beside its baselines."""

from typing import TYPE_CHECKING

from tutti.apps.cli import text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tutti.domain.spec import Metrics
    from tutti.services.views import JobView
    from tutti.sim.baselines import Baselines

EACH = 6
"""Nodes of which each has a line; of more, the mean and the best."""


WITHOUT = "the same work without federation: nodes alone, and all data in one place …"


def measured(job: "JobView") -> "Metrics":
    """What a job's model measures, as far as its view has it."""
    return {name: value for name, value in (("accuracy", job.accuracy), ("loss", job.loss)) if value is not None}


def metric_of(measured: "Iterable[str]") -> str:
    """The metric that models are compared by."""
    return "accuracy" if "accuracy" in measured else "loss"


def beside(found: "Baselines", federated: "Metrics") -> str:
    """Lines for nodes alone, for all data in one place, and for the federated model."""
    metric = metric_of([*federated, *found.pooled.metrics])
    write = text.share if metric == "accuracy" else text.number
    rows = [(who, rows, "diverged" if value is None else write(value)) for who, rows, value in _lines(found, metric)]
    rows.append(("federated, no data moved", str(found.pooled.examples), write(federated.get(metric))))
    return text.table(("model", "examples", metric), rows)


def _lines(found: "Baselines", metric: str) -> "Iterator[tuple[str, str, float | None]]":
    alone = {node: (each.examples, each.metrics.get(metric)) for node, each in found.alone.items()}
    if len(alone) <= EACH:
        yield from ((f"{node} alone", str(rows), value) for node, (rows, value) in alone.items())
    else:
        values = [value for _, value in alone.values() if value is not None]
        mean = sum(rows for rows, _ in alone.values()) / len(alone)
        of = f"of {len(alone)} of {found.nodes} nodes" if found.nodes > len(alone) else f"of {len(alone)} nodes"
        yield f"alone, mean {of}", f"{mean:.0f}", found.mean_alone(metric)
        yield "alone, the best of these", "", (max if metric == "accuracy" else min)(values, default=None)
    yield "all data in one place", str(found.pooled.examples), found.pooled.metrics.get(metric)
