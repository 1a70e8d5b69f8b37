"""The real command line in processes of its own."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DEADLINE = 90.0

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("TUTTI_")}
ENVIRONMENT |= {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def tutti(*arguments: object, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run `tutti ARGUMENTS` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "tutti.apps.cli", *map(str, arguments)],
        cwd=cwd,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )


class Running:
    """A `tutti` that goes on running. `ready` is the line of JSON that it printed when it was ready."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.ready: dict[str, Any] = json.loads(first_line(process))

    def end(self, signal: int) -> int:
        """Send a signal, and wait; returns the exit code."""
        self.process.send_signal(signal)
        return self.process.wait(DEADLINE)


def first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], DEADLINE)
    line = process.stdout.readline() if ready else ""
    assert line, f"{process.args} ended with {process.wait(5)} instead of getting ready"
    return line


@contextmanager
def running(*arguments: object, cwd: Path, prefix: Sequence[str] = (), **environment: str) -> Iterator[Running]:
    """`tutti ARGUMENTS --json` in the background, once it is ready; killed at the end if it still runs.

    `prefix` is a command that runs the rest of its line, in the same process in the end.
    """
    process = subprocess.Popen(
        [*prefix, sys.executable, "-m", "tutti.apps.cli", *map(str, arguments), "--json"],
        cwd=cwd,
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Running(process)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def background(*arguments: object, cwd: Path) -> "Iterator[subprocess.Popen[str]]":
    """`tutti ARGUMENTS` with its messages to be read; killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tutti.apps.cli", *map(str, arguments)],
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()
