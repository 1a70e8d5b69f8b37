"""`tutti sim` as a process."""

import json

import pytest

from support.commands import tutti

SMALL = ("sim", "--dataset", "digits", "--model", "mlp:hidden=16", "--nodes", 6, "--cohort", 3, "--rounds", 3)


def test_a_federation_is_simulated_and_its_rounds_are_written(tmp_path):
    pytest.importorskip("pyarrow")
    done = tutti(*SMALL, "--partition", "dirichlet:0.5", "--out", "history.parquet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("completed: 3 rounds done; accuracy ")
    assert done.stderr.count("round ") == 4
    assert (tmp_path / "history.parquet").exists()


def test_the_same_seed_gives_the_same_model_and_json(tmp_path):
    one, two, other = (json.loads(tutti(*SMALL, "--json", "--seed", seed, cwd=tmp_path).stdout) for seed in (1, 1, 2))
    assert one["header"]["model"] == two["header"]["model"] != other["header"]["model"]
    assert one["header"]["nodes"] == 6
    assert all(len(row["cohort"]) == 3 for row in one["rounds"][1:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--engine", "warp"), "there is no engine 'warp'"),
        (("--partition", "fair"), "there is no partitioner 'fair'"),
        (("--out", "history.csv"), "expected a name that ends in .parquet or .json"),
        (("--set", "training.speed=9"), "speed"),
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
