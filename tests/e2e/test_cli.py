"""The command line as a stranger meets it: real processes, real ports, right and wrong input."""

import csv
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import psutil
import pytest

from support.commands import DEADLINE, ENVIRONMENT, Running, running, tutti
from tutti.apps.cli.app import cli, run
from tutti.apps.cli.exits import MEANING, Exit

EXAMPLES = Path(__file__).parents[2] / "examples"


# -- help ----------------------------------------------------------------------------------------------


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, (*path, name))


COMMANDS = dict(commands(cli))


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: " ".join(path) or "tutti")
def test_every_command_has_help_with_examples_that_name_it(path, capsys):
    assert run([*path, "--help"]) == Exit.OK
    said = capsys.readouterr().out
    examples = said.partition("Examples:")[2]
    first, *rest = path or ("",)
    assert re.search(rf"^    tutti {first}s? ?{' '.join(rest)}".rstrip(), examples, re.MULTILINE), said


@pytest.mark.parametrize("path", [p for p, c in COMMANDS.items() if p[-1:] in (("ls",), ("show",), ("catalog",))])
def test_every_list_has_json(path):
    assert any("--json" in option.opts for option in COMMANDS[path].params)


def test_help_loads_nothing_heavy():
    code = "import sys, tutti.apps.cli.app; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"asyncio", "msgspec", "numpy", "httpx", "rich", "torch", "fastapi", "sklearn", "ssl", "subprocess"}
    assert heavy & set(loaded) == set()


def test_every_exit_code_has_a_meaning():
    assert set(MEANING) == set(Exit)


# -- wrong input, no coordinator needed ----------------------------------------------------------------


