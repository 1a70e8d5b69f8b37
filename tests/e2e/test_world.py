"""One world file, twice: on virtual time, and as real nodes in processes of their own on a real coordinator."""

import json
import signal
from contextlib import ExitStack
from pathlib import Path

from support.commands import running, tutti

WORLD = """
nodes = 4
seed = 5
data = "digits"
partition = "dirichlet:0.5"
heartbeat = 5

[machine]
speed = "lognormal:median=1500,sigma=0.5"

[network]
latency = "uniform:low=0.005,high=0.03"
up = 400000
down = 400000
duplicate = 0.1
cut = "exponential:mean=4"

[faults]
drop_out = 0.3
away = "uniform:low=0.2,high=0.8"
"""
JOB = """
name = "both"
dataset = "digits"
model = "linear"
strategy = "fedavgm"
rounds = 4
seed = 2

[training]
epochs = 1
batch_size = 16

[cohort]
min_nodes = 4
grace = 60.0

[evaluation]
nodes = false
"""


def test_the_same_file_drives_simulation_and_deployment(tmp_path: Path) -> None:
    """Slow nodes, late and repeated messages, lost connections, deaths in a task: the same model in both."""
    (tmp_path / "world.toml").write_text(WORLD)
    (tmp_path / "job.toml").write_text(JOB)
    simulated = tutti("world", "run", "world.toml", "job.toml", "--json", cwd=tmp_path)
    assert simulated.returncode == 0, simulated.stderr
    virtual = json.loads(simulated.stdout)
    assert virtual["status"] == "completed"
    assert virtual["node_deaths"] > 0
    with ExitStack() as stack:
        up = stack.enter_context(running("up", "--port", "0", cwd=tmp_path))
        url = up.ready["url"]
        link = json.loads(tutti("invite", "--uses", "4", "--url", url, "--json", cwd=tmp_path).stdout)["link"]
        hosts = [
            stack.enter_context(
                running("world", "join", "world.toml", link, "--nodes", these, "--state-dir", these, cwd=tmp_path)
            )
            for these in ("1-2", "3-4")
        ]
        assert [host.ready["nodes"] for host in hosts] == [2, 2]
        ran = tutti("run", "job.toml", "--url", url, "--json", cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
        assert json.loads(ran.stdout)["model_digest"] == virtual["model"]
        foretold = tutti("forecast", "job.toml", "--url", url, "--json", cwd=tmp_path)
        assert json.loads(foretold.stdout)["measured"] >= 3  # a node of this world may be dead just then
        assert [host.end(signal.SIGTERM) for host in hosts] == [0, 0]


def test_mistakes_cost_a_line(tmp_path: Path) -> None:
    (tmp_path / "world.toml").write_text('nodes = 4\nspeed = "fast"\n')
    (tmp_path / "job.toml").write_text(JOB)
    failed = tutti("world", "run", "world.toml", "job.toml", cwd=tmp_path)
    assert failed.returncode == 2
    assert failed.stderr.startswith("tutti: world: Object contains unknown field `speed`")
    (tmp_path / "world.toml").write_text("nodes = 4\n")
    failed = tutti("world", "join", "world.toml", "http://127.0.0.1:1/join#x", "--nodes", "3-9", cwd=tmp_path)
    assert failed.returncode == 2
    assert "this world has the nodes 1-4" in failed.stderr
