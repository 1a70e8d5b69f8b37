"""`tutti sim` as a process."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.commands import background, tutti

ROOT = Path(__file__).parents[2]
SMALL = ("sim", "--dataset", "digits", "--model", "mlp:hidden=16", "--nodes", 6, "--cohort", 3, "--rounds", 3)


def test_a_federation_is_simulated_and_its_rounds_are_written(tmp_path):
    pytest.importorskip("pyarrow")
    done = tutti(*SMALL, "--partition", "dirichlet:0.5", "--out", "history.parquet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("completed: 3 rounds done; accuracy ")
    assert done.stderr.count("round ") == 4
    assert (tmp_path / "history.parquet").exists()
    assert re.search(r"^node-6 alone .*%\nall data in one place .*%\nfederated, no data moved .*%$", done.stdout, re.M)


def test_the_same_seed_gives_the_same_model_and_json(tmp_path):
    one, two, other = (json.loads(tutti(*SMALL, "--json", "--seed", seed, cwd=tmp_path).stdout) for seed in (1, 1, 2))
    assert one["header"]["model"] == two["header"]["model"] != other["header"]["model"]
    assert one["header"]["nodes"] == len(one["baselines"]["alone"]) == 6
    assert 0 < one["baselines"]["pooled"]["metrics"]["accuracy"] < 1
    assert "baselines" not in json.loads(tutti(*SMALL, "--json", "--no-baselines", cwd=tmp_path).stdout)
    assert all(len(row["cohort"]) == 3 for row in one["rounds"][1:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--engine", "warp"), "there is no engine 'warp'"),
        (("--held-out", 1), "node-1 has no rows to train on (nor has any of 5 others): hold out less"),
        (("--partition", "fair"), "there is no partitioner 'fair'"),
        (("--out", "history.csv"), "expected a name that ends in .parquet or .json"),
        (("--set", "training.speed=9"), "speed"),
        (("--vary", "training.speed=9"), "speed"),
        (("--vary", "training.lr"), "expected FIELD=VALUE"),
        (("--engine", "fused:wheels=4"), "wheels"),
    ],
)
def test_what_cannot_be_simulated_is_said_in_one_line(tmp_path, arguments, message):
    done = tutti(*SMALL, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_engine_that_does_not_fit_says_so_and_goes_on(tmp_path):
    done = tutti(*SMALL, "--model", "sgd-linear", "--engine", "fused", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the sequential one does") == 1
    assert "sequential engine" in done.stdout


def test_a_job_that_fails_has_its_own_exit_code(tmp_path):
    done = tutti(*SMALL, "--lr", 1000, "--set", "cohort.retries=0", "--set", "training.momentum=0.99", cwd=tmp_path)
    assert done.returncode == 5
    assert "tutti: the simulated job failed: round 1 failed 1 times" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_network_of_ones_own_is_simulated_where_it_is_allowed_also_in_worker_processes(tmp_path):
    net = "from torch import nn\n\ndef net() -> nn.Module:\n    return nn.Linear(64, 10)\n"
    (tmp_path / "my_nets.py").write_text(net)
    own = (*SMALL, "--model", "module:entry=my_nets:net", "--no-baselines", "--json")
    refused = tutti(*own, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert refused.returncode == 2
    assert "--allow-module my_nets" in refused.stderr
    allowed = ("--allow-module", "my_nets")
    for engine in ("sequential", "processes:workers=2"):
        done = tutti(*own, *allowed, "--engine", engine, cwd=tmp_path, PYTHONPATH=str(tmp_path))
        assert done.returncode == 0, done.stderr
    model = json.loads(done.stdout)["header"]["model"]
    again = tutti("replay", f".tutti/runs/digits-{model[:12]}.json", *allowed, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert again.stdout.startswith("bit-identical"), again.stderr


def test_a_run_that_only_nodes_measure_is_told_of_while_it_goes_on(tmp_path):
    rows = f"csv:path={ROOT}/examples/digits.csv,target=digit"
    done = tutti(*SMALL, "--dataset", rows, "--no-baselines", "--plot", "page.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("accuracy ") == 4
    assert "<svg" in (tmp_path / "page.html").read_text()


def test_the_example_of_a_strategy_trains():
    command = [sys.executable, ROOT / "examples/strategy.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    *rounds, last = done.stdout.splitlines()
    assert [line.split()[0] for line in rounds] == [str(number) for number in range(11)]
    assert all("accuracy" in line for line in rounds)
    assert last.startswith("10 rounds done ")


def test_a_sweep_runs_every_combination_and_shows_them_with_intervals(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    sweep = (*SMALL, "--seeds", 2, "--vary", "training.lr=0.05", "--vary", "training.lr=0.3", "--vary", "partition=iid")
    done = tutti(*sweep, "--plot", "page.html", "--out", "all.parquet", "--checkpoint", "run.ckpt", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    header, low, high, last = done.stdout.splitlines()[:4]
    metrics = ["accuracy", "calibration", "loss"]
    assert re.split("  +", header) == ["setting", "runs", *metrics, "accuracy alone", "accuracy in one place"]
    assert low.startswith("training.lr=0.05, partition=iid")
    assert high.startswith("training.lr=0.3, partition=iid")
    assert " ± " in low
    assert last.startswith("4 runs in ")
    table = parquet.read_table(tmp_path / "all.parquet")
    assert table.num_rows == 4 * 4
    assert sorted(set(table.column("training.lr").to_pylist())) == ["0.05", "0.3"]
    assert sorted(set(table.column("seed").to_pylist())) == [0, 1]
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == len(metrics)
    assert "http-equiv" not in page
    assert len(list(tmp_path.glob("run-*.ckpt"))) == 4
    again = tutti(*sweep, "--checkpoint", "run.ckpt", "--json", cwd=tmp_path)
    runs = json.loads(again.stdout)["runs"]
    assert [run["settings"]["training.lr"] for run in runs] == ["0.05", "0.05", "0.3", "0.3"]
    assert again.stderr.count("round ") == 0
    alone = json.loads(tutti(*SMALL, "--lr", 0.3, "--seed", 1, "--json", cwd=tmp_path).stdout)
    assert runs[3]["header"]["model"] == alone["header"]["model"]
    assert runs[3]["baselines"] == alone["baselines"] != runs[1]["baselines"]


def test_runs_that_differ_only_in_what_several_nodes_need_have_the_same_baselines(tmp_path):
    done = tutti(*SMALL, "--vary", "strategy=fedavg", "--vary", "strategy=fedadam", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one, other = json.loads(done.stdout)["runs"]
    assert one["baselines"] == other["baselines"]
    assert one["header"]["model"] != other["header"]["model"]
    plain = tutti(*SMALL, "--vary", "strategy=fedavg", "--seeds", 2, "--no-baselines", "--json", cwd=tmp_path)
    assert not any("baselines" in run for run in json.loads(plain.stdout)["runs"])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path, how):
    # seconds on any machine: a checkpoint is written after one
    long = (*SMALL[:-1], 500, "--model", "mlp:hidden=256", "--epochs", 12, "--evaluate-every", 10)
    expected = json.loads(tutti(*long, "--json", cwd=tmp_path).stdout)
    file = tmp_path / "run.ckpt"
    with background(*long, "--checkpoint", "run.ckpt", cwd=tmp_path) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if file.exists() or line.startswith("round 490"):
                break
        os.kill(process.pid, how)
        process.wait()
    assert file.exists()
    rest = tutti(*long, "--checkpoint", "run.ckpt", cwd=tmp_path)
    assert 0 < rest.stderr.count("round ") < 50
    found = json.loads(tutti(*long, "--checkpoint", "run.ckpt", "--json", cwd=tmp_path).stdout)
    assert found["header"]["model"] == expected["header"]["model"]
    assert [row["model"] for row in found["rounds"]] == [row["model"] for row in expected["rounds"]]
