"""Training steps a second in a JavaScript engine: the browser node's kernel, beside libraries that train in browsers.

2NN (784-200-200-10) and the CNN of McMahan et al. 2017, batches of 32, one thread, in Node's V8, and PyTorch on one
thread on the same machine. The peers (TensorFlow.js and jax-js on WebAssembly) need a folder of their own:

    npm install --prefix FOLDER @tensorflow/tfjs @tensorflow/tfjs-backend-wasm @jax-js/jax
    BENCH_BROWSER_PEERS=FOLDER python bench/browser.py [--runs N] [--quick] [--json]

They train the 2NN only: neither can train the CNN usably there.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from _common import show
from tutti.adapters.browser.kernel import WASM
from tutti.core.registry import Choice
from tutti.domain.spec import DataSchema, Training
from tutti.ports.training import Examples, Task, models

HERE = Path(__file__).resolve().parent
WEB = HERE.parent / "web"
BATCH = 32


def engine(*command: object) -> dict[str, float]:
    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, cwd=WEB, timeout=600)
    return json.loads(done.stdout)


def pytorch(model: str, steps: int) -> float:
    """The same steps by this package's own trainer, on one thread."""
    rng, data = np.random.default_rng(0), DataSchema("classification", (1, 28, 28), 10)
    trainer = models.build(Choice(model), data=data)
    examples = Examples(rng.random((BATCH, 1, 28, 28), dtype=np.float32), rng.integers(0, 10, BATCH))
    task = Task(Training(epochs=steps), 0, BATCH, 0.01)
    params = trainer.init(0)
    trainer.train(params, examples, Task(Training(epochs=2), 0, BATCH, 0.01), lambda *report: None)
    began = time.perf_counter()
    trainer.train(params, examples, task, lambda *report: None)
    return steps / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="only show that it works")
    parser.add_argument("--json", action="store_true")
    wish = parser.parse_args()
    rolldown = WEB / "node_modules" / ".bin" / "rolldown"
    if shutil.which("node") is None or not rolldown.exists():
        sys.exit("needs Node, and `npm ci` in web/")
    torch.set_num_threads(1)
    runs, scale, peers = (1, 0.05, None) if wish.quick else (wish.runs, 1.0, os.environ.get("BENCH_BROWSER_PEERS"))
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "steps.mjs"
        bundle = [rolldown, "bench/steps.ts", "--file", script, "--format", "esm", "--platform", "node"]
        subprocess.run(bundle, check=True, cwd=WEB, stdout=subprocess.DEVNULL)
        for _ in range(runs):
            rates = engine("node", script, WASM, scale)
            rates |= {
                f"{model}, PyTorch": pytorch(model, max(2, int(scale * n))) for model, n in (("2nn", 400), ("cnn", 20))
            }
            if peers:
                its = engine("node", HERE / "_browser_peers.cjs", peers, 60)
                rates |= {f"2nn, {name}": rate for name, rate in its.items()}
            for name, rate in rates.items():
                found.setdefault(name, []).append(rate)
    rows = []
    for name, rates in sorted(found.items()):
        ours = median(found[f"{name.partition(',')[0]}, kernel"])
        rows.append({"steps": name, "a second": median(rates), "kernel / this": ours / median(rates)})
    show(rows, as_json=wish.json, notes={})


if __name__ == "__main__":
    main()
