"""The command line as a stranger meets it: real processes, real ports, right and wrong input."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import psutil
import pytest

from support.certificates import certificate
from support.commands import DEADLINE, ENVIRONMENT, running, tutti
from tutti import Client
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
    assert re.search(rf"^ +tutti {' '.join([first.removesuffix('s') + 's?', *rest])}", examples, re.MULTILINE), said


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
    "an unknown field": (
        ["run", "--local", "--dataset", "digits", "--model", "mlp", "--set", "cohort.x=1"],
        2,
        "`cohort.x`; choose from: min_nodes",
    ),
    "no assignment": (["run", "--local", "--dataset", "digits", "--model", "mlp", "--set", "x"], 2, "FIELD=VALUE"),
    "a table set as a value": (["run", "--local", "--set", "name=a", "--set", "name.b=1"], 2, "name is no table"),
    "a contradiction": (
        ["run", "--local", "--dataset", "digits", "--model", "mlp", "--nodes", "2", "--set", "cohort.size=3"],
        2,
        "set min_nodes to 3 or more",
    ),
    "an unknown model": (["run", "--local", "--dataset", "digits", "--model", "nope"], 2, "choose from: 2nn"),
    "an unwritable place": (["run", "--local", "--out", "no/such/m.st"], 6, "cannot write no/such/m.st"),
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
    "work that ends never": (["market", "submit", "a", "pca", "--reward", "1", "--within", "nan"], 2, "'--within'"),
    "work that ends at once": (["market", "submit", "a", "pca", "--reward", "1", "--within", "-5"], 2, "1<=x"),
    "a dispute for ever": (["market", "submit", "a", "pca", "--reward", "1", "--window", "inf"], 2, "'--window'"),
    "a chain that is none": (["chain", "deploy", "--rpc", "nonsense"], 2, "such as http://127.0.0.1:8545"),
    "a chain at no port": (["chain", "deploy", "--rpc", "http://127.0.0.1:x"], 2, "such as http://127.0.0.1:8545"),
    "a data directory in a file": (["up", "--data-dir", str(EXAMPLES / "job.toml" / "data")], 6, "Not a directory"),
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


def test_a_state_dir_in_use_is_named_and_free_again_after_kill_9(tmp_path):
    with running("up", "--port", 0, cwd=tmp_path) as up:
        join = ("join", up.ready["join_link"], "--data", "digits", "--name", "ward", "--state-dir", "state")
        with running(*join, cwd=tmp_path) as node:
            second = tutti(*join, cwd=tmp_path)
            assert second.returncode == Exit.CONFLICT
            assert "another node runs with the state directory state" in second.stderr
            node.end(signal.SIGKILL)
        with running(*join, cwd=tmp_path) as node:
            assert node.ready["node"] == "ward"


def test_a_module_of_a_jobs_choice_needs_both_owners_consent(tmp_path):
    (tmp_path / "house.py").write_text(
        "from torch import nn\n\ndef net() -> nn.Module:\n    return nn.Linear(64, 10)\n"
    )
    (tmp_path / "trap.py").write_text("open('imported', 'w').close()\nraise SystemExit(9)\n")
    wish = ("run", "--local", "--dataset", "digits", "--rounds", 1, "--nodes", 1, "--model")
    here = {"PYTHONPATH": str(tmp_path), "TUTTI_ALLOW_MODULES": "house other.*"}
    refused = tutti(*wish, "module:entry=trap:net", cwd=tmp_path, **here)
    assert refused.returncode in (Exit.USAGE, Exit.JOB_FAILED)
    assert "--allow-module trap" in refused.stderr
    assert not (tmp_path / "imported").exists()
    done = tutti(*wish, "module:entry=house:net", "--out", "net.safetensors", cwd=tmp_path, **here)
    assert done.returncode == Exit.OK, done.stderr
    table = "\n".join([",".join(f"p{i}" for i in range(64)), ",".join("1" * 64)])
    (tmp_path / "digit.csv").write_text(table)
    predict = ("predict", "net.safetensors", "digit.csv")
    unlisted = tutti(*predict, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert (unlisted.returncode, "nobody has listed module 'house'" in unlisted.stderr) == (Exit.USAGE, True)
    listed = tutti(*predict, "--allow-module", "house", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert listed.stdout.startswith("prediction,probability\n"), listed.stderr


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
        join = ("join", "--data", "digits", "--name", "far", "--state-dir", "far")
        with running(*join, cwd=tmp_path, TUTTI_LINK=link):  # not in its line, which all can see
            pass


def test_over_tls_only_those_who_trust_the_certificate_get_through(tmp_path):
    cert, key = certificate(tmp_path)
    with running("up", "--port", 0, "--tls-cert", cert, "--tls-key", key, cwd=tmp_path) as up:
        url, link = up.ready["url"], up.ready["join_link"]
        assert url.startswith("https://")
        assert tutti("jobs", "ls", "--url", url, "--ca", cert, cwd=tmp_path).returncode == Exit.OK
        assert tutti("doctor", link, "--ca", cert, cwd=tmp_path).returncode == Exit.OK
        for arguments in (("jobs", "ls", "--url", url), ("join", link, "--data", "digits"), ("doctor", url)):
            result = tutti(*arguments, cwd=tmp_path, XDG_STATE_HOME=str(tmp_path))
            assert result.returncode == Exit.UNREACHABLE, result.stderr
            assert "CERTIFICATE_VERIFY_FAILED" in result.stderr + result.stdout
        bad = tutti("jobs", "ls", "--url", url, "--ca", EXAMPLES / "job.toml", cwd=tmp_path)
        assert (bad.returncode, "PEM" in bad.stderr) == (Exit.USAGE, True), bad.stderr
        with running("join", link, "--ca", cert, "--data", "digits", "--state-dir", "node", cwd=tmp_path):
            pass


# -- a federation of the command's own -----------------------------------------------------------------


def test_run_makes_a_federation_of_its_own_and_leaves_nothing_behind(tmp_path):
    wish = ("run", "--local", "--dataset", "breast-cancer", "--model", "linear", "--rounds", 2, "--nodes", 2)
    result = tutti(*wish, "--out", "model.safetensors", cwd=tmp_path, TMPDIR=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "starting one" in result.stdout
    assert "done: 2 rounds done" in result.stdout
    beside = ("node-1 alone", "node-2 alone", "all data in one place", "federated, no data moved")
    assert [line for line in beside if re.search(rf"^{line}  +\d+ +[\d.]+%$", result.stdout, re.MULTILINE)] == [*beside]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tutti", "model.safetensors"]  # the run's manifest


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
        _, alive = psutil.wait_procs(children, DEADLINE)  # one that is not our child may have to be reaped by init
        assert alive == []
        assert list(tmp_path.iterdir()) == []


def test_a_node_that_is_killed_is_started_again(tmp_path):
    with endless_run(tmp_path) as (_, children):
        node = next(child for child in children if "join" in child.cmdline())
        coordinator = next(child for child in children if "up" in child.cmdline())
        (port,) = {each.laddr.port for each in coordinator.net_connections() if each.status == psutil.CONN_LISTEN}
        with Client(f"http://127.0.0.1:{port}") as client:
            node.kill()
            arrivals = (event for event in client.follow() if event.type == "NodeConnected")
            assert [next(arrivals).data["node"] for _ in range(2)] == ["node-1", "node-1"]
