"""Robust reducers over many updates, from the bytes as they were received to the new update.

    python bench/robust.py --updates 50 --parameters 1_000_000
    python bench/robust.py --updates 100 --parameters 25_000_000 --mapped --repeats 1 --rules median krum bulyan

Compared with plain numpy and, if torch is there, plain torch on a matrix of all updates, each written as one would from
the paper; and, if BENCH_FLWR_PYTHON names an interpreter that has Flower, with Flower's own functions in the same run.
`memory` is how far the peak rose while reducing, in models. f bad nodes are a tenth of all, trimming a fifth.
With --mapped the updates are files (4 bytes a parameter, in a temporary folder), mapped as a coordinator maps them;
there is nothing to compare with then, and `memory` is what the process itself took, without pages of files.
"""

import argparse
import ctypes
import json
import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from _common import Peak, peak_anonymous, peak_memory, seconds, show

TENSORS = 10
TRIM = 0.2


def values(k: int, parameters: int) -> np.ndarray:
    return np.random.default_rng(k).standard_normal(parameters, dtype=np.float32) * np.float32(0.01)


def row(
    rule: str,
    who: str,
    work: Callable[[], Any],
    size: int,
    repeats: int,
    measure: Callable[[], AbstractContextManager[Peak]] = peak_memory,
) -> tuple[dict[str, Any], Any]:
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # or memory that the last rule freed would not show up again
    with measure() as peak:
        result = work()
    took = seconds(work, repeats)
    memory = None if peak.bytes is None else peak.bytes / size
    return {"rule": rule, "by": who, "seconds": took, "memory": memory}, result


def mapped(content: bytearray, file: Path) -> mmap.mmap:
    file.write_bytes(content)
    with file.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def ours(
    updates: int, parameters: int, repeats: int, rules: Sequence[str] = (), folder: Path | None = None
) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """With a folder, from mapped files in it."""
    from tutti.core.params import Params
    from tutti.core.reduce import Update, fold, reducers
    from tutti.core.registry import Choice
    from tutti.wire.tensors import decode, encode

    f, part = updates // 10, parameters // TENSORS
    layout = Params.from_arrays({f"{i}": np.zeros(part, np.float32) for i in range(TENSORS)}).layout
    received: list[Any] = []
    for k in range(updates):
        content = encode(Params(layout, values(k, part * TENSORS)))
        received.append(content if folder is None else mapped(content, folder / f"{k}"))
        del content
    options = dict.fromkeys(("krum", "multi-krum", "bulyan"), f":f={f}") | {"trimmed-mean": f":{TRIM}"}
    rows, samples = [], {}
    for name in rules or reducers:
        reducer = reducers.build(Choice.parse(name + options.get(name, "")))
        if reducer.rooted is not None:
            reducer = reducer.rooted(decode(received[0]))

        def work(reducer: Any = reducer) -> Params:
            return fold(reducer, [Update(decode(data), 1) for data in received], layout, 1)

        measure = peak_memory if folder is None else peak_anonymous
        found, result = row(name, "tutti", work, 4 * part * TENSORS, repeats, measure)
        rows.append(found)
        samples[name] = result.buffer[:1000].tolist()
    return rows, samples


def plain(updates: int, parameters: int, repeats: int) -> list[dict[str, Any]]:
    """What one would write from the papers, on a matrix that is there already."""
    f, size = updates // 10, parameters // TENSORS * TENSORS
    matrix = np.stack([values(k, size) for k in range(updates)])
    cut = int(TRIM * updates)
    found = [
        row("median", "numpy", lambda: np.median(matrix, axis=0), 4 * size, 1),
        row("trimmed-mean", "numpy", lambda: np.sort(matrix, axis=0)[cut:-cut].mean(axis=0), 4 * size, 1),
        row("krum", "numpy", lambda: krum(matrix, f), 4 * size, repeats),
    ]
    try:
        import torch
    except ImportError:
        return [result for result, _ in found]
    tensor = torch.from_numpy(matrix)
    found += [
        row("median", "torch", lambda: tensor.median(dim=0), 4 * size, 1),  # the lower of the two in the middle
        row("trimmed-mean", "torch", lambda: tensor.sort(dim=0).values[cut:-cut].mean(dim=0), 4 * size, 1),
        row("krum", "torch", lambda: krum(tensor, f), 4 * size, repeats),
    ]
    return [result for result, _ in found]


def krum(matrix: Any, f: int) -> Any:
    """Both for numpy and for torch: distances from one float32 matrix product."""
    products = np.asarray(matrix @ matrix.T)
    squares = np.diag(products)[:, None] + np.diag(products)[None, :] - 2 * products
    return matrix[int(np.sort(squares, axis=1)[:, 1 : len(squares) - f - 1].sum(axis=1).argmin())]


def flower(updates: int, parameters: int, repeats: int) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """Runs in Flower's interpreter."""
    from flwr.server.strategy.aggregate import aggregate_bulyan, aggregate_krum, aggregate_median, aggregate_trimmed_avg

    f, part = updates // 10, parameters // TENSORS
    results = [(np.split(values(k, part * TENSORS), TENSORS), 1) for k in range(updates)]
    rules: Mapping[str, Callable[[], Any]] = {
        "median": lambda: aggregate_median(results),
        "trimmed-mean": lambda: aggregate_trimmed_avg(results, TRIM),
        "krum": lambda: aggregate_krum(results, f, 0),
        "multi-krum": lambda: aggregate_krum(results, f, updates - f),
        "bulyan": lambda: aggregate_bulyan(list(results), f, aggregate_krum, to_keep=0),
    }
    rows, samples = [], {}
    for name, work in rules.items():
        found, result = row(name, "flower", work, 4 * part * TENSORS, 1 if name == "bulyan" else repeats)
        rows.append(found)
        samples[name] = np.asarray(result[0][:1000], np.float64).tolist()
    return rows, samples


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
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only-ours", action="store_true", help="nothing to compare with, for large models")
    parser.add_argument("--mapped", action="store_true", help="updates in mapped files; nothing to compare with")
    parser.add_argument("--rules", nargs="+", default=[], metavar="NAME", help="only these of ours")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--as-flower", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = (options.updates, options.parameters, options.repeats)
    if options.as_flower:
        rows, samples = flower(*sizes)
        print(json.dumps({"rows": rows, "samples": samples}))
        return
    with tempfile.TemporaryDirectory(prefix="tutti-robust-") as folder:
        rows, samples = ours(*sizes, options.rules, Path(folder) if options.mapped else None)
    notes: dict[str, Any] = {"updates": options.updates, "parameters": options.parameters}
    theirs = None
    if not (options.only_ours or options.mapped):
        rows += plain(*sizes)
        theirs = peer(sys.argv[1:])
        notes |= {"flower": "flwr not installed"} if theirs is None else {}
    if theirs is not None:
        rows += theirs["rows"]
        for name, sample in theirs["samples"].items():
            notes[f"largest difference from flower's {name}"] = float(np.abs(np.subtract(samples[name], sample)).max())
    best = {found["rule"]: found["seconds"] for found in rows if found["by"] == "tutti"}
    for found in rows:
        found["times as long"] = found["seconds"] / best[found["rule"]]
    rows.sort(key=lambda found: (found["rule"], found["seconds"]))
    show(rows, as_json=options.json, notes=notes)


if __name__ == "__main__":
    main()
