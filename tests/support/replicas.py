"""Three coordinators behind a real nginx on one database and one bucket, each started again when it was ended."""

import asyncio
import contextlib
import re
import secrets
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from support.commands import DEADLINE, ENVIRONMENT
from support.ports import free_ports
from support.services import S3_KEYS, bucket, database, missing, redis_url
from tutti.apps.client import Client

CONFIGURATION = Path(__file__).parents[2] / "deploy/nginx.conf"
TOKEN, KEY, LEDGER_KEY = secrets.token_urlsafe(32), secrets.token_hex(32), secrets.token_hex(32)
WAITS = "this replica works for the owner"


class Replicas:
    """The processes; `owner` is the number of the one that owns the database."""

    def __init__(
        self, folder: Path, stores: list[str], ports: list[int], url: str, environment: Mapping[str, str] = ENVIRONMENT
    ) -> None:
        self.folder, self.stores, self.ports, self.url, self._environment = folder, stores, ports, url, environment
        self.database = stores[1]
        self.processes: dict[int, subprocess.Popen[str]] = {}
        self._read_to: dict[int, int] = {}
        self.owner = -1

    def client(self) -> Client:
        return Client(self.url, token=TOKEN)

    def replica_url(self, which: int) -> str:
        """Where the others reach it: another name than that of --host."""
        return f"http://localhost:{self.ports[which]}"

    def start(self, which: int) -> None:
        data = self.folder / f"data{which}"
        if not data.exists():  # what its operator gives each of them
            data.mkdir()
            (data / "operator-token").write_text(TOKEN)
            (data / "session-key").write_text(KEY)
            (data / "key-of-the-ledger").write_text(LEDGER_KEY)
        up = ["up", "--standby", "--port", str(self.ports[which]), "--data-dir", str(data)]
        up += ["--ledger-key-file", str(data / "key-of-the-ledger"), "--replica-url", self.replica_url(which)]
        with (self.folder / f"log{which}").open("a") as log:
            self._read_to[which] = log.tell()
            self.processes[which] = subprocess.Popen(
                [sys.executable, "-m", "tutti.apps.cli", *up, "--public-url", self.url, *self.stores, "--json"],
                env={**self._environment, **S3_KEYS, "TUTTI_LOG": "INFO"},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def await_owner(self) -> None:
        """Until one of them says that it is ready."""
        lines = {process.stdout: which for which, process in self.processes.items()}
        ready, _, _ = select.select([*lines], [], [], DEADLINE)
        assert ready, "nobody took over"
        self.owner = lines[ready[0]]
        line = ready[0].readline()
        assert self.url in line
        assert "join#" not in line, "what starts again and again fills no log with invitations"

    def await_standby(self, which: int) -> None:
        """Until it says for whom it works."""
        last = time.monotonic() + DEADLINE
        while WAITS not in (self.folder / f"log{which}").read_text()[self._read_to[which] :]:
            assert time.monotonic() < last
            time.sleep(0.05)

    def kill(self) -> int:
        """`kill -9` of the owner; which one it was."""
        lost = self.owner
        self.processes[lost].kill()
        self.lose(lost)
        return lost

    def lose(self, which: int) -> int:
        """Wait for its end; returns the exit code."""
        process = self.processes.pop(which)
        with process:
            return process.wait(DEADLINE)

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            with process:
                process.wait()


@contextmanager
def stores(redis: str) -> Iterator[list[str]]:
    with asyncio.Runner() as runner, pytest.MonkeyPatch.context() as patched:
        its = contextlib.AsyncExitStack()
        try:
            url = runner.run(its.enter_async_context(database()))
            place = runner.run(its.enter_async_context(bucket(patched)))
            yield ["--database", url, "--blobs", place, "--redis", redis or runner.run(redis_url())]
        finally:
            runner.run(its.aclose())


@contextmanager
def nginx(folder: Path, port: int, ports: list[int]) -> Iterator[None]:
    """The real one, with the file that is shipped, on other ports."""
    command = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if command is None:
        missing("nginx", "it is not installed")
    new = dict(zip(range(8000, 8004), [port, *ports], strict=True))
    text = re.sub(r"127\.0\.0\.1:(\d+)", lambda found: f"127.0.0.1:{new[int(found[1])]}", CONFIGURATION.read_text())
    folder.mkdir()
    (folder / "nginx.conf").write_text(text)
    options = ["-p", str(folder), "-e", "stderr", "-c", "nginx.conf", "-g", "daemon off;"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([command, *options], stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(DEADLINE)


@contextmanager
def three(
    folder: Path,
    environment: Mapping[str, str] = ENVIRONMENT,
    prepare: Callable[[str], None] = lambda database: None,
    redis: str = "",
    by: Callable[[str], str] = lambda database: database,
) -> Iterator[Replicas]:
    """All of them, once one owns the database and the others stand by; `prepare` has the database before them.

    `by`: the address at which they find it.
    """
    port, *ports = free_ports(4)
    with ExitStack() as stack:
        stack.enter_context(nginx(folder / "nginx", port, ports))
        its = Replicas(folder, stack.enter_context(stores(redis)), ports, f"http://127.0.0.1:{port}", environment)
        its.stores[1] = by(its.database)
        stack.callback(its.close)
        prepare(its.database)
        for which in range(3):
            its.start(which)
        its.await_owner()
        for which in range(3):
            if which != its.owner:
                its.await_standby(which)
        yield its
