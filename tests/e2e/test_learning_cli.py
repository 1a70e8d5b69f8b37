"""What a researcher types: reducers, partitions, preflight, manifests, as processes."""

import json

import pytest

from support.commands import tutti

SIM = ("sim", "--dataset", "digits", "--model", "linear", "--nodes", 5, "--cohort", 5, "--rounds", 3, "--json")


def simulated(cwd, *arguments):
    done = tutti(*SIM, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_reducer_makes_the_model(tmp_path):
    models = {simulated(tmp_path, "--reducer", name)["header"]["model"] for name in ("mean", "median", "krum:f=1")}
    assert len(models) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--reducer", "mode"), "there is no reducer 'mode'; choose from: bulyan, "),
        (("--reducer", "krum:f=2"), "reducer krum:f=2 needs 7 updates or more"),
        (("--reducer", "trimmed-mean:0.7"), "Expected `float` < 0.5"),
        (("--strategy", "fedmagic"), "there is no strategy 'fedmagic'; choose from: "),
        (("--strategy", "fedavgm:momentum=2"), "strategy 'fedavgm'"),
        (("--lr", "0"), "training.lr"),
        (("--partition", "exponential:rate=5"), "leaves node 0 of 5 without any of the 1437 rows"),
    ],
)
def test_a_mistake_is_refused_before_anything_runs(tmp_path, arguments, message):
    done = tutti(*SIM, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_partition_is_shown_as_table_picture_and_json(tmp_path):
    asked = ("partition", "digits", "--nodes", 4, "--partition", "pathological:classes=2", "--seed", 3)
    done = tutti(*asked, "--out", "who.svg", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("node")
    assert (tmp_path / "who.svg").read_text().startswith("<svg")
    said = json.loads(tutti(*asked, "--json", cwd=tmp_path).stdout)
    assert [sum(count > 0 for count in node["classes"]) for node in said["nodes"]] == [2, 2, 2, 2]


def test_the_catalog_lists_the_reducers(tmp_path):
    said = json.loads(tutti("catalog", "reducers", "--json", cwd=tmp_path).stdout)
    assert {"mean", "median", "trimmed-mean", "krum", "bulyan"} <= said["reducers"].keys()
