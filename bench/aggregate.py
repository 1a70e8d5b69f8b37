"""Weighted mean of many updates, from the bytes as they were received to the new mean.

    python bench/aggregate.py --updates 50 --parameters 25_000_000
    python bench/aggregate.py --grid

Compared with what the memory can do in the same process and, if BENCH_FLWR_PYTHON names an interpreter that has Flower,
with Flower's own two functions in the same run. All updates are distinct and resident before the clock starts; with
--grid, which measures 10, 50 and 100 updates of 1, 10 and 25 million parameters, ten distinct ones come in turn.

`of copy` and `of read` are the bytes of updates a second, of the bytes that the process copies or reads a second.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from _common import copy_bandwidth, peak_memory, read_bandwidth, seconds, show

TENSORS = 10


def values(k: int, updates: int, parameters: int) -> np.ndarray:
    base = np.random.default_rng(0).standard_normal(parameters, dtype=np.float32)
    base *= np.float32(0.01 * (1 + k / updates))
    return base


def weight(k: int) -> int:
    return 100 + 7 * k


def measure(name: str, work: Callable[[], Any], size: int, updates: int, repeats: int) -> tuple[dict[str, Any], Any]:
    """One row, and the last result. `size` is that of one model in bytes.

    The bounds are measured just before and just after: on a shared machine they drift.
    """
    with peak_memory() as peak:
        result = work()
    before = copy_bandwidth(), read_bandwidth()
    took = seconds(work, repeats)
    copy, read = ((a + b) / 2 for a, b in zip(before, (copy_bandwidth(), read_bandwidth()), strict=True))
    speed = size * updates / took
    row = {"what": name, "seconds": took, "GB/s": speed / 1e9, "of copy": speed / copy, "of read": speed / read}
    return {**row, "peak models": None if peak.bytes is None else peak.bytes / size}, result


def ours(
    updates: int, parameters: int, repeats: int, distinct: int | None = None
) -> tuple[list[dict[str, Any]], np.ndarray]:
    from tutti.core.params import Params
    from tutti.core.reduce import Update, weighted_mean
    from tutti.wire.tensors import decode, encode

    part = parameters // TENSORS
    layout = Params.from_arrays({f"{i}": np.zeros(part, np.float32) for i in range(TENSORS)}).layout
    came = min(distinct or updates, updates)
    received = [encode(Params(layout, values(k, updates, part * TENSORS))) for k in range(came)]
    reducer = weighted_mean()

    def aggregate(at_once: int) -> Params:
        acc = reducer.zero(layout, updates, 2**20)
        for start in range(0, updates, at_once):
            batch = range(start, min(start + at_once, updates))
            reducer.add(acc, *[Update(decode(received[k % came]), weight(k)) for k in batch])
        return reducer.finish(acc)

    size = 4 * part * TENSORS
    rows, results = [], set()
    for name, at_once in (("one by one", 1), ("four at a time", 4), ("all waiting", updates)):
        row, mean = measure(name, lambda at_once=at_once: aggregate(at_once), size, updates, repeats)
        rows.append(row)
        results.add(mean.buffer.tobytes())
    if len(results) > 1:
        raise SystemExit("the means differ by the order of work: this is a bug")
    return rows, mean.buffer[:1000].copy()


def flower(updates: int, parameters: int, repeats: int) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Runs in Flower's interpreter: the list-of-arrays function, and that of its message API."""
    from flwr.app import ArrayRecord, MetricRecord, RecordDict
    from flwr.server.strategy.aggregate import aggregate
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    part = parameters // TENSORS
    arrays = [np.split(values(k, updates, part * TENSORS), TENSORS) for k in range(updates)]
    size = 4 * part * TENSORS
    plain, mean = measure(
        "flower, arrays", lambda: aggregate([(a, weight(k)) for k, a in enumerate(arrays)]), size, updates, repeats
    )
    records = []
    for k in range(updates):
        layers, arrays[k] = arrays[k], []
        metrics = MetricRecord({"num-examples": weight(k)})
        records.append(RecordDict({"arrays": ArrayRecord(layers), "metrics": metrics}))
    del layers
    messages, _ = measure(
        "flower, messages", lambda: aggregate_arrayrecords(records, "num-examples"), size, updates, repeats
    )
    return [plain, messages], np.asarray(mean[0][:1000], np.float32)


def grid(repeats: int) -> list[dict[str, Any]]:
    return [
        {"updates": updates, "parameters": f"{millions} M", **row}
        for millions in (1, 10, 25)
        for updates in (10, 50, 100)
        for row in ours(updates, millions * 1_000_000, repeats, distinct=10)[0]
    ]


def peer(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Flower's rows, measured by this file in the interpreter that has it; None if there is none."""
    python = os.environ.get("BENCH_FLWR_PYTHON", "")
    if not python or subprocess.run([python, "-c", "import flwr"], capture_output=True).returncode:
        return None
    command = [python, str(Path(__file__).resolve()), "--as-flower", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=50)
    parser.add_argument("--parameters", type=int, default=25_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--grid", action="store_true", help="10, 50 and 100 updates of 1, 10 and 25 million parameters")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--as-flower", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = (options.updates, options.parameters, options.repeats)
    if options.as_flower:
        rows, sample = flower(*sizes)
        print(json.dumps({"rows": rows, "sample": sample.tolist()}))
        return
    notes: dict[str, Any] = {"copy, read": "bytes copied or read a second by 2 threads, in the same process"}
    notes |= {"copy GB/s": copy_bandwidth() / 1e9, "read GB/s": read_bandwidth() / 1e9}
    if options.grid:
        show(grid(options.repeats), as_json=options.json, notes=notes)
        return
    rows, sample = ours(*sizes)
    theirs = peer(sys.argv[1:])
    if theirs is None:
        notes["flower"] = "flwr not installed"
    else:
        rows += theirs["rows"]
        notes["largest difference from flower's mean"] = float(np.abs(sample - np.array(theirs["sample"])).max())
    fastest = min(row["seconds"] for row in rows)
    for row in rows:
        row["times as long"] = row["seconds"] / fastest
    show(rows, as_json=options.json, notes=notes)


if __name__ == "__main__":
    main()
