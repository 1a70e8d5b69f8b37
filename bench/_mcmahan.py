"""McMahan et al. 2017 (https://arxiv.org/abs/1602.05629), Table 2 and section 3: rounds to a test accuracy on MNIST.

100 nodes, C = 0.1 (ten a round), plain SGD; IID, or two shards of one digit each to a node. The paper tunes the
learning rate of each cell over a grid and, where a curve is not monotonic, takes the best value so far, so that its
figure is the first round at the target, as ours is. Here one learning rate serves a model, and nobody tuned it by cell.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from tutti import simulate
from tutti.domain.spec import load_spec
from tutti.sim import Federation, RoundRecord

PARTITIONS = {"iid": "iid", "non-iid": "shard:per_node=2"}
PATIENCE = 2.0
"""A run goes on for so many times the published number of rounds before it is given up."""


@dataclass(frozen=True)
class Cell:
    """One figure of the paper: local epochs E, batch B (600: all of a node's rows, FedSGD) and rounds to `target`."""

    model: str
    target: float
    epochs: int
    batch: int
    partition: str
    published: int
    lr: float
    short: bool = False

    @property
    def name(self) -> str:
        batch = "∞" if self.batch == 600 else self.batch
        return f"{self.model} {self.partition} E={self.epochs} B={batch} to {self.target:.0%}"


CELLS = (
    Cell("2nn", 0.97, 1, 10, "iid", 87, 0.1, short=True),
    Cell("2nn", 0.97, 1, 10, "non-iid", 664, 0.05, short=True),
    Cell("cnn", 0.99, 1, 10, "iid", 34, 0.1, short=True),
    Cell("cnn", 0.99, 5, 10, "iid", 20, 0.1),
    Cell("cnn", 0.99, 20, 10, "iid", 18, 0.1),
    Cell("cnn", 0.99, 1, 600, "iid", 626, 0.1),
    Cell("cnn", 0.99, 1, 10, "non-iid", 350, 0.05),
    Cell("cnn", 0.99, 5, 10, "non-iid", 229, 0.05),
    Cell("cnn", 0.99, 20, 10, "non-iid", 173, 0.05),
    Cell("cnn", 0.99, 1, 600, "non-iid", 483, 0.1),
)


def rounds_to_target(cell: Cell, seed: int) -> tuple[int | None, float]:
    """The first round whose model reaches the target on the official test set (None: given up), and the best score."""
    federation = Federation.divide("mnist", 100, PARTITIONS[cell.partition], seed=seed, held_out=0.0)
    spec = {
        "dataset": "mnist",
        "model": cell.model,
        "rounds": round(PATIENCE * cell.published),
        "seed": seed,
        "training": {"epochs": cell.epochs, "batch_size": cell.batch, "lr": cell.lr},
        "cohort": {"min_nodes": 100, "size": 10},
        "evaluation": {"nodes": False, "data": "mnist:split=test"},
        "early_stopping": {"target": cell.target},
    }
    history = simulate(load_spec(spec), federation, watch=_told(cell, seed))
    scores = [record.evaluated["coordinator"]["accuracy"] for record in history.rounds]
    return next((number for number, score in enumerate(scores) if score >= cell.target), None), max(scores)


def _told(cell: Cell, seed: int):  # type: ignore[no-untyped-def]
    began = time.perf_counter()

    def tell(record: RoundRecord) -> None:
        if record.round and record.round % 10 == 0 and record.evaluated:
            score, seconds = record.evaluated["coordinator"]["accuracy"], time.perf_counter() - began
            print(f"{cell.name}, seed {seed}: round {record.round}, {score:.2%}, {seconds:.0f} s", file=sys.stderr)

    return tell


def mcmahan(seeds: Sequence[int], cells: Sequence[Cell]) -> tuple[list[dict[str, object]], dict[str, object]]:
    rows = []
    for cell in cells:
        found = [rounds_to_target(cell, seed) for seed in seeds]
        reached = [number for number, _ in found if number is not None]
        complete = len(reached) == len(found)
        ours = mean(reached) if complete else None
        rows.append(
            {
                "cell": cell.name,
                "lr": cell.lr,
                "published": cell.published,
                "ours": f"{ours:.0f}" if ours else f"over {round(PATIENCE * cell.published)}",
                "ours / published": f"{ours / cell.published:.2f}" if ours else None,
                "best": f"{max(score for _, score in found):.2%}",
            }
        )
    return rows, {"unit": "rounds", "seeds": str(list(seeds))}
