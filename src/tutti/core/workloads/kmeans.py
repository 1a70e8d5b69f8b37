"""k-means, checked by replaying drawn steps of a run whose every step is laid open.

No certificate of an optimal clustering is known (finding one is NP-hard, Aloise et al. 2009,
https://doi.org/10.1007/s10994-009-5103-0), and a fixed point alone may be a poor local one. So the job fixes the
run: k-means++ from its seed (Arthur and Vassilvitskii 2007), then Lloyd's iteration up to a cap, and the result
contains the centres after every step. The check re-derives the first centres, replays the first step, the last one
and two drawn ones, and counts labels and inertia anew: 5 passes over the data instead of the whole run. A history
with one false step among T is caught with a chance of 2 / (T - 2) or more: market stakes have to exceed the reward
accordingly. What is always caught: another start, stopping early, wrong centres, labels or inertia at the end.
"""

from collections.abc import Iterator
from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from tutti.core.workload import BadTable, Floats, Result, Table, Verdict, Workload, check_finite, workloads

ROUNDING = 1e-7
"""Relative difference that machines may have in one step; of inertia too."""

DRAWN = 2

TIE = 1e-11
"""Relative difference of squared distances below which a row is as near to one centre as to another: it goes to the
first. Whole numbers have many such rows, and whichever way each machine rounds must not decide."""

BLOCK = 1 << 22
"""Distances that are in memory at a time: all of them, rows times clusters, may be more than any machine has."""


@workloads.register("kmeans")
def kmeans(
    clusters: Annotated[int, Meta(ge=1, le=4096)] = 3, iterations: Annotated[int, Meta(ge=1, le=10_000)] = 100
) -> Workload:
    """Cluster centres, each row's label and the inertia, of one run of Lloyd's iteration from k-means++."""

    def admit(table: Table) -> None:
        check_finite(table, 1)
        if clusters > len(table.x):
            raise BadTable(f"{clusters} clusters are more than there are rows ({len(table.x)}): ask for fewer")

    def shapes(table: Table) -> dict[str, tuple[int, ...]]:
        n, d = table.x.shape
        return {"history": (-1, clusters, d), "centers": (clusters, d), "labels": (n,), "inertia": ()}

    def solve(table: Table, seed: int) -> Result:
        history = [_start(table.x, clusters, seed)]
        while len(history) <= iterations:
            history.append(_step(table.x, history[-1])[0])
            if np.array_equal(history[-1], history[-2]):
                break
        _, labels, inertia = _step(table.x, history[-1])
        return {
            "history": np.array(history),
            "centers": history[-1],
            "labels": labels.astype(np.float64),
            "inertia": np.asarray(inertia),
        }

    def check(table: Table, result: Result, seed: int, check_seed: int) -> Verdict:
        return _check(table.x, result, _start(table.x, clusters, seed), iterations, check_seed)

    def replay(table: Table, result: Result, _: int) -> Verdict:
        return _replay(table.x, result["history"])

    return Workload(
        admit=admit,
        solve=solve,
        shapes=shapes,
        check=check,
        replay=replay,
        work=lambda n, d: 2.0 * n * d * clusters * (iterations + 1),
        detection=min(1.0, 2 / max(1, iterations - 2)),
        longest=iterations + 1,
    )


def _start(x: Floats, k: int, seed: int) -> Floats:
    """k-means++: each further centre is a row, drawn in proportion to the squared distance to those before it."""
    rng = np.random.Generator(np.random.PCG64(seed))
    centres = np.empty((k, x.shape[1]))
    centres[0] = x[rng.integers(len(x))]
    nearest = np.full(len(x), np.inf)
    for i in range(1, k):
        nearest = np.minimum(nearest, ((x - centres[i - 1]) ** 2).sum(axis=1))
        reach = np.cumsum(nearest)
        centres[i] = x[min(int(np.searchsorted(reach, rng.random() * reach[-1], side="right")), len(x) - 1)]
    return centres


def _distances(x: Floats, centres: Floats) -> Iterator[tuple[slice, Floats, Floats]]:
    """Some rows after others: squared distances (rows, k), and what differs by less is a tie (rows, 1).

    Of data far from zero a common centre is taken off first, lest they cancel out.
    """
    middle = centres.mean(axis=0)
    centres = centres - middle
    sizes = (centres**2).sum(axis=1)
    step = max(1, BLOCK // len(centres))
    for first in range(0, len(x), step):
        rows = slice(first, first + step)
        moved = x[rows] - middle
        size = (moved**2).sum(axis=1)[:, None]
        yield rows, size - 2 * moved @ centres.T + sizes, TIE * (size + sizes.max())


def _step(x: Floats, centres: Floats) -> tuple[Floats, NDArray[np.int64], float]:
    """The centres after one step, the labels by the centres before it, and the inertia of these."""
    labels = np.empty(len(x), np.int64)
    for rows, distances, tie in _distances(x, centres):
        labels[rows] = (distances <= distances.min(axis=1, keepdims=True) + tie).argmax(axis=1)
    counts = np.bincount(labels, minlength=len(centres))
    sums = np.stack([np.bincount(labels, column, len(centres)) for column in x.T], axis=1)
    moved = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centres)  # an empty one stays
    return moved, labels, float(((x - centres[labels]) ** 2).sum())


