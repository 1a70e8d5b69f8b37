"""What a researcher types: reducers, partitions, preflight, manifests, as processes."""

import json
import random

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
        (("--partition", "exponential:rate=5"), "leaves node-1 of 5 without any of the 1438 rows"),
    ],
)
def test_a_mistake_is_refused_before_anything_runs(tmp_path, arguments, message):
    done = tutti(*SIM, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_partition_is_shown_as_table_picture_and_json(tmp_path):
    asked = ("partition", "digits", "--nodes", 5, "--partition", "pathological:classes=2", "--seed", 3)
    done = tutti(*asked, "--out", "who.svg", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("node")
    assert (tmp_path / "who.svg").read_text().startswith("<svg")
    said = json.loads(tutti(*asked, "--json", cwd=tmp_path).stdout)
    assert [sum(count > 0 for count in node["classes"]) for node in said["nodes"]] == [2] * 5


def test_the_catalog_lists_the_reducers(tmp_path):
    said = json.loads(tutti("catalog", "reducers", "--json", cwd=tmp_path).stdout)
    assert {"mean", "median", "trimmed-mean", "krum", "bulyan"} <= said["reducers"].keys()


def clinic(file, rows=60, seed=0, header="age,weight,died", words=("no", "yes")):
    """Patients of whom the older ones died."""
    chance = random.Random(seed)
    lines = [header]
    for _ in range(rows):
        age, weight = chance.uniform(20, 90), chance.uniform(50, 100)
        lines.append(f"{age / 100:.3f},{weight / 100:.3f},{words[age > 55]}")
    file.write_text("\n".join(lines) + "\n")


def test_a_prediction_is_a_class_by_its_name(tmp_path):
    clinic(tmp_path / "clinic.csv")
    done = tutti(
        *("run", "--local", "--data", "csv:path=clinic.csv,target=died,classes=no|yes", "--model", "linear"),
        *("--nodes", 2, "--rounds", 20, "--lr", 3, "--batch-size", 8, "--out", "model.safetensors"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    clinic(tmp_path / "new.csv", seed=1, header="age,weight,outcome")
    (tmp_path / "columns.csv").write_text("weight,id,age\n0.6,17,0.9\n0.6,18,0.2\n")
    said = tutti("predict", "model.safetensors", "columns.csv", cwd=tmp_path)
    assert [line.partition(",")[0] for line in said.stdout.splitlines()] == ["prediction", "yes", "no"], said.stderr
    measured = tutti("predict", "model.safetensors", "new.csv", "--target", "outcome", cwd=tmp_path)
    assert "accuracy" in measured.stderr
    assert float(measured.stderr.partition("accuracy ")[2].partition(",")[0]) > 0.9
    (tmp_path / "other.csv").write_text("age,height\n0.6,1.7\n")
    wrong = tutti("predict", "model.safetensors", "other.csv", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "other.csv lacks the column 'weight' that the model takes; it has: age, height" in wrong.stderr
