"""Traces of a real coordinator and real nodes, as a collector receives them."""

import signal
from pathlib import Path

import pytest

from support.collector import Collector, collecting
from support.commands import running
from tutti.adapters.tracing import tracing, wanted
from tutti.apps.client import Client

JOB = {"dataset": "digits", "model": "mlp", "rounds": 2, "cohort": {"min_nodes": 2}}


def train(folder: Path, collector: Collector) -> str:
    """Two rounds on two nodes, of which one does not trace; the id of the job."""
    traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    up = ("up", "--port", 0)
    with running(*up, cwd=folder, **traced) as coordinator, Client(coordinator.ready["url"]) as client:
        first, second = (
            ("join", client.invite().link, "--data", f"digits:part={part}/2", "--name", name, "--state-dir", name)
            for part, name in enumerate(("ada", "bob"))
        )
        with running(*first, cwd=folder, **traced) as ada, running(*second, cwd=folder):
            job = client.wait(client.submit(JOB).id)
            assert job.status == "completed"
            assert ada.end(signal.SIGTERM) == 0
        assert coordinator.end(signal.SIGTERM) == 0
    return job.id


def test_a_round_is_one_trace_across_coordinator_and_nodes(tmp_path: Path) -> None:
    with collecting() as collector:
        job = train(tmp_path, collector)
    rounds = {each.about["tutti.round"]: each for each in collector.named("round")}
    tasks = {each.about["tutti.round"]: each for each in collector.named("task")}
    assert {1, 2} <= rounds.keys()
    assert {1, 2} <= tasks.keys()
    assert len({each.span.trace_id for each in rounds.values()}) == len(rounds)
    for number in (1, 2):
        whole, task = rounds[number], tasks[number]
        assert (whole.service, task.service) == ("tutti-coordinator", "tutti-node")
        assert whole.span.parent_span_id == b""
        assert (task.span.trace_id, task.span.parent_span_id) == (whole.span.trace_id, whole.span.span_id)
        assert (task.about["tutti.job"], task.about["tutti.node"]) == (job, "ada")
        assert whole.about["tutti.job"] == job
        assert [event.name for event in whole.span.events] == ["update accepted"] * 2
        assert whole.span.end_time_unix_nano > whole.span.start_time_unix_nano
        assert whole.span.status.code != 2
    parts = {(each.span.name, each.span.parent_span_id) for each in collector.received}
    assert ("fetch", tasks[1].span.span_id) in parts
    assert ("store", tasks[1].span.span_id) in parts


@pytest.mark.parametrize(
    ("environment", "asks"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "True"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_the_standard_environment_decides(environment: dict[str, str], asks: bool) -> None:
    assert wanted(environment) == asks


def test_nothing_is_traced_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    with tracing("tutti") as tracer:
        assert tracer is None
