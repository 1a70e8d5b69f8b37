"""What the benchmarks share: a bound measured in the same process, peak memory, medians, and how results are shown."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Median duration of a call."""
    durations = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        durations.append(time.perf_counter() - start)
    return median(durations)


def copy_bandwidth(size: int = 100_000_000, threads: int = 2, repeats: int = 9) -> float:
    """Bytes a second that memory copies into memory already mapped, the payload counted once."""
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    edges = np.linspace(0, size, threads + 1).astype(int).tolist()

    def copy() -> None:
        workers = [threading.Thread(target=np.copyto, args=(target[a:b], source[a:b])) for a, b in pairwise(edges)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    copy()
    return size / seconds(copy, repeats)


def read_bandwidth(size: int = 100_000_000, threads: int = 2, repeats: int = 9) -> float:
    """Bytes a second that memory reads, by sums of 64-bit integers."""
    source = np.ones(size // 8, np.int64)
    edges = np.linspace(0, len(source), threads + 1).astype(int).tolist()

    def read() -> None:
        workers = [threading.Thread(target=source[a:b].sum) for a, b in pairwise(edges)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    read()
    return size / seconds(read, repeats)


@dataclass
class Peak:
    """Bytes by which the resident memory rose at most; None where the system does not tell (only Linux does)."""

    bytes: int | None = None


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measures the block, apart from all that was resident before: small blocks may live in memory freed earlier."""
    peak, reset = Peak(), Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")  # the high-water mark starts again at the present size
    before = _status("VmRSS")
    yield peak
    after = _status("VmHWM")
    if before is not None and after is not None:
        peak.bytes = max(0, after - before)


@contextmanager
def peak_anonymous(interval: float = 0.005) -> Iterator[Peak]:
    """Of the block too, but without pages of mapped files, which the system takes back when it wants; sampled."""
    peak, ended, before = Peak(), threading.Event(), _status("RssAnon")

    def sample() -> None:
        while before is not None and not ended.wait(interval):
            peak.bytes = max(peak.bytes or 0, (_status("RssAnon") or 0) - before)

    watcher = threading.Thread(target=sample)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def _status(key: str) -> int | None:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":")), None)


def show(rows: Sequence[Mapping[str, object]], *, as_json: bool, notes: Mapping[str, object]) -> None:
    """Print rows of equal keys as a table with notes beneath, or all of it as one line of JSON."""
    if as_json:
        print(json.dumps({"rows": list(rows), **notes}))
        return
    cells = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for name, note in notes.items():
        print(f"{name}: {_text(note)}")


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
