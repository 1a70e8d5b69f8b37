"""What a researcher types: reducers, partitions, preflight, manifests, as processes."""

import json
import random

import pytest

from support.commands import running, tutti
from tutti.apps.client import Client

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


def test_nodes_of_a_coordinator_tell_of_their_data(tmp_path):
    for seed, name in enumerate(("ann", "bob")):
        clinic(tmp_path / f"{name}.csv", seed=seed)
    gaps = (tmp_path / "bob.csv").read_text().splitlines()
    (tmp_path / "bob.csv").write_text(
        "\n".join([gaps[0], *(f",{line.partition(',')[2]}" for line in gaps[1:13]), *gaps[13:]])
    )
    (tmp_path / "policy.toml").write_text("min_rows = 15\n")
    data = "target=died,classes=no|yes,name=clinic"
    with running("up", "--port", 0, "--data-dir", "data", cwd=tmp_path) as up:
        url = up.ready["url"]
        link = json.loads(tutti("invite", "--uses", 3, "--url", url, "--json", cwd=tmp_path).stdout)["link"]
        refused = tutti("join", link, "--name", "eve", "--data", f"csv:path=bob.csv,{data}", cwd=tmp_path)
        assert refused.returncode == 2
        assert "bob.csv, row 2, column 'age': the value is missing, as 11 more are" in refused.stderr
        policy = ("--policy", "policy.toml")
        with (
            running("join", link, "--name", "ann", "--data", f"csv:path=ann.csv,{data}", *policy, cwd=tmp_path),
            running("join", link, "--name", "bob", "--data", f"csv:path=bob.csv,missing=drop,{data}", cwd=tmp_path),
        ):
            wait_for_nodes(tmp_path, url, 2)
            said = tutti("preflight", "clinic", "--url", url, "--column", "age", cwd=tmp_path)
            assert said.returncode == 0, said.stderr
            assert "- bob: column 'age' misses 12 values" in said.stdout
            told = json.loads(tutti("preflight", "clinic", "--url", url, "--json", cwd=tmp_path).stdout)
            assert {node["node"]: node["least"] for node in told["nodes"]} == {"ann": 15, "bob": 10}
            assert (told["rows"], told["class_names"]) == (48 + 38, ["no", "yes"])
            job = ("run", "--dataset", "clinic", "--model", "linear", "--nodes", 2, "--rounds", 3, "--normalize")
            assert tutti(*job, "--url", url, cwd=tmp_path).returncode == 0


def wait_for_nodes(cwd, url, count):
    """Nodes say that they have joined a moment before they are connected."""
    with Client(url) as client:
        for event in client.follow():
            if event.type == "NodeConnected" and sum(node.connected for node in client.nodes()) >= count:
                return


def test_simulated_nodes_tell_of_their_data(tmp_path):
    clinic(tmp_path / "clinic.csv")
    asked = ("preflight", "--data", "csv:path=clinic.csv,target=died,classes=no|yes", "--nodes", 2)
    said = tutti(*asked, cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("clinic: 60 rows to train on")
    assert tutti(*asked, "clinic", cwd=tmp_path).returncode == 2
    assert tutti(*asked, "--column", "height", cwd=tmp_path).stderr.count("there is no column 'height'") == 1


def manifests(cwd):
    return sorted((cwd / ".tutti" / "runs").glob("*.json"))


def test_a_simulation_is_made_again_to_the_bit(tmp_path):
    run = simulated(tmp_path, "--partition", "dirichlet:0.5", "--cohort", 2, "--strategy", "fedadam", "--seed", 4)
    (file,) = manifests(tmp_path)
    said = json.loads(file.read_text())
    assert (said["model"], said["spec"]["seed"]) == (run["header"]["model"], 4)
    assert said["division"]["partition"] == "dirichlet:0.5"
    assert len({node["digest"] for node in said["nodes"].values()}) == 5
    again = tutti("replay", file, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith(f"bit-identical: model {run['header']['model'][:12]} after 3 rounds")
    assert not again.stderr


def test_a_run_that_comes_out_differently_says_so(tmp_path):
    simulated(tmp_path)
    (file,) = manifests(tmp_path)
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, "model": "0" * 64, "versions": {**said["versions"], "numpy": "1.0"}}))
    again = tutti("replay", file, cwd=tmp_path)
    assert again.returncode == 5
    assert "came out differently: expected model 000000000000" in again.stderr
    assert "warning: made with numpy 1.0, here is" in again.stderr
    said["nodes"]["node-2"]["digest"] = "1" * 64
    file.write_text(json.dumps(said))
    assert "node-2 holds other rows now: expected digest 111111111111" in tutti("replay", file, cwd=tmp_path).stderr
    file.write_text("{}")
    assert "is no manifest of a run" in tutti("replay", file, cwd=tmp_path).stderr


def test_a_job_on_known_data_is_made_again_to_the_bit(tmp_path):
    job = ("run", "--local", "--dataset", "digits", "--model", "linear", "--nodes", 3, "--rounds", 3)
    done = tutti(*job, "--partition", "dirichlet:0.5", "--batch-size", 16, "--fraction", 0.6, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (file,) = manifests(tmp_path)
    assert f"manifest: {file.relative_to(tmp_path)}" in done.stdout
    again = json.loads(tutti("replay", file, "--json", cwd=tmp_path).stdout)
    assert again["identical"]


def test_a_job_on_data_of_the_nodes_own_is_made_again_by_whoever_has_them(tmp_path):
    clinic(tmp_path / "clinic.csv")
    source = "csv:path=clinic.csv,target=died"
    options = ("--data", f"{source},classes=no|yes", "--model", "linear", "--nodes", 2, "--rounds", 2, "--normalize")
    done = tutti("run", "--local", *options, "--batch-size", 8, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (file,) = manifests(tmp_path)
    refused = tutti("replay", file, cwd=tmp_path)
    assert refused.returncode == 2
    assert "the rows of node-1, node-2 never left them" in refused.stderr
    given = [
        option
        for part in range(2)
        for option in ("--data", f"node-{part + 1}={source},classes=no|yes,part={part}/2,partition=iid,seed=0")
    ]
    again = tutti("replay", file, *given, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "bit-identical" in again.stdout


def test_a_simulated_model_is_measured_as_a_whole_and_by_node(tmp_path):
    simulated(tmp_path, "--model-out", "model.safetensors")
    said = json.loads(tutti("evaluate", "model.safetensors", "digits:split=test", "--json", cwd=tmp_path).stdout)
    assert sum(map(sum, said["confusion"])) == said["pooled"]["examples"] == 359
    hits = sum(row[label] for label, row in enumerate(said["confusion"]))
    assert said["pooled"]["accuracy"] == pytest.approx(hits / 359)
    by_node = tutti("evaluate", "model.safetensors", "digits", "--nodes", 3, cwd=tmp_path)
    assert by_node.returncode == 0, by_node.stderr
    for wanted in ("node-3", "all", "variance", "calibration", "true \\ predicted"):
        assert wanted in by_node.stdout
    wrong = tutti("evaluate", "model.safetensors", "breast-cancer", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "breast-cancer does not fit the model" in wrong.stderr
