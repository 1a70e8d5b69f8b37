"""Simulated rounds of McMahan's MNIST: 100 nodes x 600 images, 10 a round, batches of 10 (arXiv:1602.05629).

    python bench/sim.py --model 2nn --epochs 1 --rounds 20

Every engine starts in a process of its own and runs the same job; a plain PyTorch loop on the same parts and batches
is the peer in the same run. All must come to the same accuracy on the 10,000 test images. Needs the MNIST files in
TUTTI_DATA_DIR or ../shared/data. `--no-op` measures what a round costs when the nodes do nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from _common import show

NODES, COHORT, BATCH, LR = 100, 10, 10, 0.05
ENGINES = ("fused", "vectorised", "processes", "sequential")
TOLERANCE = 0.004
"""Largest difference of test accuracies that counts as equal: rounding alone moves a few dozen of 10,000 images."""


def job(model: str, epochs: int, rounds: int) -> dict[str, Any]:
    return {
        "dataset": "mnist",
        "model": model,
        "rounds": rounds,
        "training": {"epochs": epochs, "batch_size": BATCH, "lr": LR},
        "cohort": {"min_nodes": NODES, "size": COHORT},
        "evaluation": {"nodes": False},
    }


def peak_memory() -> float:
    """MB that this process and its children had resident at most, data and libraries included."""
    import resource

    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return (own + children) / 1024


def result(seconds: list[float], start: float, accuracy: float, epochs: int) -> dict[str, Any]:
    """`seconds` are those of all rounds; the first, which pays for warming up, counts as start-up."""
    typical = median(seconds[1:])
    samples = COHORT * 600 * epochs
    return {
        "ms/round": 1000 * typical,
        "samples/s": samples / typical,
        "best ms": 1000 * min(seconds[1:]),
        "first round after s": start,
        "MB": peak_memory(),
        "accuracy": accuracy,
    }


def with_engine(engine: str, model: str, epochs: int, rounds: int) -> dict[str, Any]:
    began = time.perf_counter()
    from tutti.adapters.workbench import rows_to_measure_on
    from tutti.core.registry import Choice
    from tutti.ports.training import models
    from tutti.sim import Federation, simulate

    first = []
    federation = Federation.divide("mnist", NODES, held_out=0.0)

    def watch(record: Any) -> None:
        if record.round == 1:
            first.append(time.perf_counter() - began)

    history = simulate(job(model, epochs, rounds), federation, engine=engine, watch=watch)
    seconds = [record.seconds for record in history.rounds[1:]]
    found = result(seconds, first[0], 0.0, epochs)
    test = rows_to_measure_on(Choice("mnist", {"split": "test"}), federation.schema)
    trainer = models.build(Choice(model), data=federation.schema)
    return found | {"accuracy": trainer.evaluate(history.params, test)["accuracy"]}


def plain_loop(model: str, epochs: int, rounds: int) -> dict[str, Any]:
    """What a careful person writes without a framework: shuffled once an epoch, fused updates, one process."""
    began = time.perf_counter()
    import torch
    from torch.nn.functional import cross_entropy

    from tutti.adapters.trainers.batches import batches
    from tutti.core.registry import Choice
    from tutti.core.sampling import sample
    from tutti.domain.spec import Training
    from tutti.ports.training import Task, models
    from tutti.services.driver import node_seed
    from tutti.sim import Federation

    federation = Federation.divide("mnist", NODES, held_out=0.0)
    trainer = models.build(Choice(model), data=federation.schema)
    net: Any = trainer.module()
    torch.nn.utils.vector_to_parameters(torch.from_numpy(trainer.init(0).buffer.copy()), net.parameters())
    parameters = list(net.parameters())
    weights, world = [p.data for p in parameters], [p.data.clone() for p in parameters]
    x, y = torch.from_numpy(federation.rows.x), torch.from_numpy(federation.rows.y)
    seconds, first = [], 0.0
    for round in range(1, rounds + 1):
        start = time.perf_counter()
        total = [torch.zeros_like(w) for w in world]
        for node in sample(federation.nodes, COHORT, seed=0, round=round, attempt=0):
            torch._foreach_copy_(weights, world)
            mine = federation.train[node]
            task = Task(Training(epochs=epochs), node_seed(0, round, node), BATCH, LR)
            rows = torch.from_numpy(mine[np.concatenate([batch for _, batch in batches(len(mine), task)])])
            for images, labels in zip(x[rows].split(BATCH), y[rows].split(BATCH), strict=True):
                loss = cross_entropy(net(images), labels)
                torch._foreach_add_(weights, torch.autograd.grad(loss, parameters), alpha=-LR)
            torch._foreach_add_(total, weights, alpha=1 / COHORT)
        world = total
        seconds.append(time.perf_counter() - start)
        first = first or time.perf_counter() - began
    found = result(seconds, first, 0.0, epochs)
    torch._foreach_copy_(weights, world)
    return found | {"accuracy": accuracy_of(net)}


def accuracy_of(net: Any) -> float:
    import torch

    from tutti.adapters.workbench import rows_to_measure_on
    from tutti.core.registry import Choice
    from tutti.domain.spec import DataSchema

    test = rows_to_measure_on(Choice("mnist", {"split": "test"}), DataSchema("classification", (1, 28, 28), 10))
    with torch.inference_mode():
        predicted = torch.cat([net(part).argmax(1) for part in torch.from_numpy(test.x).split(1024)])
    return float((predicted.numpy() == test.y).mean())


def no_op(parameters: int, rounds: int, nodes: int) -> list[dict[str, Any]]:
    """Nodes whose training returns at once: what is left is the engine's own work."""
    from tutti.core.params import Params
    from tutti.domain.spec import DataSchema
    from tutti.ports.training import Data, Examples, Work, models
    from tutti.sim import Federation, simulate

    class Idle:
        def init(self, seed: int) -> Params:
            return Params.from_arrays({"w": np.zeros(parameters, np.float32)})

        def train(self, params: Params, examples: Examples, task: Any, report: Any) -> Work:
            return Work(params, len(examples), {"loss": 0.0}, 1)

    models.register("idle")(lambda *, data: Idle())
    schema, none = (
        DataSchema("regression", (1,), 1),
        Examples(np.zeros((0, 1), np.float32), np.zeros((0, 1), np.float32)),
    )
    one = Data("none", schema, Examples(np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32)), none)
    rows = []
    for registered, cohort in ((nodes, 10), (nodes, 100), (100 * nodes, 10)):
        federation = Federation.of({f"node-{i}": one for i in range(registered)})
        raw = {**job("idle", 1, rounds), "dataset": "none", "cohort": {"min_nodes": registered, "size": cohort}}
        seconds = [record.seconds for record in simulate(raw, federation, engine="sequential").rounds[2:]]
        each = 1000 * median(seconds)
        rows.append({"registered": registered, "cohort": cohort, "ms/round": each, "ms/node": each / cohort})
    return rows


