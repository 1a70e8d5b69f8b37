"""A real federation on loopback for the benchmarks: one coordinator process, and processes that host many nodes."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from tutti.apps.client import OVER, Client
from tutti.services.views import JobView

HERE = Path(__file__).resolve().parent
DEADLINE = 300.0


def plugin(folder: Path) -> dict[str, str]:
    """An environment in which the model `nowork` is found as an installed distribution's would be."""
    info = folder / "plugin" / "bench_nowork-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bench-nowork\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tutti.models]\nnowork = _nowork:nowork\n")
    path = [str(info.parent), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "TUTTI_LOG": "WARNING"}


class Process:
    """A child that prints lines of JSON, answers each line it is sent, and ends when its standard input closes."""

    def __init__(self, command: Sequence[str], env: dict[str, str] | None = None, pass_fds: Sequence[int] = ()) -> None:
        self._child = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            pass_fds=pass_fds,
        )
        self.usage = psutil.Process(self._child.pid)

    def read(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise SystemExit(f"{self._child.args[1]!r} ended with {self._child.wait()}")  # type: ignore[index]
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, question: str = "") -> dict[str, Any]:
        assert self._child.stdin is not None
        self._child.stdin.write(question + "\n")
        self._child.stdin.flush()
        return self.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        self._child.stdout.close()
        try:
            self._child.wait(30)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def cpu(self) -> float:
        """CPU seconds so far, of user and system."""
        times = self.usage.cpu_times()
        return times.user + times.system

    def memory(self, key: str = "VmRSS") -> int:
        """Resident bytes; VmHWM for the most there ever were."""
        lines = Path(f"/proc/{self._child.pid}/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key + ":"))

    def has_loaded(self, library: str) -> bool:
        """Whether a shared library of that name is mapped into the process."""
        return library in Path(f"/proc/{self._child.pid}/maps").read_text()


@dataclass(slots=True)
class Federation:
    """A coordinator (`tutti up` as people start it) and the processes of its nodes."""

    coordinator: Process
    hosts: list[Process]
    client: Client

    def ask(self, question: str = "") -> list[dict[str, Any]]:
        return [host.ask(question) for host in self.hosts]


@contextmanager
def coordinator(folder: Path, *, profile: str = "", port: int = 0) -> Iterator[tuple[Process, Client]]:
    """`tutti up`, on any free port unless one is given; `profile`: a file for cProfile's figures of its main thread."""
    under = ["-m", "cProfile", "-o", profile] if profile else []
    command = [*under, "-m", "tutti.apps.cli", "up", "--port", str(port), "--json", "--until-eof"]
    with ExitStack() as stack:
        process = stack.enter_context(Process([*command, "--data-dir", str(folder / "data")], plugin(folder)))
        yield process, stack.enter_context(Client(process.read()["url"]))


@contextmanager
def federation(
    folder: Path, nodes: int, *, hosts: int = 2, kind: str = "nodes", profile: str = ""
) -> Iterator[Federation]:
    """A coordinator with so many connected nodes, spread over the host processes."""
    with ExitStack() as stack:
        process, client = stack.enter_context(coordinator(folder, profile=profile))
        started = []
        for first, last in shares(nodes, hosts):
            link = client.invite(uses=last - first).link
            command = [str(HERE / "_nodehost.py"), kind, link, str(first), str(last), str(folder / f"host-{first}")]
            started.append(stack.enter_context(Process(command, plugin(folder))))
        for host in started:
            host.read()
        yield Federation(process, started, client)


def shares(nodes: int, hosts: int) -> list[tuple[int, int]]:
    hosts = min(nodes, hosts)
    edges = [nodes * k // hosts for k in range(hosts + 1)]
    return list(pairwise(edges))


def submit(client: Client, *, nodes: int, rounds: int, size: str) -> str:
    """Ask for rounds with the model that is no work; the job."""
    return client.submit(
        {
            "name": "nowork",
            "dataset": "nowork",
            "model": {"name": "nowork", "options": {"size": size}},
            "rounds": rounds,
            "cohort": {"min_nodes": nodes},
            "evaluation": {"nodes": False},
        }
    ).id


def run_job(client: Client, *, nodes: int, rounds: int, size: str) -> tuple[str, list[float]]:
    """Train to the end; the job, and the seconds between the openings of so many rounds and one more."""
    job = submit(client, nodes=nodes, rounds=rounds + 1, size=size)
    now = wait_for(client, job, lambda now: now.status in OVER)
    if now.status != "completed":
        raise SystemExit(f"job {job}: {now}")
    opened = [event.at for event in events_of(client, job) if event.type == "RoundOpened"]
    return job, [after - before for before, after in pairwise(opened)]


def wait_for(client: Client, job: str, condition: Callable[[JobView], bool]) -> JobView:
    """The job, once the condition holds; asked five times a second, which costs the coordinator next to nothing."""
    until = time.monotonic() + DEADLINE
    while not condition(now := client.job(job)):
        if now.status in OVER or time.monotonic() > until:
            raise SystemExit(f"job {job}, waited for at most {DEADLINE:g} s: {now}")
        time.sleep(0.2)
    return now


def events_of(client: Client, job: str) -> Iterator[Any]:
    after = 0
    while batch := client.events(after, f"job:{job}"):
        yield from batch
        after = batch[-1].offset


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
