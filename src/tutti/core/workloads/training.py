"""Local training for a federation: a linear or softmax model is led on from given weights by SGD: one paid update.

The run is laid open: the weights at PARTS points of it are in the result. The check replays the first stretch between
two of them, the last and two drawn ones, so a twenty-fifth of the work; one false stretch among a hundred is caught
with a chance of 2 / 98 or more, as for k-means (see there): bonds are higher for it. Rounding cannot add up to a false
alarm: a step is the gradient over 1 + the mean square of its rows, with which for lr <= 1 no step moves two runs
further apart (both losses have a Hessian of at most that; Nesterov 2004, Introductory Lectures on Convex Optimization,
2.1.5).
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from tutti.core.workload import BadTable, Floats, Result, Table, Verdict, Workload, check_finite, workloads

PARTS, DRAWN = 100, 2

ROUNDING = 1e-8
"""Difference that machines may have after a stretch, over 1 + the largest weight; of the loss, over its size."""

MOST = 10_000
"""Weights that a model may have."""

FARTHEST = 1e6
"""Largest weight to start from: with values of up to 1e100 in the table, nothing overflows on the way."""


@workloads.register("training")
def training(
    classes: Annotated[int, Meta(ge=0, le=1000)] = 0,
    epochs: Annotated[int, Meta(ge=1, le=1000)] = 5,
    lr: Annotated[float, Meta(gt=0, le=1)] = 0.5,
    batch: Annotated[int, Meta(ge=1, le=4096)] = 32,
) -> Workload:
    """A node's update in a federation: weights after some epochs of SGD from the table's `start`, and the loss.

    Of a linear model, or with `classes` of a softmax over so many; the target is a class from 0 on then.
    """
    outputs = max(1, classes)

    def steps(n: int) -> int:
        return epochs * -(-n // batch)

    def admit(table: Table) -> None:
        check_finite(table, 1)
        if table.y is None:
            raise BadTable("training needs a target column: name it (--target), or have y in an NPZ file")
        if classes and not np.isin(table.y, np.arange(classes)).all():
            raise BadTable(
                f"expected a class from 0 to {classes - 1} in each row, came {table.y.min()} to {table.y.max()}"
            )
        size = (table.x.shape[1] + 1) * outputs
        if size > MOST:
            raise BadTable(f"the model would have {size} weights, at most {MOST} are taken")
        if table.start is not None and table.start.shape != (size,):
            raise BadTable(f"expected {size} numbers to start from, came an array of shape {table.start.shape}")
        if table.start is not None and not (np.abs(table.start) <= FARTHEST).all():
            raise BadTable(f"the numbers to start from must lie between -{FARTHEST:g} and {FARTHEST:g}")

    def shapes(table: Table) -> dict[str, tuple[int, ...]]:
        n, d = table.x.shape
        size = (d + 1) * outputs
        return {"history": (len(_ends(steps(n))), size), "weights": (size,), "loss": ()}

    def begin(table: Table) -> Floats:
        return np.zeros((table.x.shape[1] + 1) * outputs) if table.start is None else table.start

    def lead(table: Table, weights: Floats, first: int, end: int, seed: int) -> Floats:
        """The weights after the steps from `first` up to `end`."""
        z, w = _with_ones(table.x), weights.reshape(-1, outputs).copy()
        for rows in _batches(len(z), batch, first, end, seed):
            some = z[rows]
            w -= lr * some.T @ _errors(some, w, table, rows) / (len(rows) + (some**2).sum())
        return np.asarray(w.reshape(-1))

    def loss(table: Table, weights: Floats) -> float:
        return _loss(_with_ones(table.x) @ weights.reshape(-1, outputs), table, classes)

    def _errors(some: Floats, w: Floats, table: Table, rows: NDArray[np.int64]) -> Floats:
        """The gradient of the loss at the outputs of these rows."""
        assert table.y is not None
        found = some @ w
        if not classes:
            return np.asarray(found - table.y[rows, None])
        shares = _softmax(found)
        shares[np.arange(len(rows)), table.y[rows].astype(np.int64)] -= 1
        return shares

    def solve(table: Table, seed: int) -> Result:
        ends = _ends(steps(len(table.x)))
        history = [begin(table)]
        for first, end in pairwise(ends):
            history.append(lead(table, history[-1], first, end, seed))
        return {"history": np.array(history), "weights": history[-1], "loss": np.asarray(loss(table, history[-1]))}

    def check(table: Table, result: Result, seed: int, check_seed: int) -> Verdict:
        history, last = result["history"], len(result["history"]) - 2
        if np.abs(history[0] - begin(table)).max() > 0:
            return Verdict(False, "it does not start from the weights that were given")
        if np.abs(history[-1] - result["weights"]).max() > 0:
            return Verdict(False, "the weights are not those at the end of the run")
        rng = np.random.Generator(np.random.PCG64(check_seed))
        drawn = sorted({0, last, *rng.integers(0, last + 1, DRAWN).tolist()})
        if (fault := _fault(table, history, drawn, seed)) is not None:
            return Verdict(False, fault)
        its = loss(table, result["weights"])
        if not abs(its - float(result["loss"])) <= ROUNDING * (1 + abs(its) + _size(table)):
            return Verdict(False, f"the loss is {its:.6g}, not {float(result['loss']):.6g}")
        return Verdict(True, measures={"loss": its})

    def _fault(table: Table, history: Floats, stretches: list[int], seed: int) -> str | None:
        ends = _ends(steps(len(table.x)))
        for at in stretches:
            after = lead(table, history[at], ends[at], ends[at + 1], seed)
            if not np.abs(after - history[at + 1]).max() <= ROUNDING * (1 + np.abs(after).max()):
                return f"stretch {at + 1} of the run does not follow from the one before it"
        return None

    def replay(table: Table, result: Result, seed: int) -> Verdict:
        fault = _fault(table, result["history"], list(range(len(result["history"]) - 1)), seed)
        return Verdict(fault is None, fault or "")

    return Workload(
        admit=admit,
        solve=solve,
        shapes=shapes,
        check=check,
        replay=replay,
        work=lambda n, d: 4.0 * n * (d + 1) * outputs * epochs,
        detection=DRAWN / (PARTS - 2),
    )


def _ends(steps: int) -> list[int]:
    """Where the stretches of a run begin and end: as many as there are steps, if these are fewer than PARTS."""
    parts = min(PARTS, steps)
    return [steps * i // parts for i in range(parts + 1)]


def _batches(n: int, batch: int, first: int, end: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """The rows of each step: every epoch has an order of its own."""
    each, epoch, order = -(-n // batch), -1, np.arange(n)
    for step in range(first, end):
        if step // each != epoch:
            epoch = step // each
            order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(n)
        yield order[step % each * batch : (step % each + 1) * batch]


def _with_ones(x: Floats) -> Floats:
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)


def _softmax(found: Floats) -> Floats:
    powers = np.exp(found - found.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _loss(found: Floats, table: Table, classes: int) -> float:
    assert table.y is not None
    if not classes:
        return float(np.mean((found[:, 0] - table.y) ** 2))
    highest = found.max(axis=1)
    total = np.log(np.exp(found - highest[:, None]).sum(axis=1)) + highest
    return float(np.mean(total - found[np.arange(len(found)), table.y.astype(np.int64)]))


def _size(table: Table) -> float:
    assert table.y is not None
    return float(np.mean(table.y**2))
