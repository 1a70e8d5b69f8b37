"""Simulated rounds of McMahan's MNIST: 100 nodes x 600 images, 10 a round, batches of 10 (arXiv:1602.05629).

    python bench/sim.py --model 2nn --epochs 1 --rounds 20

Every engine starts in a process of its own and runs the same job; peers in the same run, on the same cohorts and
batches, are a plain PyTorch loop, Flower's simulation where BENCH_FLWR_PYTHON names an interpreter with
`flwr[simulation]` and torch, and pfl-research in two processes where BENCH_PFL_PYTHON names one with `pfl` and torch.
All must come to the same accuracy on the 10,000 test images. Needs the MNIST files in TUTTI_DATA_DIR or ../shared/data.
`--no-op` measures what a round costs when the nodes do nothing, `--growth` cohorts of 10 to 100 nodes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from _common import show

NODES, COHORT, BATCH, LR = 100, 10, 10, 0.05
ENGINES = {
    "2nn": ("fused", "vectorised", "processes", "sequential"),
    "cnn": ("processes", "processes bf16", "sequential"),
}
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


def memory() -> float:
    """MB of this process and its children together, data and libraries included, shared pages counted once."""
    import psutil

    me = psutil.Process()
    return sum(process.memory_full_info().pss for process in [me, *me.children(recursive=True)]) / 2**20


def resident_kb() -> float:
    """KB that this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024


def samples(options: argparse.Namespace) -> int:
    """How many examples nodes train on in a round."""
    return COHORT * 600 * int(options.epochs)


def result(seconds: list[float], first: float, accuracy: float, mb: float, trained: int) -> dict[str, Any]:
    """`seconds` are those of all rounds; the first, which pays for warming up, counts as start-up."""
    typical = median(seconds[1:])
    return {
        "ms/round": 1000 * typical,
        "samples/s": trained / typical,
        "best ms": 1000 * min(seconds[1:]),
        "first round after s": first,
        "MB": mb,
        "accuracy": accuracy,
    }


def with_engine(engine: str, options: argparse.Namespace) -> dict[str, Any]:
    began = time.perf_counter()
    from tutti.adapters.workbench import rows_of_own
    from tutti.core.registry import Choice
    from tutti.ports.training import models
    from tutti.sim import Federation, simulate

    first, mb = [], []
    federation = Federation.divide("mnist", NODES, held_out=0.0)
    raw = job(options.model, options.epochs, options.rounds)
    if engine.endswith(" bf16"):
        raw["training"]["mixed_precision"] = True

    def watch(record: Any) -> None:
        if record.round == 1:
            first.append(time.perf_counter() - began)
        if record.round == options.rounds - 1:
            mb.append(memory())  # before the last round: workers are still there

    history = simulate(raw, federation, engine=engine.removesuffix(" bf16"), watch=watch)
    seconds = [record.seconds for record in history.rounds[1:]]
    test = rows_of_own("test", Choice("mnist", {"split": "test"}), federation.schema)
    trainer = models.build(Choice(options.model), data=federation.schema)
    accuracy = trainer.evaluate(history.params, test)["accuracy"]
    return result(seconds, first[0], accuracy, mb[0], samples(options))


def orders_of(federation: Any, options: argparse.Namespace) -> "np.ndarray":
    """Which rows the nodes of each round's cohort train on, in their order: (rounds, cohort, rows)."""
    from tutti.adapters.trainers.batches import batches
    from tutti.core.sampling import node_seed, sample
    from tutti.domain.spec import Training
    from tutti.ports.training import Task

    def order(round: int, node: str) -> "np.ndarray":
        mine = federation.train[node]
        task = Task(Training(epochs=options.epochs), node_seed(0, round, node), BATCH, LR)
        return mine[np.concatenate([batch for _, batch in batches(len(mine), task)])]

    return np.array(
        [
            [order(round, node) for node in sample(federation.nodes, COHORT, seed=0, round=round, attempt=0)]
            for round in range(1, options.rounds + 1)
        ]
    )


def plain_loop(options: argparse.Namespace) -> dict[str, Any]:
    """What a careful person writes without a framework: shuffled once an epoch, fused updates, one process."""
    began = time.perf_counter()
    import torch
    from torch.nn.functional import cross_entropy

    from tutti.core.registry import Choice
    from tutti.ports.training import models
    from tutti.sim import Federation

    federation = Federation.divide("mnist", NODES, held_out=0.0)
    trainer = models.build(Choice(options.model), data=federation.schema)
    net: Any = trainer.module()
    torch.nn.utils.vector_to_parameters(torch.from_numpy(trainer.init(0).buffer.copy()), net.parameters())
    parameters = list(net.parameters())
    weights, world = [p.data for p in parameters], [p.data.clone() for p in parameters]
    x, y = torch.from_numpy(federation.rows.x), torch.from_numpy(federation.rows.y)
    seconds, first = [], 0.0
    for cohort in orders_of(federation, options):
        start = time.perf_counter()
        total = [torch.zeros_like(w) for w in world]
        for rows in cohort:
            torch._foreach_copy_(weights, world)
            for images, labels in zip(x[rows].split(BATCH), y[rows].split(BATCH), strict=True):
                loss = cross_entropy(net(images), labels)
                torch._foreach_add_(weights, torch.autograd.grad(loss, parameters), alpha=-LR)
            torch._foreach_add_(total, weights, alpha=1 / COHORT)
        world = total
        seconds.append(time.perf_counter() - start)
        first = first or time.perf_counter() - began
    torch._foreach_copy_(weights, world)
    return result(seconds, first, accuracy_of(net), memory(), samples(options))


