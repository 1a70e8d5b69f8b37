"""What federated training is compared with: each node alone, and all data in one place."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tutti.core.params import Params
from tutti.core.schedules import schedules
from tutti.domain.spec import Metrics, Training
from tutti.ports.training import Examples, Report, Task, Trainer


@dataclass(frozen=True, slots=True)
class Budget:
    """The work a baseline may do: that of a federated job's node, round by round, without the averaging.

    Attributes:
        batch_size: Used where `training` leaves it to the node.
    """

    training: Training
    rounds: int
    seed: int = 0
    batch_size: int = 32


@dataclass(frozen=True, slots=True, eq=False)
class Baseline:
    """A model trained without federation, and what it measures on the common test rows."""

    params: Params
    examples: int
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Baselines:
    """`local` by node name, in name order; `pooled` is what nobody could train without moving data."""

    local: Mapping[str, Baseline]
    pooled: Baseline


def baselines(
    trainer: Trainer, parts: Mapping[str, Examples], test: Examples, budget: Budget, report: Report
) -> Baselines:
    """Train on each part alone and on all together, from the same initial model, and measure on `test`.

    `report` gets the share of all this work done; Cancelled passes through.
    """
    names = sorted(parts)
    jobs = [*(parts[name] for name in names), pool([parts[name] for name in names])]
    done = [train_alone(trainer, rows, test, budget, _share_of(report, i, len(jobs))) for i, rows in enumerate(jobs)]
    return Baselines(dict(zip(names, done, strict=False)), done[-1])


def train_alone(trainer: Trainer, rows: Examples, test: Examples, budget: Budget, report: Report) -> Baseline:
    """`rounds` times the local work of one node on `rows`, each time going on from the model before."""
    factor = schedules.build(budget.training.lr_schedule)
    params = trainer.init(budget.seed)
    for round in range(1, budget.rounds + 1):
        task = Task(
            training=budget.training,
            seed=int(np.random.SeedSequence([budget.seed, round]).generate_state(1)[0]),
            batch_size=budget.training.batch_size or budget.batch_size,
            lr=budget.training.lr * factor(round, budget.rounds),
        )
        params = trainer.train(params, rows, task, _share_of(report, round - 1, budget.rounds)).params
    return Baseline(params, len(rows), trainer.evaluate(params, test))


def pool(parts: list[Examples]) -> Examples:
    """All rows in one place, in the order of the parts."""
    return Examples(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]))


def _share_of(report: Report, index: int, count: int) -> Report:
    return lambda share, epoch, loss: report((index + share) / count, epoch, loss)
