"""Every benchmark still runs, in a form so small that its figures mean nothing, and prints a ratio."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from support.browser import CHROMIUM, missing
from support.ports import NOT_GIVEN_OUT
from support.services import need_servers

BENCH = Path(__file__).resolve().parents[2] / "bench"
SMALL = {
    "aggregate.py": (["--updates", "2", "--parameters", "1000", "--repeats", "1"], "of copy"),
    "codecs.py": (["--quick"], "times smaller"),
    "scale.py": (["--quick"], "ratio"),
    "transfer.py": (["--quick"], "ratio"),
    "robust.py": (["--updates", "5", "--parameters", "1000", "--repeats", "1"], None),
    "attacks.py": (["--nodes", "8", "--bad", "1", "--rounds", "1", "--partition", "dirichlet:0.5"], None),
    "rounds.py": (["--quick"], "times bare"),
    "nodes.py": (["--quick"], "latency / bare"),
    "worlds.py": (["--quick"], "a round / small fleet's"),
    "rest.py": (["--quick"], "times bare"),
    "dashboard.py": (["--quick"], "p99 / at rest"),
    "ring_faults.py": (["--simulated", "2"], None),
    "browser.py": (["--quick"], "kernel / this"),
    "classroom.py": (["--quick"], "a round / one pupil's"),
    "ring_calls.py": (["--quick"], "MB/s / apache"),
    "ring_averages.py": (["--quick"], "s / bare"),
    "ring_training.py": (["--quick"], None),
    "verification.py": (["--quick"], "solve / check"),
    "ledger.py": (["--jobs", "20"], "times bare"),
    "market.py": (["--quick"], "times bare"),
    "broker.py": (["--quick"], "ratio"),
    "failover.py": (["--quick"], "ratio"),
    "sim.py": (["--no-op", "--rounds", "8"], None),
    "chain.py": (["--quick"], "a node each / ours"),
    "cifar.py": (["--rounds", "1", "--users", "3", "--cohort", "2", "--engine", "processes"], "times the loop"),
}


MINUTES = {"tables.py"}
"""This has no small form: it trains on real data sets."""


def test_none_is_forgotten():
    assert {path.name for path in BENCH.glob("[a-z]*.py")} == set(SMALL) | MINUTES


def test_members_of_a_ring_listen_where_the_system_takes_no_port_for_a_connection():
    drawn = [sys.executable, "-c", "import _ring; print(_ring.free_port())"]
    assert int(subprocess.run(drawn, cwd=BENCH, capture_output=True, check=True).stdout) in NOT_GIVEN_OUT


@pytest.mark.parametrize("script", SMALL)
def test_runs_and_prints_a_ratio(script):
    if script in ("dashboard.py", "classroom.py") and CHROMIUM is None:
        missing("Chromium (Debian: apt-get install chromium)")
    if script == "browser.py" and not (BENCH.parent / "web" / "node_modules").exists():
        missing("Node, and `npm ci` in web/")
    if script in ("broker.py", "failover.py"):
        need_servers()
    arguments, ratio = SMALL[script]
    peers = ("BENCH_FLWR_PYTHON", "BENCH_P2PFL_PYTHON", "BENCH_HIVEMIND_PYTHON", "BENCH_BROWSER_PEERS")
    environment = {k: v for k, v in os.environ.items() if k not in (*peers, "BENCH_PROFILE")}
    with tempfile.TemporaryDirectory(prefix="t-") as folder:  # a short path: Chromium puts a socket there
        done = subprocess.run(
            [sys.executable, str(BENCH / script), *arguments, "--json"],
            capture_output=True,
            text=True,
            timeout=150,
            env={**environment, "TMPDIR": folder},
        )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert rows
    assert ratio is None or all(row[ratio] > 0 for row in rows)
