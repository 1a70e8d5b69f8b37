"""Every command of the README is run, in its order, in a scratch directory that holds a copy of examples/."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.commands import DEADLINE, ENVIRONMENT, running, tutti

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NOT_RUN = {
    "make test": "it is what runs this test",
    "source .venv/bin/activate": "tests have tutti on their path",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands() -> Iterator[str]:
    for block in blocks("console"):
        for line in block.splitlines():
            if line.startswith("$ "):
                yield line.removeprefix("$ ").partition("  #")[0].strip()


def test_what_is_not_run_stands_in_the_readme():
    assert set(NOT_RUN) <= set(commands())
    assert [command.split()[0] for command in commands() if command not in NOT_RUN].count("tutti") >= 10


def make(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a target in this environment, without installing anything into it."""
    here = [f"BIN={Path(sys.executable).parent}", "-o", ".venv/.installed"]
    return subprocess.run(
        ["make", *here, *arguments], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=DEADLINE
    )


def test_make_demo_shows_that_federated_beats_every_node_alone():
    assert "make demo" in commands()
    result = make("demo")
    assert result.returncode == 0, result.stderr
    accuracies = {
        name.strip(): float(share)
        for name, share in re.findall(r"^(.+?)  +\d+ +([\d.]+)%$", result.stdout, re.MULTILINE)
    }
    federated, pooled = accuracies.pop("federated, no data moved"), accuracies.pop("all data in one place")
    assert len(accuracies) == 4
    assert max(accuracies.values()) < federated <= pooled
    summary = r"^20 rounds with 4 nodes, [\d.]+ MB of models and updates, [\d.]+ s$"
    assert re.search(summary, result.stdout, re.MULTILINE)
    live = r"^round +\d+/20  accuracy .* loss .* 4 of 4 nodes .* kB "
    assert len(re.findall(live, result.stdout, re.MULTILINE)) == 20


def test_make_demo_keep_leaves_the_coordinator_running(tmp_path):
    assert "make demo KEEP=1" in README
    assert "tutti demo --keep" in make("--dry-run", "demo", "KEEP=1").stdout
    result = tutti("demo", "--keep", "--rounds", 3, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    url = re.search(r"the coordinator goes on at (http://\S+)", result.stdout)[1]
    folder, pid = re.search(r"its data are in (\S+); `kill (\d+)` ends it", result.stdout).groups()
    try:
        assert "counted" in tutti("why", "demo", "--round", 3, "--url", url, cwd=tmp_path).stdout
    finally:
        os.kill(int(pid), signal.SIGTERM)
        shutil.rmtree(folder, ignore_errors=True)


class Reader:
    """Does what the README says. What runs for long stays in the background; `<join link>` is the latest one."""

    def __init__(self, folder: Path, background: ExitStack) -> None:
        self.folder = folder
        self.environment: dict[str, str] = {"XDG_STATE_HOME": str(folder / "state")}
        self.url = self.link = ""
        self._background = background

    def obey(self, command: str) -> None:
        if command.startswith("export "):
            name, _, value = command.removeprefix("export ").partition("=")
            self.environment[name] = value
            return
        program, *arguments = shlex.split(command.replace("<join link>", self.link))
        assert program == "tutti", f"do not know how to test {command!r}"
        match arguments[0]:
            case "up":
                self._up(arguments)
            case "join":
                self._background.enter_context(running(*arguments, cwd=self.folder, **self.environment))
            case _:
                # before a coordinator is started here, whatever runs on this machine's port 8000 is left alone
                self._run([*arguments, "--local"] if arguments[0] == "run" and not self.url else arguments)

    def _up(self, arguments: list[str]) -> None:
        up = running(*arguments, "--port", 0, cwd=self.folder, **self.environment)
        port = self._background.enter_context(up).ready["url"].rpartition(":")[2]
        self.environment["TUTTI_URL"] = self.url = f"http://127.0.0.1:{port}"

    def _run(self, arguments: list[str]) -> None:
        result = tutti(*arguments, cwd=self.folder, **self.environment)
        assert result.returncode == 0, (arguments, result.stdout, result.stderr)
        if arguments[0] == "invite":
            self.link = result.stdout.strip()


@pytest.mark.timeout(300)
def test_the_readme_from_the_first_run_to_python(tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    with ExitStack() as background:
        reader = Reader(tmp_path, background)
        for command in commands():
            if command not in NOT_RUN and not command.startswith("make "):
                reader.obey(command)
        doctor = re.search(r"`(tutti doctor [^`]+)`", README)[1]
        reader.obey("tutti invite")
        reader.obey(doctor)
        (python,) = blocks("python")
        script = python.replace("http://127.0.0.1:8000", reader.url)
        in_python = [sys.executable, "-c", script]
        done = subprocess.run(
            in_python, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=DEADLINE
        )
        assert done.returncode == 0, done.stderr
        assert "JobCompleted" in done.stdout
