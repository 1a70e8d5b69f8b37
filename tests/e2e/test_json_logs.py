"""A coordinator and a node that log JSON."""

import json
from pathlib import Path

from support.commands import running
from tutti.apps.client import Client


def test_coordinator_and_node_log_json_with_ids(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('port = 0\nlog-format = "json"\n')
    said = tmp_path / "stderr"
    aside = ("sh", "-c", f'exec "$@" 2>>{said}', "sh")
    with (
        running("up", "--config", "c.toml", cwd=tmp_path, prefix=aside) as coordinator,
        Client(coordinator.ready["url"]) as client,
    ):
        node = ("join", client.invite().link, "--data", "digits:part=0/2", "--name", "ada", "--state-dir", "ada")
        with running(*node, cwd=tmp_path, prefix=aside, TUTTI_LOG_FORMAT="json"):
            job = client.submit({"dataset": "digits", "model": "sgd-linear", "rounds": 1, "cohort": {"min_nodes": 1}})
            assert client.wait(job.id).status == "completed"
    lines = [json.loads(line) for line in said.read_text().splitlines()]
    assert any((line.get("job"), line.get("round"), line.get("node")) == (job.id, 1, "ada") for line in lines)
