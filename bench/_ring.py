"""A ring of real processes for the benchmarks."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tutti.apps.ringclient import RingClient
from tutti.core.errors import TuttiError
from tutti.services.views.ring import RingView

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.ports import free_port


@dataclass
class Ring:
    folder: Path
    port: int = field(default_factory=free_port)
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    host: str = "127.0.0.1"
    inside: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By host, a command that runs the rest of its line there: in a network namespace."""
    own: Callable[[str], Mapping[str, str]] = lambda address: {}
    """What a member of this address has in its environment besides."""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def tutti(self, name: str, *arguments: object) -> None:
        log = (self.folder / f"{name.replace(':', '_')}.log").open("ab")
        there = self.inside.get(name.rpartition(":")[0], ())
        command = [*there, sys.executable, "-m", "tutti.apps.cli", "ring", *map(str, arguments), "--insecure"]
        environment = {**self.environment, "OMP_NUM_THREADS": "1", **self.own(name)}
        self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def supernode(self) -> None:
        self.tutti("supernode", "supernode", "--port", self.port, "--host", self.host)

    def member(self, address: str, *options: object) -> None:
        host, _, port = address.rpartition(":")
        state = ("--state-dir", self.folder / port)
        self.tutti(address, "node", port, self.host, self.port, "--host", host, *state, *options)

    def kill(self, *names: str) -> None:
        for name in names:
            self.processes[name].kill()
        for name in names:
            self.processes.pop(name).wait()

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()


async def until(
    client: RingClient, condition: Callable[[list[RingView]], bool], seconds: float = 240.0
) -> list[RingView]:
    """Wait for a state of the ring."""
    async with asyncio.timeout(seconds):
        while True:
            with contextlib.suppress(TuttiError):  # while everything comes up there may be nobody
                async for views in client.watch():
                    if condition(views):
                        return views