WRONG = {
    "an unknown command": (["frobnicate"], 2, "No such command 'frobnicate'"),
    "an unknown option": (["run", "--colour", "red"], 2, "--colour"),
    "no dataset": (["run", "--local", "--model", "mlp"], 2, "give --dataset"),
    "no model": (["run", "--local", "--dataset", "digits"], 2, "give --model"),
    "no rounds": (["run", "--local", "--dataset", "digits", "--model", "mlp", "--rounds", "0"], 2, "x>=1"),
    "no learning": (["run", "--local", "--dataset", "digits", "--model", "mlp", "--lr", "0"], 2, "$.training.lr"),
    "an unknown field": (["run", "--local", "--dataset", "digits", "--model", "mlp", "--set", "cohort.x=1"], 2, "`x`"),
    "no assignment": (["run", "--local", "--dataset", "digits", "--model", "mlp", "--set", "x"], 2, "FIELD=VALUE"),
    "a table set as a value": (["run", "--local", "--set", "name=a", "--set", "name.b=1"], 2, "name is no table"),
    "a contradiction": (
        ["run", "--local", "--dataset", "digits", "--model", "mlp", "--nodes", "2", "--set", "cohort.size=3"],
        2,
        "set min_nodes to 3 or more",
    ),
    "data nobody has": (["run", "--local", "--dataset", "nope", "--model", "mlp"], 2, "no data source 'nope'"),
    "a missing data file": (["run", "--local", "--data", "csv:path=no.csv,target=y", "--model", "linear"], 2, "no.csv"),
    "a detached federation": (["run", "--local", "--dataset", "digits", "--model", "mlp", "--detach"], 2, "tutti up"),
    "a missing job file": (["run", "no.toml"], 2, "no.toml"),
    "a job file that is none": (["run", "--local", str(EXAMPLES / "digits.csv")], 2, "digits.csv"),
    "an address that is none": (["jobs", "ls", "--url", "localhost"], 2, "http://127.0.0.1:8000"),
    "nobody there": (["jobs", "ls", "--url", "http://127.0.0.1:1"], 3, "tutti up"),
    "nobody to run it": (["run", "--dataset", "d", "--model", "mlp", "--url", "http://127.0.0.1:1"], 3, "tutti up"),
    "a missing token file": (["jobs", "ls", "--token-file", "no-token"], 2, "no-token"),
    "a link that is none": (["join", "hello", "--data", "digits"], 2, "join link"),
    "a node without data": (["join", "http://127.0.0.1:1/join#x"], 2, "--data"),
    "a bad node name": (["join", "http://127.0.0.1:1/join#x", "--data", "digits", "--name", "a b"], 2, "make a name"),
    "an unknown source": (["join", "http://127.0.0.1:1/join#x", "--data", "nope"], 2, "no dataset 'nope'"),
    "a part too many": (["join", "http://127.0.0.1:1/join#x", "--data", "digits:part=4/4"], 2, "part=0/4"),
    "a wrong option of a source": (["join", "http://127.0.0.1:1/join#x", "--data", "digits:x=1"], 2, "`x`"),
    "no coordinator to join": (["join", "http://127.0.0.1:1/join#x", "--data", "digits"], 3, "no coordinator answers"),
    "an odd time": (["invite", "--ttl", "soon"], 2, "90s"),
    "a certificate that is not there": (["up", "--tls-cert", "no.pem"], 2, "no.pem"),
    "a key without certificate": (["up", "--tls-key", str(EXAMPLES / "job.toml")], 2, "--tls-cert"),
    "a certificate that is none": (["up", "--port", "0", "--tls-cert", str(EXAMPLES / "job.toml")], 2, "certificate"),
    "an address of somebody else": (["up", "--port", "0", "--host", "192.0.2.1"], 2, "192.0.2.1"),
    "a port that is none": (["up", "--port", "70000"], 2, "70000"),
    "a model file that is none": (["predict", str(EXAMPLES / "job.toml"), str(EXAMPLES / "digits.csv")], 2, "job.toml"),
    "a catalog of nothing": (["catalog", "horses"], 2, "'horses'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_named_in_one_message_with_its_exit_code(case, tmp_path):
    arguments, code, words = WRONG[case]
    result = tutti(*arguments, cwd=tmp_path, XDG_STATE_HOME=str(tmp_path))
    assert (result.returncode, words in result.stderr) == (code, True), result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) <= 5, result.stderr


def test_a_policy_that_cannot_be_read_is_named_field_by_field(tmp_path):
    (tmp_path / "policy.toml").write_text('max_ram = "much"')
    link = "http://127.0.0.1:1/join#x"
    result = tutti("join", link, "--data", "digits", "--policy", "policy.toml", cwd=tmp_path)
    assert result.returncode == Exit.USAGE
    assert "max_ram" in result.stderr


# -- up ------------------------------------------------------------------------------------------------


def test_up_says_where_it_is_and_ends_cleanly_at_a_signal(tmp_path):
    for number in (signal.SIGTERM, signal.SIGINT):
        with running("up", "--port", 0, cwd=tmp_path) as up:
            assert up.ready["join_link"].startswith(f"{up.ready['url']}/join#")
            assert up.ready["token_file"] is None
            assert up.end(number) == Exit.OK


def test_a_port_in_use_and_a_data_dir_in_use_are_named(tmp_path):
    with running("up", "--port", 0, "--data-dir", "one", cwd=tmp_path) as up:
        port = up.ready["url"].rpartition(":")[2]
        same_port = tutti("up", "--port", port, "--data-dir", "two", cwd=tmp_path)
        assert (same_port.returncode, f"port {port}" in same_port.stderr) == (Exit.CONFLICT, True), same_port.stderr
        same_data = tutti("up", "--port", 0, "--data-dir", "one", cwd=tmp_path)
        assert (same_data.returncode, "one" in same_data.stderr) == (Exit.CONFLICT, True), same_data.stderr


def test_a_data_dir_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    result = tutti("up", "--port", 0, "--data-dir", "file/data", cwd=tmp_path)
    assert result.returncode == Exit.STORAGE
    assert "file/data" in result.stderr


def test_beyond_loopback_an_operators_token_is_needed(tmp_path):
    with running("up", "--port", 0, "--host", "0.0.0.0", cwd=tmp_path) as up:
        url = f"http://127.0.0.1:{up.ready['url'].rpartition(':')[2]}"
        token_file = tmp_path / up.ready["token_file"]
        assert token_file.stat().st_mode & 0o777 == 0o600
        assert tutti("jobs", "ls", "--url", url, cwd=tmp_path).returncode == Exit.REFUSED
        assert tutti("jobs", "ls", "--url", url, "--token-file", token_file, cwd=tmp_path).returncode == Exit.OK
        assert tutti("jobs", "ls", "--url", url, cwd=tmp_path, TUTTI_TOKEN="wrong").returncode == Exit.REFUSED
        doctor = tutti("doctor", url, cwd=tmp_path)
        assert (doctor.returncode, "token    wrong" in doctor.stdout) == (Exit.REFUSED, True), doctor.stdout
        link = up.ready["join_link"].replace(up.ready["url"], url)
        assert tutti("doctor", link, cwd=tmp_path).returncode == Exit.OK  # and the link is not used up
        with running("join", link, "--data", "digits", "--name", "far", "--state-dir", "far", cwd=tmp_path):
            pass


# -- a federation --------------------------------------------------------------------------------------


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
        done = found.ok("run", EXAMPLES / "job.toml", "--rounds", 4, "--out", "model.safetensors", "--json")
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


def test_a_job_that_cannot_be_run_ends_in_exit_code_5_and_says_why(site):
    result = site.tutti("run", "--dataset", "digits", "--model", "cnn")
    assert result.returncode == Exit.JOB_FAILED
    assert "takes images" in result.stderr


def test_names_that_the_coordinator_does_not_know_are_refused(site):
    for arguments, words in (
        (("jobs", "show", "nope"), "no job with the id or name 'nope'"),
        (("nodes", "show", "nope"), "no node 'nope'"),
        (("rounds", "show", site.job, 99), "no round 99"),
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
        (("jobs", "show", "digits"), "completed"),
        (("nodes", "ls"), "clinic-a"),
        (("nodes", "show", "clinic-b"), "examples"),
        (("rounds", "ls", site.job), "closed"),
        (("rounds", "show", site.job, 2), "2 accepted, 2 counted"),
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


def test_a_job_is_paused_resumed_and_stopped(site):
    job = site.ok("run", "--dataset", "digits", "--model", "mlp", "--nodes", 3, "--detach").strip()
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
    assert (taken.returncode, "another --name" in taken.stderr) == (Exit.CONFLICT, True), taken.stderr


def test_a_removed_node_is_turned_away(site):
    link = site.ok("invite").strip()
    with running(
        "join", link, "--data", "digits:part=0/9", "--name", "gone", "--state-dir", "gone", cwd=site.folder
    ) as node:
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


# -- a federation of the command's own -----------------------------------------------------------------


def test_run_makes_a_federation_of_its_own_and_leaves_nothing_behind(tmp_path):
    wish = ("run", "--local", "--dataset", "breast-cancer", "--model", "linear", "--rounds", 2, "--nodes", 2)
    result = tutti(*wish, "--out", "model.safetensors", cwd=tmp_path, TMPDIR=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "starting one" in result.stdout
    assert "done: 2 rounds done" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@contextmanager
def endless_run(folder: Path) -> "Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]":
    """A `tutti run` with its own federation in the middle of training, and the processes that it started."""
    wish = ["run", "--local", "--dataset", "digits", "--model", "mlp", "--rounds", "100000", "--nodes", "1"]
    parent = subprocess.Popen(
        [sys.executable, "-m", "tutti.apps.cli", *wish],
        cwd=folder,
        env=ENVIRONMENT | {"TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    try:
        next(line for line in parent.stdout if line.startswith("round "))
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) >= 2
        yield parent, children
    finally:
        parent.kill()
        parent.communicate()


def test_a_federation_dies_with_its_parent_even_by_kill_9(tmp_path):
    with endless_run(tmp_path) as (parent, children):
        parent.kill()
        _, alive = psutil.wait_procs(children, DEADLINE)
        assert alive == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, Exit.INTERRUPTED), (signal.SIGTERM, Exit.TERMINATED)])
def test_a_signal_ends_a_federation_and_leaves_nothing_behind(number, code, tmp_path):
    with endless_run(tmp_path) as (parent, children):
        parent.send_signal(number)
        _, errors = parent.communicate(timeout=DEADLINE)
        assert parent.returncode == code
        assert "Traceback" not in errors
        assert [child for child in children if child.is_running()] == []
        assert list(tmp_path.iterdir()) == []
