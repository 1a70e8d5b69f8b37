"""What each update did for the model: scores of contributions, and what protects them from cheats.

First-order influence is the gradient of the validation loss at the midpoint of the round, along each update: a
first-order Shapley value (cf. Wang et al. 2020, https://arxiv.org/abs/2009.06192; the midpoint rule makes the sum of
scores equal the round's gain to second order) at the price of one gradient, whatever the number of nodes.
Leave-one-out and Banzhaf values (Wang and Jia 2023, https://arxiv.org/abs/2205.15466) audit it; the exact Shapley
value (Shapley 1953) is the slow reference.

A weight alone scores nothing: a score is the update's effect times its share of the weight. Claims of weight are cut
at twice the median, for nobody can check them.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from tutti.core.params import Vector

Scores = NDArray[np.float64]
Coalition = frozenset[int]
"""Some of a round's updates, by their indices; its value is the gain in validation loss without the others."""

SKETCH = 1024
ALIKE = 0.995
"""Cosine above which two updates of a round count as one."""

REPEATED = 1e-3
"""Relative distance below which an update is an earlier one over again."""

EMPTY = 1e-3
"""Share of the cohort's median norm below which an update is nothing."""


def shares(weights: Sequence[int]) -> Scores:
    """Each update's share of the total weight, (n,); claims above twice the median count as that."""
    claimed = np.asarray(weights, np.float64)
    cut = np.minimum(claimed, 2 * np.median(claimed))
    return np.asarray(cut / cut.sum())


def clips(norms: Scores) -> Scores:
    """Factors (n,) that bring every update to the median norm or below: a scaled update earns no more."""
    median = float(np.median(norms))
    return np.asarray(np.minimum(1.0, median / np.maximum(norms, 1e-300)))


def influence(slopes: Scores, norms: Scores, weights: Sequence[int]) -> Scores:
    """First-order gain in loss of each update, (n,); negative for one that did harm.

    `slopes`: the inner products <gradient, delta_i> at the midpoint (w_t + w_{t+1}) / 2; `norms`: |delta_i|.
    """
    return -slopes * clips(norms) * shares(weights)


def sketch(delta: Vector, seed: int) -> NDArray[np.float32]:
    """Count sketch of an update, float32 (SKETCH,): inner products are kept, 1,024 numbers remain.

    Charikar et al. 2002, https://doi.org/10.1007/3-540-45465-9_59. Sketches of one seed can be compared.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    found = np.zeros(SKETCH)
    for start in range(0, len(delta), 1 << 20):  # in pieces, so that memory does not grow with the model
        part = delta[start : start + (1 << 20)].astype(np.float64)
        places = rng.integers(0, 2 * SKETCH, len(part), dtype=np.int64)
        signed = np.where(places < SKETCH, part, -part)
        found += np.bincount(places % SKETCH, signed, SKETCH)
    return found.astype(np.float32)


def multiplicity(sketches: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many updates (n,), each itself included, are alike (cosine > ALIKE) with the earliest like it.

    Divide scores by it: whoever sends one update under many names earns once, and honest nodes whose updates are
    all alike, as those of a small model are, earn equally.
    """
    unit = _unit(sketches)
    first: list[int] = []
    for i in range(len(unit)):
        alike = np.flatnonzero(unit[:i] @ unit[i] > ALIKE)
        first.append(first[alike[0]] if len(alike) else i)
    return np.bincount(first, minlength=len(first))[first]


def repeated(sketches: NDArray[np.float32], past: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which updates (n,) are one of `past` (m, SKETCH) over again, but for noise of a thousandth."""
    if not len(past):
        return np.zeros(len(sketches), np.bool_)
    norms = np.maximum(np.linalg.norm(sketches, axis=1), 1e-30)
    distances = np.array([np.linalg.norm(past - one, axis=1).min() for one in sketches])
    return np.asarray(distances < REPEATED * norms)


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, np.float32(1e-30)), np.float32)


# -- audits -------------------------------------------------------------------------------------------


def all_but_one(n: int) -> list[Coalition]:
    """The coalitions that leave-one-out needs: everybody, and everybody but each."""
    everybody = frozenset(range(n))
    return [everybody, *(everybody - {i} for i in range(n))]


def leave_one_out(values: Sequence[float]) -> Scores:
    """What the whole loses without each, (n,), from the values (n + 1,) of `all_but_one`."""
    return np.array([values[0] - without for without in values[1:]])


def coalitions(n: int, count: int, seed: int) -> list[Coalition]:
    """Random coalitions, each update in or out with equal chance."""
    members = np.random.Generator(np.random.PCG64(seed)).random((count, n)) < 0.5
    return [frozenset(np.flatnonzero(row).tolist()) for row in members]


def banzhaf(values: Sequence[float], of: Sequence[Coalition], n: int) -> Scores:
    """Banzhaf values (n,) by maximum sample reuse: mean value of coalitions with i, minus that of those without."""
    members = np.array([[i in some for i in range(n)] for some in of])
    worth, found = np.asarray(values, np.float64), np.zeros(n)
    for i in range(n):
        inside = members[:, i]
        if inside.any() and not inside.all():
            found[i] = worth[inside].mean() - worth[~inside].mean()
    return found


def shapley(value: Callable[[Coalition], float], n: int) -> Scores:
    """Exact Shapley values (n,): the reference, at 2^n evaluations."""
    coalitions = [frozenset(some) for size in range(n + 1) for some in combinations(range(n), size)]
    worth = {some: value(some) for some in coalitions}
    found = np.zeros(n)
    for some in coalitions:
        for i in set(range(n)) - some:
            found[i] += (worth[some | {i}] - worth[some]) / (n * comb(n - 1, len(some)))
    return found
