"""A federation on this machine: a coordinator and nodes as processes of their own, started by `tutti up` and
`tutti join`, watched while they run, and gone when the federation ends, however it ends.

Each child holds the reading end of a pipe from this process and ends when the pipe closes: even after
`kill -9` of the parent nothing is left behind.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import msgspec

from tutti.apps.cli.exits import Exit
from tutti.apps.client import Client
from tutti.core.errors import Conflict, Forbidden, StorageError, TuttiError, Unavailable, UserError

START_SECONDS = 120.0
STOP_SECONDS = 10.0
RESTARTS = 3
"""How often a node that crashes is started again; it goes on with what it kept."""

_ERRORS: Mapping[int, type[TuttiError]] = {
    Exit.USAGE: UserError,
    Exit.REFUSED: Forbidden,
    Exit.STORAGE: StorageError,
    Exit.CONFLICT: Conflict,
    Exit.UNAVAILABLE: Unavailable,
}


@dataclass(slots=True)
class Child:
    """A process with the command line that starts it; the log file collects what it says on standard error."""

    name: str
    arguments: list[str]
    log: Path
    tied: bool = True
    process: "subprocess.Popen[bytes] | None" = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - our own command line
                [sys.executable, "-m", "tutti.apps.cli", *self.arguments],
                stdin=subprocess.PIPE if self.tied else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # ctrl-C is for the parent, which ends its children in order
                env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
            )

    def said(self) -> dict[str, Any]:
        """The line of JSON that it prints when it is ready; raises the error that it ended with instead."""
        assert self.process is not None
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], START_SECONDS)
        line = self.process.stdout.readline() if ready else b""
        if line:
            return msgspec.json.decode(line, type=dict[str, Any])
        self.kill()
        kind = _ERRORS.get(self.process.wait(), TuttiError)
        raise kind(f"{self.name}: {self.last_words()}")

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return lines[-1].removeprefix("tutti: ") if lines else f"ended without a word; its log is {self.log}"

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def kill(self) -> None:
        """Wait for the end that was asked for, but not for ever."""
        if self.process is None:
            return
        try:
            self.process.wait(STOP_SECONDS if self.process.poll() is None else 0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class Federation:
    """A context manager: entering starts the coordinator, `join` starts nodes, leaving ends them all.

    Args:
        folder: For the coordinator's data, the nodes' state, and the logs of all of them.
        keep: Leave the coordinator running if the block ends without an exception.
    """

    def __init__(self, folder: Path, *, keep: bool = False) -> None:
        self.folder = folder
        self.url = ""
        self._keep = keep
        self._coordinator = Child("coordinator", [], folder / "coordinator.log", tied=not keep)
        self._nodes: list[Child] = []
        self._ending = threading.Event()
        self._before: Callable[[int, FrameType | None], Any] | int | None = None

    @property
    def pid(self) -> int:
        """The coordinator's process."""
        assert self._coordinator.process is not None
        return self._coordinator.process.pid

    def __enter__(self) -> "Federation":
        self._before = signal.signal(signal.SIGTERM, _terminate)
        try:
            tie = ["--until-eof"] if self._coordinator.tied else []
            data_dir = str(self.folder / "coordinator")
            self._coordinator.arguments = ["up", "--port", "0", "--data-dir", data_dir, "--json", *tie]
            self._coordinator.start()
            self.url = self._coordinator.said()["url"]
        except BaseException:
            self._end(everything=True)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end(everything=kind is not None or not self._keep)

    def join(self, sources: Mapping[str, str]) -> None:
        """Start a node for each name, on its data source; returns once all have joined, raises what keeps one out."""
        self.start_nodes({name: ["--data", source] for name, source in sources.items()})

    def start_nodes(self, options: Mapping[str, Sequence[str]]) -> None:
        """Start a node for each name, with these options of `tutti join`; otherwise like `join`."""
        with Client(self.url) as client:
            link = client.invite(uses=len(options)).link
        for name, own in options.items():
            state = str(self.folder / name)
            arguments = ["join", link, *own, "--name", name, "--state-dir", state, "--json", "--until-eof"]
            node = Child(name, arguments, self.folder / f"{name}.log")
            self._nodes.append(node)
            node.start()
        for node in self._nodes:
            node.said()
            threading.Thread(target=self._watch, args=(node,), daemon=True).start()

    def _watch(self, node: Child) -> None:
        """Start a node again that ends although nobody asked it to."""
        for _ in range(RESTARTS):
            assert node.process is not None
            node.process.wait()
            with node.lock:
                if self._ending.is_set():
                    return
                node.start()

    def _end(self, *, everything: bool) -> None:
        """Ask all to end, then wait; a second ctrl-C does not leave anything behind."""
        self._ending.set()
        children = [*self._nodes, self._coordinator] if everything else self._nodes
        with _uninterrupted():
            for child in children:
                with child.lock:
                    child.end()
            for child in children:
                child.kill()
        signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)


@contextlib.contextmanager
def _uninterrupted() -> "Any":
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(Exit.TERMINATED)