def accuracy_of(net: Any) -> float:
    import torch

    from tutti.adapters.workbench import rows_of_own
    from tutti.core.registry import Choice
    from tutti.domain.spec import DataSchema

    test = rows_of_own("test", Choice("mnist", {"split": "test"}), DataSchema("classification", (1, 28, 28), 10))
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
        held: list[float] = []
        watch = lambda record, held=held: held.append(resident_kb())  # noqa: E731
        seconds = [record.seconds for record in simulate(raw, federation, engine="sequential", watch=watch).rounds[2:]]
        each, grown = 1000 * median(seconds), (held[-1] - held[rounds // 2]) / (rounds - rounds // 2)
        row = {"registered": registered, "cohort": cohort, "ms/round": each, "ms/node": each / cohort}
        rows.append({**row, "KB/round": grown})
    return rows


def growth(rounds: int) -> list[dict[str, Any]]:
    """The same work for cohorts of 10 to 100 nodes: the time of a node should stay what it is."""
    from tutti.sim import Federation, simulate

    federation = Federation.divide("mnist", NODES, held_out=0.0)
    rows = []
    for cohort in (10, 20, 50, 100):
        raw = {**job("2nn", 1, rounds), "cohort": {"min_nodes": NODES, "size": cohort}}
        seconds = [record.seconds for record in simulate(raw, federation).rounds[2:]]
        each = 1000 * median(seconds)
        rows.append({"cohort": cohort, "ms/round": each, "ms/node": each / cohort, "MB": memory()})
    return [{**row, "times 10's": row["ms/node"] / rows[0]["ms/node"]} for row in rows]


def alone(name: str, options: argparse.Namespace) -> dict[str, Any]:
    return plain_loop(options) if name == "plain loop" else with_engine(name, options)


def in_a_process(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """A row, measured by this file in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--alone", name, "--model", options.model]
    command += ["--epochs", str(options.epochs), "--rounds", str(options.rounds)]
    found: dict[str, Any] = last_line(command, threads_for(name))
    return {"what": name, **found}


def threads_for(name: str) -> dict[str, str]:
    """One thread where more only wait for each other: a single node's steps are small."""
    return {} if name == "vectorised" else {"OMP_NUM_THREADS": "1"}


def last_line(command: list[str], more: dict[str, str]) -> Any:
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | more)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))


PEERS = {"flower": "BENCH_FLWR_PYTHON", "pfl": "BENCH_PFL_PYTHON"}


def peers() -> dict[str, str]:
    """Interpreters of the peers that are there."""
    named = {name: os.environ.get(variable, "") for name, variable in PEERS.items()}
    module = {"flower": "flwr", "pfl": "pfl"}
    return {
        name: python
        for name, python in named.items()
        if python
        and not subprocess.run([python, "-c", f"import torch, {module[name]}"], capture_output=True).returncode
    }


def of_a_peer(name: str, python: str, file: Path, options: argparse.Namespace) -> dict[str, Any]:
    script = [str(Path(__file__).with_name("_sim_peers.py")), name, str(file)]
    started = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if name == "pfl" else []
    found = last_line([python, *started, *script], {"OMP_NUM_THREADS": "1"})
    row = result(found["seconds"], found["first"], found["accuracy"], found["MB"], samples(options))
    return {"what": "pfl, two processes" if name == "pfl" else name, **row}


def write_job(file: Path, options: argparse.Namespace) -> None:
    """What _sim_peers.py reads."""
    from tutti.adapters.workbench import rows_of_own
    from tutti.core.registry import Choice
    from tutti.ports.training import models
    from tutti.sim import Federation

    federation = Federation.divide("mnist", NODES, held_out=0.0)
    test = rows_of_own("test", Choice("mnist", {"split": "test"}), federation.schema)
    initial = models.build(Choice(options.model), data=federation.schema).init(0).buffer
    rows = {"x": federation.rows.x, "y": federation.rows.y, "test_x": test.x, "test_y": test.y}
    settings = {"model": options.model, "epochs": options.epochs, "batch": BATCH, "lr": LR}
    np.savez(file, initial=initial, orders=orders_of(federation, options), **rows, **settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="2nn", choices=("2nn", "cnn"))
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=1, help="Runs of each, in turn; the medians count.")
    parser.add_argument("--only", help="Names to measure, with commas between; without it, all that are there.")
    parser.add_argument("--no-op", action="store_true")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.no_op:
        notes = {"goal": "2 ms a round + 0.2 ms a node"}
        show(no_op(7850, options.rounds, 1000), as_json=options.json, notes=notes)
    elif options.growth:
        show(growth(options.rounds), as_json=options.json, notes={"job": "2nn, E = 1"})
    elif options.alone:
        print(json.dumps(alone(options.alone, options)))
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    there = peers()
    names = [*ENGINES[options.model], "plain loop", *there]
    if options.only:
        names = [name for name in names if name in options.only.split(",")]
    notes: dict[str, Any] = {"job": f"{options.model}, E = {options.epochs}, {options.rounds} rounds"}
    notes |= {name: f"not measured: name an interpreter in {PEERS[name]}" for name in PEERS if name not in there}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="bench-sim-") as folder:
        file = Path(folder) / "job.npz"
        if there:
            write_job(file, options)
        for _ in range(options.repeats):
            for name, found in runs.items():
                theirs = there.get(name)
                found.append(of_a_peer(name, theirs, file, options) if theirs else in_a_process(name, options))
    rows = [median_of(found) for found in runs.values()]
    for peer in ("plain loop", "flower", "pfl"):
        if peer in runs:
            base = median(run["ms/round"] for run in runs[peer])
            for row in rows:
                row[f"times {peer}"] = base / row["ms/round"]
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
