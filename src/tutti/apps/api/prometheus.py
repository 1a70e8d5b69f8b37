"""The `/metrics` page for Prometheus, read off the coordinator's state each time it is asked for.

The four names without a prefix are those that existing dashboards use; they are kept letter by letter, so
the counter among them has no `_total` and is exposed without a type.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
    UntypedMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from tutti.adapters.fabrics.hub import HubFabric
from tutti.apps.api.round_metrics import RoundMetrics
from tutti.core.errors import StorageError
from tutti.ports import EventLog, LinkLost
from tutti.ports.log import Leased
from tutti.services.coordinator import Coordinator
from tutti.services.members import NodeStatus
from tutti.services.stats import Stats
from tutti.services.views import Durations, MetricsView, metrics_view, status_of_job
from tutti.version import __version__

if TYPE_CHECKING:
    from tutti.adapters.fabrics.broker import BrokerFabric
    from tutti.adapters.fabrics.relayed import RelayedFabric

LOG_SECONDS = 2.0
"""How long the event log may take to answer before it counts as gone."""

COUNTED_BEHIND = 1000
"""Events by which a coordinator may be behind its log and still say by how many."""


async def events_behind(coordinator: Coordinator) -> int:
    """How many events are in the log of which this coordinator does not know; raises StorageError if it is gone."""
    try:
        async with asyncio.timeout(LOG_SECONDS):
            return len(await coordinator.log.read(coordinator.journal.offset, limit=COUNTED_BEHIND))
    except TimeoutError:
        raise StorageError(f"the event log has not answered for {LOG_SECONDS:g} s") from None


class Exposition:
    media_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(
        self,
        coordinator: Coordinator,
        fabric: HubFabric,
        broker: "BrokerFabric | None" = None,
        relayed: "RelayedFabric | None" = None,
    ) -> None:
        self._coordinator, self._broker = coordinator, broker
        self._registry = CollectorRegistry()
        self._collector = _CoordinatorCollector(coordinator, fabric, relayed)
        self._registry.register(self._collector)
        ProcessCollector(registry=self._registry)
        coordinator.journal.watchers.append(RoundMetrics(self._registry).told)

    async def text(self) -> bytes:
        try:
            self._collector.behind = await events_behind(self._coordinator)
        except StorageError:
            self._collector.behind = None
        if self._broker is not None:
            try:
                self._collector.letters = await self._broker.depths()
            except LinkLost:
                self._collector.letters = {}
        return generate_latest(self._registry)


class _CoordinatorCollector(Collector):
    def __init__(self, coordinator: Coordinator, fabric: HubFabric, relayed: "RelayedFabric | None") -> None:
        self._coordinator, self._fabric, self._relayed = coordinator, fabric, relayed
        self.behind: int | None = 0
        """Events in the log that the coordinator does not know of yet; None if the log does not answer."""
        self.letters: dict[str, int] | None = None
        """Letters that wait in the queues of the broker; empty if it does not answer, None if there is none."""

    def describe(self) -> Iterable[Metric]:
        return []  # else registering would ask for the values

    def collect(self) -> Iterable[Metric]:
        it = self._coordinator
        nodes = it.node_statuses()
        seen = metrics_view(it.jobs.values(), nodes, it.stats)
        yield GaugeMetricFamily("devices_connected_total", "Nodes connected now.", seen.nodes_connected)
        yield UntypedMetricFamily("training_rounds_completed", "Rounds closed.", seen.rounds_completed)
        yield _summary("aggregation_time_seconds", "Folding a round's updates into a model.", seen.aggregation)
        yield _summary("device_training_time_seconds", "A node's training for one round.", seen.training)
        yield GaugeMetricFamily("tutti_nodes_joined", "Nodes that may connect.", len(it.register.nodes))
        yield GaugeMetricFamily("tutti_event_log_offset", "Events in the log.", it.journal.offset)
        yield GaugeMetricFamily("tutti_event_log_up", "Whether the log answers.", self.behind is not None)
        if self.behind is not None:
            yield GaugeMetricFamily("tutti_event_log_lag_events", "Events this process has yet to learn.", self.behind)
        yield GaugeMetricFamily("tutti_maintenance", "Whether nothing new begins.", bool(it.register.maintenance))
        yield from _ownership(it.log)
        if self._relayed is not None:
            had = self._relayed.relays
            yield GaugeMetricFamily("tutti_relays", "Replicas that work for this one.", len(had))
            yield GaugeMetricFamily("tutti_relayed_nodes", "Nodes that they have.", sum(had.values()))
        yield from _broker(self.letters)
        yield _bytes(it.stats)
        yield _updates(seen)
        yield _nodes(nodes)
        yield self._jobs()
        yield self._queues()
        yield GaugeMetricFamily("tutti_jobs_in_trouble", "Jobs that wait for storage.", self._in_trouble())
        info = GaugeMetricFamily("tutti_build_info", "1, with the version.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info

    def _queues(self) -> Metric:
        queues = GaugeMetricFamily("tutti_queue_depth", "Messages that wait.", labels=["queue"])
        for queue, depth in self._fabric.depths().items():
            queues.add_metric([queue], depth)
        return queues

    def _in_trouble(self) -> int:
        return sum(bool(self._coordinator.trouble(job)) for job in self._coordinator.jobs)

    def _jobs(self) -> Metric:
        jobs = GaugeMetricFamily("tutti_jobs", "Jobs by status.", labels=["status"])
        counts: dict[str, int] = {}
        for job in self._coordinator.jobs.values():
            counts[status_of_job(job)] = counts.get(status_of_job(job), 0) + 1
        for status, count in sorted(counts.items()):
            jobs.add_metric([status], count)
        return jobs


def _ownership(log: EventLog) -> Iterable[Metric]:
    """Only of logs that pass from one coordinator to another."""
    if isinstance(log, Leased):
        yield GaugeMetricFamily("tutti_log_owner", "Fencing token of the log's owner; each has a new one.", log.token)
        yield GaugeMetricFamily("tutti_log_lease_seconds", "Until others may take the log over.", log.lease_left)


def _broker(letters: Mapping[str, int] | None) -> Iterable[Metric]:
    if letters is None:
        return
    yield GaugeMetricFamily("tutti_broker_up", "Whether the broker answers.", bool(letters))
    waiting = GaugeMetricFamily("tutti_broker_letters", "Letters that wait.", labels=["queue"])
    for queue, depth in letters.items():
        waiting.add_metric([queue], depth)
    yield waiting


def _summary(name: str, help: str, durations: Durations) -> Metric:
    summary = SummaryMetricFamily(name, help, count_value=durations.count, sum_value=durations.seconds)
    for quantile, value in (("0.5", durations.p50), ("0.9", durations.p90), ("0.99", durations.p99)):
        if value is not None:
            summary.add_sample(name, {"quantile": quantile}, value)
    return summary


def _bytes(stats: Stats) -> Metric:
    traffic = CounterMetricFamily(
        "tutti_bytes", "Bytes of models and updates moved, by content coding.", labels=["direction", "codec"]
    )
    for direction, moved, zstd in (("in", stats.bytes_in, stats.zstd_in), ("out", stats.bytes_out, stats.zstd_out)):
        traffic.add_metric([direction, "identity"], moved - zstd)
        traffic.add_metric([direction, "zstd"], zstd)
    return traffic


def _nodes(statuses: Iterable[NodeStatus]) -> Metric:
    nodes = GaugeMetricFamily("tutti_nodes", "Nodes that may connect, by what they are doing.", labels=["status"])
    counts = Counter(map(_doing, statuses))
    for status in ("away", "drained", "idle", "working"):
        nodes.add_metric([status], counts[status])
    return nodes


def _doing(node: NodeStatus) -> str:
    if not node.connected:
        return "away"
    return "working" if node.task else "drained" if node.drained else "idle"


def _updates(seen: MetricsView) -> Metric:
    updates = CounterMetricFamily("tutti_updates", "Updates that nodes sent.", labels=["verdict"])
    updates.add_metric(["accepted"], seen.updates_accepted)
    updates.add_metric(["refused"], seen.updates_refused)
    return updates
