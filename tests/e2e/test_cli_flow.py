"""The command line on a running federation: train, look, ask why, take the model home, be told what is wrong."""

import csv
import json
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.commands import DEADLINE, Running, running, tutti
from tutti.apps.cli.exits import Exit

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.xdist_group("site")  # the federation is started once


@dataclass
class Site:
    """A coordinator with two nodes and a finished job."""

    folder: Path
    up: Running
    job: str

    def tutti(self, *arguments: object) -> "subprocess.CompletedProcess[str]":
        return tutti(*arguments, cwd=self.folder, TUTTI_URL=self.up.ready["url"])

    def ok(self, *arguments: object) -> str:
        result = self.tutti(*arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with ExitStack() as stack:
        up = stack.enter_context(running("up", "--port", 0, cwd=folder))
        found = Site(folder, up, "")
        link = found.ok("invite", "--uses", 2).strip()
        for part, name in enumerate(("clinic-a", "clinic-b")):
            source = f"digits:part={part}/2,partition=dirichlet:0.5"
            join = ("join", link, "--data", source, "--name", name, "--state-dir", name)
            stack.enter_context(running(*join, cwd=folder))
        wish = ("run", EXAMPLES / "job.toml", "--rounds", 4, "--name", "flow", "--out", "model.safetensors")
        done = found.ok(*wish, "--json")
        found.job = json.loads(done)["id"]
        yield found


def test_a_run_trains_and_writes_its_model(site):
    job = json.loads(site.ok("jobs", "show", site.job, "--json"))
    assert (job["status"], job["rounds_done"]) == ("completed", 4)
    assert job["accuracy"] > 0.5
    assert (site.folder / "model.safetensors").stat().st_size > 4 * job["parameters"]


def test_a_run_on_no_terminal_prints_a_line_a_round(site):
    said = site.ok("run", "--dataset", "digits", "--model", "linear", "--rounds", 2, "--nodes", 2)
    lines = [line for line in said.splitlines() if line.startswith("round ")]
    assert [line.split()[1] for line in lines] == ["0/2", "1/2", "2/2"]
    assert all("accuracy" in line and "loss" in line for line in lines)
    assert all("2 of 2 nodes" in line and "kB" in line for line in lines[1:])


def test_a_job_that_cannot_be_run_is_refused_before_it_starts(site):
    result = site.tutti("run", "--dataset", "digits", "--model", "cnn")
    assert result.returncode == 2
    assert "takes images" in result.stderr


def test_names_that_the_coordinator_does_not_know_are_refused(site):
    for arguments, words in (
        (("jobs", "show", "nope"), "no job with the id or name 'nope'"),
        (("nodes", "show", "nope"), "no node 'nope'"),
        (("rounds", "show", site.job, "--round", 99), "no round 99"),
        (("why", site.job, "--round", 99), "no round 99"),
        (("models", "show", site.job, "--round", 99), "round 99"),
        (("model", "pull", site.job, "m", "--round", 99), "round 99"),
        (("run", "--dataset", "digits", "--model", "nope"), "no model 'nope'; choose from: 2nn"),
        (("run", "--dataset", "digits", "--model", "mlp:hiden=3"), "hiden"),
        (("run", "--dataset", "other", "--model", "mlp"), "no connected node holds 'other'"),
        (("run", "--dataset", "digits", "--model", "mlp", "--data", "digits"), "--local"),
    ):
        result = site.tutti(*arguments)
        assert (result.returncode, words in result.stderr) == (Exit.USAGE, True), (arguments, result.stderr)


def test_lists_show_what_happened_to_people_and_to_programs(site):
    for arguments, words in (
        (("jobs", "ls"), site.job),
        (("jobs", "show", "flow"), "completed"),
        (("nodes", "ls"), "clinic-a"),
        (("nodes", "show", "clinic-b"), "examples"),
        (("rounds", "ls", site.job), "closed"),
        (("rounds", "show", site.job, "--round", 2), "2 accepted, 2 counted"),
        (("models", "ls"), site.job),
        (("models", "ls", site.job), "best"),
        (("models", "show", site.job, "--round", 1), "clinic-a"),
        (("why", site.job, "--round", 1), "counted"),
    ):
        assert words in site.ok(*arguments), arguments
        json.loads(site.ok(*arguments, "--json"))


def test_why_adds_up(site):
    why = json.loads(site.ok("why", site.job, "--round", 2, "--json"))
    (attempt,) = why["attempts"]
    assert {part["node"]: part["outcome"] for part in attempt["nodes"]} == {
        "clinic-a": "counted",
        "clinic-b": "counted",
    }
    assert sum(part["share"] for part in attempt["nodes"]) == pytest.approx(1)


def test_a_pulled_model_predicts_and_is_measured(site):
    assert "mlp:hidden=64" in site.ok("model", "pull", site.job, "pulled.safetensors")
    assert (site.folder / "pulled.safetensors").read_bytes() == (site.folder / "model.safetensors").read_bytes()
    predict = ("predict", "pulled.safetensors", EXAMPLES / "digits.csv", "--target", "digit")
    result = site.tutti(*predict, "--out", "predictions.csv")
    assert result.returncode == 0, result.stderr
    measured = float(re.search(r"accuracy ([\d.]+)", result.stderr)[1])
    rows = list(csv.DictReader((site.folder / "predictions.csv").open()))
    truth = [row["digit"] for row in csv.DictReader((EXAMPLES / "digits.csv").open())]
    right = sum(row["prediction"] == digit for row, digit in zip(rows, truth, strict=True))
    assert measured == pytest.approx(right / len(truth))
    assert measured > 0.4


def test_predicting_on_other_columns_says_what_does_not_fit(site):
    result = site.tutti("predict", "model.safetensors", EXAMPLES / "digits.csv")
    assert result.returncode == Exit.USAGE
    assert "takes 64 features" in result.stderr
    assert "--target" in result.stderr


def test_a_model_that_cannot_be_written_is_a_storage_error(site):
    result = site.tutti("model", "pull", site.job, "no/such/folder/model.safetensors")
    assert result.returncode == Exit.STORAGE


def test_a_model_that_cannot_be_written_where_it_was_wanted_is_kept_elsewhere(site):
    wish = ("run", "--dataset", "digits", "--model", "linear", "--rounds", 1, "--nodes", 2)
    result = site.tutti(*wish, "--out", "m" * 255)  # a name that is free, and too long for a partial file
    assert result.returncode == Exit.STORAGE, result.stderr
    kept = Path(re.search(r"the model is in (\S+) instead", result.stderr)[1])
    assert kept.stat().st_size > 4 * 65 * 10
    kept.unlink()
    kept.parent.rmdir()


def test_nodes_that_did_not_count_are_named_after_a_run(site):
    (site.folder / "policy.toml").write_text('forbid_jobs = ["unloved*"]')
    link = site.ok("invite").strip()
    join = ("join", link, "--data", "digits:part=0/2", "--name", "choosy", "--state-dir", "choosy")
    with running(*join, "--policy", "policy.toml", cwd=site.folder):
        wish = ("run", "--dataset", "digits", "--model", "linear", "--rounds", 2, "--nodes", 2)
        result = site.tutti(*wish, "--name", "unloved")
    assert result.returncode == 0, result.stderr
    (warning,) = result.stderr.splitlines()
    assert re.match(r"warning: node choosy counted in 0 of 2 rounds: its owner does not allow", warning), warning


def test_a_job_is_paused_resumed_and_stopped(site):
    job = site.ok("run", "--dataset", "digits", "--model", "mlp", "--nodes", 3, "--detach").strip()
    pulled = site.tutti("model", "pull", job, "untrained.safetensors")
    assert (pulled.returncode, "--round 0 gives the initial one" in pulled.stderr) == (Exit.CONFLICT, True)
    site.ok("jobs", "pause", job)
    assert json.loads(site.ok("jobs", "show", job, "--json"))["status"] == "paused"
    site.ok("jobs", "resume", job)
    assert "3 are needed, 2 are ready" in site.ok("jobs", "show", job)
    site.ok("jobs", "stop", job)
    again = site.tutti("jobs", "stop", job)
    assert (again.returncode, "stopped" in again.stderr) == (Exit.CONFLICT, True), again.stderr


def test_a_link_for_one_is_good_for_one_but_a_node_may_come_back_with_it(site):
    link = site.ok("invite").strip()
    first = ("join", link, "--data", "digits:part=0/9", "--name", "one", "--state-dir", "one")
    secret = site.folder / "one" / "membership.json"
    for _ in range(2):
        with running(*first, cwd=site.folder) as node:
            assert node.ready["node"] == "one"
            assert node.end(signal.SIGTERM) == Exit.OK
        assert secret.stat().st_mode & 0o777 == 0o600
    second = site.tutti("join", link, "--data", "digits", "--name", "two", "--state-dir", "two")
    assert (second.returncode, "used up" in second.stderr) == (Exit.REFUSED, True), second.stderr
    other = site.ok("invite").strip()
    taken = site.tutti("join", other, "--data", "digits", "--name", "one", "--state-dir", "three")
    assert (taken.returncode, "choose another name" in taken.stderr) == (Exit.CONFLICT, True), taken.stderr


def test_a_removed_node_is_turned_away(site):
    link = site.ok("invite").strip()
    with running(
        "join", link, "--data", "digits:part=0/9", "--name", "gone", "--state-dir", "gone", cwd=site.folder
    ) as node:
        site.ok("nodes", "drain", "gone")
        assert "drained" in site.ok("nodes", "ls")
        site.ok("nodes", "undrain", "gone")
        assert "drained" not in site.ok("nodes", "ls")
        site.ok("nodes", "rm", "gone")
        assert node.process.wait(DEADLINE) == Exit.REFUSED
    assert "gone" not in site.ok("nodes", "ls")


# -- doctor --------------------------------------------------------------------------------------------


def test_the_doctor_finds_nothing_wrong_where_nothing_is(site):
    link = site.ok("invite").strip()
    said = site.ok("doctor", link, "--data", "digits:part=0/2")
    assert re.findall(r"^(\w+) +ok ", said, re.MULTILINE) == ["address", "clock", "version", "token", "data", "disk"]


def test_the_doctor_names_each_thing_that_is_wrong(site):
    url, used_up = site.up.ready["url"], site.ok("invite").strip() + "x"
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        somebody = f"http://127.0.0.1:{silent.getsockname()[1]}"
        silent.close()
        for arguments, what, code in (
            ((somebody,), "address", Exit.UNREACHABLE),
            (("nonsense",), "address", Exit.USAGE),
            (("http://no.such.host.invalid:8000",), "address", Exit.UNREACHABLE),
            ((used_up,), "token", Exit.REFUSED),
            ((url, "--data", "csv:path=no.csv,target=y"), "data", Exit.USAGE),
        ):
            result = site.tutti("doctor", *arguments)
            wrong = re.findall(r"^(\w+) +wrong", result.stdout, re.MULTILINE)
            assert (wrong, result.returncode) == ([what], code), result.stdout
            assert "Traceback" not in result.stderr


def test_what_nodes_earn_is_paid_explained_and_checked_without_trust(site):
    site.ok("ledger", "mint", "treasury", 5000, "--key", "grant")
    site.ok("ledger", "mint", "treasury", 5000, "--key", "grant")
    assert json.loads(site.ok("ledger", "account", "treasury", "--json"))["free"] == 5000
    note = json.loads(site.ok("ledger", "show", "--json"))
    rewards = ("--set", "rewards.pool=100", "--set", "rewards.data=digits:split=test")
    job = json.loads(site.ok("run", "--dataset", "digits", "--model", "linear", "--rounds", 3, *rewards, "--json"))[
        "id"
    ]
    found = {}
    for _ in range(200):  # payment follows the rounds, it does not hold them up
        found = json.loads(site.ok("rewards", job, "--json"))
        if found["settled"]:
            break
    assert found["scored"] == [1, 2, 3]
    said = site.ok("rewards", job, "--round", 2, "--node", "clinic-a", "--proof", "proof.json")
    assert "clinic-a earned" in said
    assert "equal share of 2" in said
    key, head = note["public_key"], note["head"]
    checked = site.ok("ledger", "verify", "--key", key, "--head", head, "--job", job, "--proof", "proof.json")
    assert "whole and signed" in checked
    assert f"3 rounds of {job} are paid by the rule" in checked
    assert f"audits of {job}, committed to by {found['commitment'][:16]}…, are those that its secret drew" in checked
    assert found["commitment"] in site.ok("rewards", job)
    assert "clinic-b" not in site.ok("rewards", job, "--node", "clinic-a")
    assert site.tutti("rewards", job, "--node", "nobody").returncode == Exit.USAGE
    assert "of clinic-a is among those of round 2" in checked
    address = json.loads(site.ok("nodes", "show", "clinic-a", "--json"))["signs_as"]
    assert f"clinic-a: 3 updates, signed by {address}" in checked
    site.ok("ledger", "verify", "--key", key, "--job", job, "--signer", f"clinic-a={address}")
    other = site.tutti("ledger", "verify", "--key", key, "--job", job, "--signer", f"clinic-b={address}")
    assert (other.returncode, f"clinic-b signs as {address}" in other.stderr) == (Exit.USAGE, True)
    absent = site.tutti("ledger", "verify", "--key", key, "--job", job, "--signer", f"nobody={address}")
    assert (absent.returncode, "no update of nobody is among" in absent.stderr) == (Exit.USAGE, True)
    owed = json.loads(site.ok("ledger", "account", "node:clinic-a", "--json"))["owed"]
    assert owed == found["earned"]["clinic-a"] > 0
    assert f"has {owed} tokens" in site.ok("ledger", "claim", "node:clinic-a", "--key", "first")

    site.ok("ledger", "export", "ledger.jsonl")
    exported = ("ledger", "verify", "--file", "ledger.jsonl", "--key")
    site.ok(*exported, key)
    forged = site.folder / "ledger.jsonl"
    honest = forged.read_text()
    for secret, why in (("00", "not the one that was committed to"), ("xy", "should be hex digits")):
        forged.write_text(honest.replace(found["secret"], secret))
        result = site.tutti(*exported, key)
        assert (result.returncode, why in result.stderr) == (Exit.USAGE, True), result.stderr
    lines = honest.splitlines()
    last = next(at for at in reversed(range(len(lines))) if lines[at].startswith('{"round"'))
    for cut in (lines[:last], [line for line in lines if not line.startswith(('{"round"', '{"rewards"'))]):
        forged.write_text("\n".join(cut))
        result = site.tutti(*exported, key)
        assert (result.returncode, "is left out" in result.stderr) == (Exit.USAGE, True), result.stderr
    forged.write_text(honest.replace('"amount":5000', '"amount":6000'))
    result = site.tutti(*exported, key)
    assert result.returncode != 0
    assert "has been changed" in result.stderr
    proof = site.folder / "proof.json"
    proof.write_text(proof.read_text().replace('"payment": ', '"payment": 9'))
    result = site.tutti("ledger", "verify", "--key", key, "--proof", "proof.json")
    assert result.returncode == Exit.USAGE
    assert "does not lead to its root" in result.stderr