def _check(x: Floats, result: Result, start: Floats, cap: int, seed: int) -> Verdict:
    history, centres = result["history"], result["centers"]
    steps = len(history) - 1
    if not 1 <= steps <= cap:
        return Verdict(False, f"a run has 1 to {cap} steps, this one {steps}")
    size = float(np.abs(x).max())
    near = ROUNDING * max(size, 1e-300)
    if np.abs(history).max() > size + near:
        return Verdict(False, "there are centres beyond all rows")
    if np.abs(history[0] - start).max() > near:
        return Verdict(False, "the first centres are not those of the job's seed")
    if np.abs(history[-1] - centres).max() > 0:
        return Verdict(False, "the centres are not those of the last step")
    rng = np.random.Generator(np.random.PCG64(seed))
    for t in sorted({0, steps - 1, *rng.integers(0, steps, DRAWN).tolist()}):
        if not _follows(x, history[t], history[t + 1], near):
            return Verdict(False, f"step {t + 1} does not follow from the one before it")
    if steps < cap and np.abs(history[-1] - history[-2]).max() > near:
        return Verdict(False, f"it stopped after {steps} of {cap} steps, before the centres stood still")
    return _check_end(x, result, near)


def _replay(x: Floats, history: Floats) -> Verdict:
    """Every step; where the run begins and how it ends, the check has seen already."""
    near = ROUNDING * max(float(np.abs(x).max()), 1e-300)
    for t in range(len(history) - 1):
        if not _follows(x, history[t], history[t + 1], near):
            return Verdict(False, f"step {t + 1} does not follow from the one before it")
    return Verdict(True, measures={"steps": float(len(history) - 1)})


def _follows(x: Floats, before: Floats, after: Floats, near: float) -> bool:
    """Whether `after` is a step from `before`, where rows on the brink of a tie may go to either."""
    moved, labels, _ = _step(x, before)
    wrong = np.flatnonzero(np.abs(moved - after).max(axis=1) > near)
    if len(wrong) == 0:
        return True
    undecided = np.empty(len(x), np.bool_)
    for rows, distances, tie in _distances(x, before):
        beyond = distances - distances.min(axis=1, keepdims=True)
        undecided[rows] = ((beyond > tie / 2) & (beyond <= 2 * tie)).any(axis=1)
    if not undecided.any():
        return False
    for cluster in wrong:  # a cluster's centre must lie where some choice of its undecided rows puts it
        sure = (labels == cluster) & ~undecided
        open_rows = np.flatnonzero(undecided)
        if len(open_rows) > 10 or not _reachable(x, sure, open_rows, after[cluster], before[cluster], near):
            return len(open_rows) > 10 and bool(np.abs(moved - after).max() <= 1e-2 * (near / ROUNDING))
    return True


def _reachable(
    x: Floats, sure: NDArray[np.bool_], open_rows: NDArray[np.int64], centre: Floats, before: Floats, near: float
) -> bool:
    total, count = x[sure].sum(axis=0), int(sure.sum())
    for chosen in range(2 ** len(open_rows)):
        rows = [row for bit, row in enumerate(open_rows) if chosen >> bit & 1]
        n = count + len(rows)
        mean = (total + x[rows].sum(axis=0)) / n if n else before
        if np.abs(mean - centre).max() <= near:
            return True
    return False


def _check_end(x: Floats, result: Result, near: float) -> Verdict:
    labels = result["labels"]
    k = len(result["centers"])
    if ((labels < 0) | (labels >= k) | (labels != np.floor(labels))).any():
        return Verdict(False, f"labels are whole numbers from 0 to {k - 1}")
    own, excess = np.empty(len(x)), np.empty(len(x))
    for rows, distances, _ in _distances(x, result["centers"]):
        own[rows] = np.take_along_axis(distances, labels[rows, None].astype(np.int64), axis=1)[:, 0]
        excess[rows] = own[rows] - distances.min(axis=1)
    if (excess > 1e-9 * (np.abs(own) + (x**2).sum(axis=1)) + near**2).any():
        return Verdict(False, f"{int((excess > near**2).sum())} labels are not those of the nearest centre")
    inertia = float(((x - result["centers"][labels.astype(np.int64)]) ** 2).sum())
    if abs(inertia - float(result["inertia"])) > ROUNDING * inertia + len(x) * near**2:
        return Verdict(False, f"the inertia is {inertia:.6g}, not {float(result['inertia']):.6g}")
    return Verdict(True, measures={"inertia": inertia, "steps": float(len(result["history"]) - 1)})
