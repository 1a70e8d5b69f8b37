"""Which rows make which batch: seeded, and the same for every back end."""

import numpy as np
from numpy.typing import NDArray

from tutti.ports.training import Task


def batches(n: int, task: Task, *, pairs: bool = False) -> list[tuple[int, NDArray[np.int64]]]:
    """(epoch from 1, row numbers) of every batch: shuffled anew in each epoch, cut off after max_steps.

    With `pairs`, a single row that is left over joins the batch before it: BatchNorm cannot take one.
    """
    found: list[tuple[int, NDArray[np.int64]]] = []
    for epoch in range(1, task.training.epochs + 1):
        order = np.random.Generator(np.random.PCG64([task.seed, epoch])).permutation(n)
        cuts = list(range(task.batch_size, n, task.batch_size))
        if pairs and cuts and n - cuts[-1] == 1:
            cuts.pop()
        found += [(epoch, rows) for rows in np.split(order, cuts)]
        if task.training.max_steps and len(found) >= task.training.max_steps:
            return found[: task.training.max_steps]
    return found
