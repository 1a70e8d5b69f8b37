"""Attack x defence on handwritten digits: what is left of the accuracy, and whether the attacker gets what it wants.

    python bench/attacks.py

Plain rounds in one process: every node trains, the bad ones send what the attack says, the reducer makes one update of
all. The defences are told how many bad nodes there may be. `success` is the share of test rows to which the model gives
the attacker's label: flipped ones for label flip and scaled update, the backdoor's target on rows with its trigger.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from _common import show
from tutti.adapters.partitioners import Population, partitioners
from tutti.core.params import Params
from tutti.core.reduce import Reducer, Update, fold, reducers
from tutti.core.registry import Choice
from tutti.core.robust.fltrust import fltrust
from tutti.core.strategy import Folded, strategies
from tutti.domain.spec import Training
from tutti.ports.training import Examples, Task, Trainer, datasets, models
from tutti.testing.attacks import ATTACKS, Attack

ROOT = 100
"""Clean rows that the server holds for FLTrust; no node has them."""


@dataclass(frozen=True)
class Federation:
    """Who holds what: the first `bad` nodes attack."""

    trainer: Trainer
    nodes: list[Examples]
    bad: int
    root: Examples
    test: Examples
    training: Training
    rounds: int


def federation(options: argparse.Namespace) -> Federation:
    data = datasets.build(Choice.parse("digits")).load()
    rows = np.random.default_rng(0).permutation(len(data.train))
    root, rest = rows[:ROOT], rows[ROOT:]
    population = Population(data.train.y[rest], data.train.x[rest])
    parts = partitioners.build(Choice.parse(options.partition))(population, options.nodes, 0)
    nodes = [Examples(data.train.x[rest[part]], data.train.y[rest[part]]) for part in parts]
    trainer = models.build(Choice.parse(options.model), data=data.schema)
    training = Training(epochs=options.epochs, batch_size=16, lr=0.2)
    held = Examples(data.train.x[root], data.train.y[root])
    return Federation(trainer, nodes, options.bad, held, data.held_out, training, options.rounds)


def train(fed: Federation, model: Params, rows: Examples, seed: list[int]) -> Params:
    task = Task(fed.training, int(np.random.SeedSequence(seed).generate_state(1)[0]), 16, fed.training.lr)
    work = fed.trainer.train(model, rows, task, lambda done, epoch, loss: None)
    return Params(model.layout, work.params.buffer - model.buffer)


Defence = Callable[[Callable[[], Params]], Reducer]
"""root update, if it is asked for -> the round's reducer"""


def by_name(text: str) -> Defence:
    reducer = reducers.build(Choice.parse(text))
    return lambda root: reducer


def defences(nodes: int, bad: int) -> Mapping[str, Defence]:
    f = {"krum": f":f={bad}", "multi-krum": f":f={bad}", "bulyan": f":f={bad}", "trimmed-mean": f":{bad / nodes}"}
    named = {
        name: by_name(name + f.get(name, ""))
        for name in ["mean", *(name for name in reducers if name not in ("mean", "fltrust"))]
    }
    return {**named, "fltrust": lambda root: fltrust(root())}


def run(fed: Federation, attack: Attack, defence: Defence) -> tuple[float, float | None]:
    """Accuracy and attack success after all rounds."""
    strategy = strategies.build(Choice("fedavg"))
    rng = np.random.default_rng(0)
    rows = [attack.poison(part, rng) if k < fed.bad else part for k, part in enumerate(fed.nodes)]
    state = strategy.init(fed.trainer.init(0))
    for number in range(fed.rounds):
        model = state.params
        deltas = [train(fed, model, part, [number, k]) for k, part in enumerate(rows)]
        honest = deltas[fed.bad :]
        sent = [*(attack.craft(own, honest, fed.bad, rng) for own in deltas[: fed.bad]), *honest]
        reducer = defence(lambda: train(fed, model, fed.root, [number, len(rows)]))  # noqa: B023 - called at once
        mean = fold(reducer, [Update(delta, 1) for delta in sent], model.layout, 1)
        state = strategy.finish(state, Folded(mean))
    success = None if attack.goal is None else accuracy(fed, state.params, attack.goal(fed.test))
    return accuracy(fed, state.params, fed.test), success


def accuracy(fed: Federation, model: Params, rows: Examples) -> float:
    return fed.trainer.evaluate(model, rows)["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=15)
    parser.add_argument("--bad", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--model", default="mlp:hidden=32")
    parser.add_argument("--partition", default="iid")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began, fed = time.perf_counter(), federation(options)
    tables: dict[str, list[dict[str, object]]] = {"accuracy": [], "success": []}
    for name, defence in defences(options.nodes, options.bad).items():
        results = {kind: run(fed, attack, defence) for kind, attack in ATTACKS.items()}
        tables["accuracy"].append({"accuracy %": name, **{kind: 100 * got for kind, (got, _) in results.items()}})
        won = {kind: 100 * success for kind, (_, success) in results.items() if success is not None}
        tables["success"].append({"attack success %": name, **won})
    notes = {
        "nodes": f"{options.nodes} ({options.partition}), {options.bad} of them bad",
        "rounds": f"{options.rounds} of {options.model}",
        "seconds": time.perf_counter() - began,
    }
    show(tables["accuracy"], as_json=options.json, notes={})
    print()
    show(tables["success"], as_json=options.json, notes=notes)


if __name__ == "__main__":
    main()