WORK: dict[str, Callable[..., dict[str, Any]]] = {
    **{engine: lambda *sizes, engine=engine: with_engine(engine, *sizes) for engine in ENGINES},
    "plain loop": plain_loop,
}


def in_a_process(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """A row, measured by this file in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--alone", name, "--model", options.model]
    command += ["--epochs", str(options.epochs), "--rounds", str(options.rounds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | threads_for(name), check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"what": name, **found}


def threads_for(name: str) -> dict[str, str]:
    """One thread where more only wait for each other: a single node's steps are small."""
    return {} if name == "vectorised" else {"OMP_NUM_THREADS": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="2nn", choices=("2nn", "cnn"))
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=1, help="Runs of each, in turn; the medians count.")
    parser.add_argument("--no-op", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.no_op:
        notes = {"goal": "2 ms a round + 0.2 ms a node"}
        show(no_op(7850, options.rounds, 1000), as_json=options.json, notes=notes)
    elif options.alone:
        print(json.dumps(WORK[options.alone](options.model, options.epochs, options.rounds)))
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    engines = ENGINES if options.model == "2nn" else ("processes", "sequential")
    notes: dict[str, Any] = {"job": f"{options.model}, E = {options.epochs}, {options.rounds} rounds"}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in (*engines, "plain loop")}
    for _ in range(options.repeats):
        for name, found in runs.items():
            found.append(in_a_process(name, options))
    rows = [median_of(found) for found in runs.values()]
    loop = next(row["ms/round"] for row in rows if row["what"] == "plain loop")
    for row in rows:
        row["times the loop"] = loop / row["ms/round"]
    show(rows, as_json=options.json, notes=notes)
    accuracies = [row["accuracy"] for row in rows]
    if max(accuracies) - min(accuracies) > TOLERANCE:
        raise SystemExit(f"the accuracies differ by more than {TOLERANCE}: {accuracies}")


def median_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        key: value if isinstance(value, str) else median(row[key] for row in rows) for key, value in rows[0].items()
    }


if __name__ == "__main__":
    main()
