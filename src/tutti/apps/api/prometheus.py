"""The `/metrics` page for Prometheus, read off the coordinator's state each time it is asked for.

The four names without a prefix are those that existing dashboards use; they are kept letter by letter, so
the counter among them has no `_total` and is exposed without a type.
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
    UntypedMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from tutti.services.coordinator import Coordinator
from tutti.services.views import Durations, MetricsView, metrics_view, status_of_job


class Exposition:
    media_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self, coordinator: Coordinator) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_CoordinatorCollector(coordinator))

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _CoordinatorCollector(Collector):
    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def describe(self) -> Iterable[Metric]:
        return []  # else registering would ask for the values

    def collect(self) -> Iterable[Metric]:
        it = self._coordinator
        seen = metrics_view(it.jobs.values(), it.node_statuses(), it.stats)
        yield GaugeMetricFamily("devices_connected_total", "Nodes connected now.", seen.nodes_connected)
        yield UntypedMetricFamily("training_rounds_completed", "Rounds closed.", seen.rounds_completed)
        yield _summary("aggregation_time_seconds", "Folding a round's updates into a model.", seen.aggregation)
        yield _summary("device_training_time_seconds", "A node's training for one round.", seen.training)
        yield GaugeMetricFamily("tutti_nodes_joined", "Nodes that may connect.", len(it.register.nodes))
        yield GaugeMetricFamily("tutti_event_log_offset", "Events in the log.", it.journal.offset)
        yield _bytes(seen)
        yield _updates(seen)
        yield self._jobs()

    def _jobs(self) -> Metric:
        jobs = GaugeMetricFamily("tutti_jobs", "Jobs by status.", labels=["status"])
        counts: dict[str, int] = {}
        for job in self._coordinator.jobs.values():
            counts[status_of_job(job)] = counts.get(status_of_job(job), 0) + 1
        for status, count in sorted(counts.items()):
            jobs.add_metric([status], count)
        return jobs


def _summary(name: str, help: str, durations: Durations) -> Metric:
    summary = SummaryMetricFamily(name, help, count_value=durations.count, sum_value=durations.seconds)
    for quantile, value in (("0.5", durations.p50), ("0.9", durations.p90), ("0.99", durations.p99)):
        if value is not None:
            summary.add_sample(name, {"quantile": quantile}, value)
    return summary


def _bytes(seen: MetricsView) -> Metric:
    traffic = CounterMetricFamily("tutti_bytes", "Bytes of models and updates moved.", labels=["direction"])
    traffic.add_metric(["in"], seen.bytes_in)
    traffic.add_metric(["out"], seen.bytes_out)
    return traffic


def _updates(seen: MetricsView) -> Metric:
    updates = CounterMetricFamily("tutti_updates", "Updates that nodes sent.", labels=["verdict"])
    updates.add_metric(["accepted"], seen.updates_accepted)
    updates.add_metric(["refused"], seen.updates_refused)
    return updates
