"""What a round of training takes four nodes without a centre, beside p2pfl: the same model, rows, batches and epochs.

The shape is that of p2pfl's own example: pictures of 28 x 28 pixels, an MLP with two hidden layers (256 and 128), one
epoch in batches of 128. The pictures are random, 1,500 for each node. Ours are four processes and a supernode, p2pfl's
four nodes in one process with gRPC between them and Ray for the training, as its example has them.

    python bench/ring_training.py [--rounds 8] [--quick] [--json]

BENCH_P2PFL_PYTHON names an interpreter that has p2pfl:

    python -m venv /path/to/p2pfl
    /path/to/p2pfl/bin/pip install 'p2pfl[torch,dp]' 'pyarrow<21' 'huggingface_hub<1'

`s` is the median of the rounds but the first, of which each begins when the one before is closed.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np

from _common import show
from _federation import HERE
from _ring import Ring, free_port, until
from tutti.apps.ringclient import RingClient
from tutti.domain.spec import load_spec

NODES, ROWS, HIDDEN = 4, 1500, (256, 128)


def write_rows(folder: Path, rows: int) -> list[Path]:
    rng = np.random.default_rng(0)
    files = [folder / f"pictures-{node}.npz" for node in range(NODES)]
    for file in files:
        x, y = rng.integers(0, 256, (rows, 28, 28), np.uint8), rng.integers(0, 10, rows)
        np.savez(file, x=x, y=y)
    return files


async def ours(folder: Path, files: list[Path], rounds: int) -> float:
    ring = Ring(folder)
    client = RingClient(ring.address)
    try:
        ring.supernode()
        for file in files:
            source = f"npz:path={file},name=pictures,classes=10,held_out=0"
            ring.member(f"127.0.0.1:{free_port()}", "--data", source)
        await until(client, lambda views: any(view.holders.get("pictures") == NODES for view in views))
        job = await client.submit(load_spec(_job(rounds)))
        async for view, closed in client.follow(job):  # noqa: B007 - the last one is wanted
            pass
        assert view.status == "completed", view.reason
        ends = [each.closed_at for each in closed if each.task == "train" and each.closed_at is not None]
        return median(b - a for a, b in pairwise(ends))
    finally:
        await client.close()
        ring.stop()


def _job(rounds: int) -> dict[str, object]:
    return {
        "name": "pictures",
        "dataset": "pictures",
        "model": f"mlp:hidden={'x'.join(map(str, HIDDEN))}",
        "rounds": rounds + 1,
        "training": {"epochs": 1, "batch_size": 128, "lr": 0.1},
        "evaluation": {"nodes": False},
        "cohort": {"min_nodes": NODES, "quorum": NODES, "grace": 60.0},
    }


def p2pfl(files: list[Path], rounds: int) -> float | None:
    python = os.environ.get("BENCH_P2PFL_PYTHON")
    if not python:
        return None
    command = [python, str(HERE / "_p2pfl.py"), str(rounds + 1), ",".join(map(str, HIDDEN)), *map(str, files)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode != 0:
        sys.exit(f"p2pfl ended with {done.returncode}: see above")
    (said,) = [line for line in done.stdout.splitlines() if line.startswith('{"seconds"')]
    return median(json.loads(said)["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="only show that it works")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rounds, rows = (1, 200) if options.quick else (options.rounds, ROWS)
    with tempfile.TemporaryDirectory() as folder:
        files = write_rows(Path(folder), rows)
        mine, theirs = asyncio.run(ours(Path(folder), files, rounds)), p2pfl(files, rounds)
    row = {
        "nodes": NODES,
        "rows of each": rows,
        "s": mine,
        "p2pfl s": theirs,
        "p2pfl / s": None if theirs is None else theirs / mine,
    }
    missing = "not measured: BENCH_P2PFL_PYTHON names no interpreter that has it"
    notes = {"p2pfl": os.environ.get("BENCH_P2PFL_PYTHON", missing), "load": os.getloadavg()[0]}
    show([row], as_json=options.json, notes=notes)


if __name__ == "__main__":
    main()
