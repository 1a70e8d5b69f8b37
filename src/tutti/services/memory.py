"""What a node keeps to itself between the rounds of a job: control variates, personal layers. It never leaves the node.

A file for each round is named by the round and the digest of its bytes, and is on disk before the round's update is
handed in. Which one counts is the coordinator's word, out of its log: the newest round in which this node's update
made a model. So neither side can be ahead of the other, whoever is killed: a round that failed, or an update that
came too late, leaves no trace.
"""

import logging
import os
from pathlib import Path

from tutti.core.local import Memory
from tutti.core.params import Params
from tutti.wire import tensors

log = logging.getLogger(__name__)

JOBS_KEPT = 64
"""Newest jobs whose memory stays; personal models are wanted after the job, too."""


class NodeMemory:
    """A directory for each job. All methods block on the disk, and are called from the thread that computes."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def load(self, job: str, counted: int) -> Memory:
        """What was kept in that round (0: nothing yet); what was kept in others is forgotten.

        Memory that is lost or damaged is as if this node had never taken part, with a warning.
        """
        folder = self._root / job
        found: Memory = {}
        for file in list(folder.iterdir()) if folder.is_dir() else ():
            number, _, digest = file.name.partition("-")
            if number == str(counted) and (read := _verified(file, digest)) is not None:
                found = read
            else:
                file.unlink()
        return found

    def keep(self, job: str, round: int, memory: Memory) -> None:
        """Store what a round left, so that it survives even a loss of power; an attempt before it is replaced."""
        if not memory:
            return
        data = tensors.encode(Params.from_arrays(memory))
        folder = self._root / job
        if not folder.is_dir():
            self._make_room()
            folder.mkdir(parents=True)
        file, partial = folder / f"{round}-{tensors.digest(data)}", folder / "partial"
        with partial.open("wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        partial.replace(file)
        _sync(folder)
        for other in folder.glob(f"{round}-*"):
            if other != file:
                other.unlink()

    def _make_room(self) -> None:
        folders = sorted(self._root.iterdir(), key=lambda path: path.stat().st_mtime_ns) if self._root.is_dir() else []
        for old in folders[: max(0, len(folders) - JOBS_KEPT + 1)]:
            log.info("forgetting what was kept of job %s, the oldest of %d", old.name, len(folders))
            for file in old.iterdir():
                file.unlink()
            old.rmdir()


def _verified(file: Path, digest: str) -> Memory | None:
    data = file.read_bytes()
    if tensors.digest(data) != digest:
        log.warning("%s is damaged: going on as if this node had not taken part in its job yet", file)
        return None
    return {entry.name: values.copy() for entry, values in tensors.decode(data).items()}


def _sync(folder: Path) -> None:
    """Make a rename survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
