"""A coordinator of which a part dies ends with an error and its exit code, and goes on when it is started again."""

import sqlite3
from contextlib import closing
from pathlib import Path

from support.commands import DEADLINE, running
from tutti.apps.cli.exits import Exit
from tutti.apps.client import Client

SPEC = {"dataset": "digits", "model": "sgd-linear", "rounds": 2, "cohort": {"min_nodes": 1}}
FOREIGN = """
INSERT INTO events (stream, version, type, data, at)
SELECT stream, version + 1, type, data, at FROM events WHERE stream = 'nodes' ORDER BY version DESC LIMIT 1
"""


def test_a_coordinator_of_which_a_part_died_ends_and_goes_on_when_it_is_started_again(tmp_path: Path) -> None:
    """Here of a log that somebody else writes to: memory and log no longer agree when the node's end is noted."""
    said, log = tmp_path / "stderr", tmp_path / "data" / "log.sqlite"
    up = ("up", "--data-dir", log.parent, "--port")
    with running(*up, 0, cwd=tmp_path, prefix=("sh", "-c", f'exec "$@" 2>{said}', "sh")) as coordinator:
        url = coordinator.ready["url"]
        with Client(url) as client:
            node = ("join", client.invite().link, "--data", "digits:part=0/2", "--name", "ada", "--state-dir", "ada")
            with running(*node, cwd=tmp_path):
                assert client.wait(client.submit(SPEC).id).status == "completed"
                with closing(sqlite3.connect(log)) as foreign, foreign:
                    foreign.execute(FOREIGN)
        assert coordinator.process.wait(DEADLINE) == Exit.BUG
    assert "tutti: the coordinator ended, for a part of it died (Members.note: VersionConflict" in said.read_text()
    assert "start it again" in said.read_text()
    with (
        running(*up, url.rpartition(":")[2], cwd=tmp_path),
        running(*node, cwd=tmp_path),
        Client(url) as client,
    ):
        assert client.wait(client.submit(SPEC).id).status == "completed"
