"""Principal components, checked by orthonormality, by random eigen-residuals, and by looking for what was left out.

For the covariance C, components V (k, d) as rows and their variances L:

1. |V V' - 1| is at most 1e-6.
2. C V' s = V' (L s) for random signs s (Freivalds 1977): a wrong pair shows in every draw, several can only cancel
   with chance 1/2 in each. Two products with the data instead of the d of forming C, unless d is so small that
   forming it is less work.
3. Vectors orthogonal to V, after some power steps, have a Rayleigh quotient of at most lambda_{k+1} <= L_k
   (Courant-Fischer; Golub and Van Loan, Matrix Computations, 8.1): what shows more was left out. An honest result
   can therefore never fail here, but for rounding; a skipped component that stands out is found with a chance that
   grows with every step.
"""

from collections.abc import Callable, Iterator
from typing import Annotated

import numpy as np
from msgspec import Meta

from tutti.core.workload import BadTable, Floats, Result, Table, Verdict, Workload, check_finite, workloads

ORTHONORMAL = 1e-6
RESIDUAL = 1e-4
"""Relative to the largest variance; eigenvectors in float64 come to 1e-14, in float32 to 1e-6."""

OUTSIDE = 1.02
"""How far beyond the last variance the outside may seem to reach."""

PROBES, STEPS = 3, 4

FORMED = 1024
"""Columns up to which forming the covariance was faster than the products, which wait for memory."""

SMALL_BLOCK, LARGE_BLOCK = 1 << 15, 1 << 18
"""Numbers that are centred at a time."""


@workloads.register("pca")
def pca(components: Annotated[int, Meta(ge=1, le=4096)] = 2) -> Workload:
    """The leading principal components and the variance that each explains."""

    def admit(table: Table) -> None:
        check_finite(table, 2)
        if components > min(table.x.shape[1], len(table.x) - 1):
            raise BadTable(f"{components} components are more than {table.x.shape} data have: ask for fewer")

    def shapes(table: Table) -> dict[str, tuple[int, ...]]:
        return {"components": (components, table.x.shape[1]), "explained_variance": (components,)}

    return Workload(
        admit=admit,
        solve=lambda t, _: _solve(t, components),
        shapes=shapes,
        check=_check,
        replay=lambda t, r, _: _replay(t, r, components),
        work=lambda n, d: 2.0 * n * d * d + 10.0 * d**3,
        detection=0.75,
    )


def _solve(table: Table, k: int) -> Result:
    centred = table.x - table.x.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred / (len(centred) - 1))
    return {"components": vectors.T[::-1][:k].copy(), "explained_variance": np.maximum(values[::-1][:k], 0.0)}


def _replay(table: Table, result: Result, k: int) -> Verdict:
    """The variances are unique, the vectors are not; that these belong to them, the check has found already."""
    mine = _solve(table, k)["explained_variance"]
    largest = max(float(mine[0]), 1e-300)
    off = float(np.abs(np.sort(result["explained_variance"])[::-1] - mine).max()) / largest
    if not off <= RESIDUAL + _noise(table.x.shape[1], _largest(table.x), float(table.x.var(axis=0).sum())) / largest:
        return Verdict(False, f"the variances are not the largest: off by {off:.1e}", {"off": off})
    return Verdict(True, measures={"off": off})


def _check(table: Table, result: Result, _: int, seed: int) -> Verdict:
    size = _largest(table.x) or 1.0  # all in parts of the largest value, lest squares overflow
    variances = result["explained_variance"] / size / size
    v = result["components"]
    k, d = v.shape
    off = float(np.abs(v @ v.T - np.eye(k)).max())
    if not off <= ORTHONORMAL:
        return Verdict(False, f"the components are not orthonormal: off by {off:.1e}", {"orthonormal": off})
    times, total = _covariance(table.x, size, 2 * (k + PROBES + STEPS * PROBES))
    rng = np.random.Generator(np.random.PCG64(seed))
    signs = rng.choice([-1.0, 1.0], (k, PROBES))
    outside = _deflated(rng.standard_normal((d, PROBES)), v, 1e-8)
    # both at once: the data are read from memory half as often
    images = times(np.hstack([v.T @ signs, outside]))
    noise = _noise(d, 1.0, total)
    largest = max(float(np.abs(variances).max()), 1e-300)
    residual = float(np.abs(images[:, :PROBES] - v.T @ (variances[:, None] * signs)).max()) / largest
    measures = {"orthonormal": off, "residual": residual}
    if not residual <= RESIDUAL + noise / largest:
        return Verdict(False, f"these are not eigenvectors with these variances: residual {residual:.1e}", measures)
    if d == k:
        return Verdict(True, measures=measures)
    seen, y = 0.0, images[:, PROBES:]
    for _step in range(STEPS):
        seen = max(seen, float((outside * y).sum(axis=0).max()))
        outside = _deflated(y, v, 1e-10 * total)
        y = times(outside)
    seen = max(seen, float((outside * y).sum(axis=0).max()))
    measures["outside"] = seen / max(float(variances.min()), 1e-300)
    if not seen <= OUTSIDE * float(variances.min()) + 1e-9 * total + noise:
        return Verdict(False, f"a component with variance {seen:.3g} or more was left out", measures)
    return Verdict(True, measures=measures)


def _covariance(x: Floats, size: float, columns: int) -> tuple[Callable[[Floats], Floats], float]:
    """What multiplies by the covariance of x / size, and its trace.

    It is formed once if that is less work than so many columns' products with the data, or takes less time. Rows are
    centred some at a time, in the processor's cache, so that memory is read once for each product.
    """
    mean, d = x.mean(axis=0), x.shape[1]
    small = d <= max(columns, FORMED)
    step = max(1, (SMALL_BLOCK if not small else LARGE_BLOCK) // d)

    def blocks() -> Iterator[Floats]:
        for first in range(0, len(x), step):
            yield (x[first : first + step] - mean) / size

    if small:
        formed = np.asarray(sum((c.T @ c for c in blocks()), np.zeros((d, d))) / (len(x) - 1))
        return lambda z: np.asarray(formed @ z), float(np.trace(formed))
    total = sum(float(np.einsum("ij,ij->", c, c)) for c in blocks()) / (len(x) - 1)

    def times(z: Floats) -> Floats:
        return np.asarray(sum((c.T @ (c @ z) for c in blocks()), np.zeros_like(z)) / (len(x) - 1))

    return times, total


def _largest(x: Floats) -> float:
    return max(float(x.max()), -float(x.min()))


def _noise(columns: int, largest: float, total: float) -> float:
    """What rounding alone may change in a covariance: data far from zero lose digits when they are centred."""
    entry = 1e-14 * largest
    return float(columns * entry * (2 * total**0.5 + entry))


def _deflated(z: Floats, v: Floats, least: float) -> Floats:
    """Columns of z made orthogonal to the rows of v, and of unit length; zero where less than `least` is left.

    What is left of next to nothing is rounding, which is orthogonal to nothing.
    """
    for _ in range(2):  # twice is enough (Kahan and Parlett)
        z = z - v.T @ (v @ z)
    norms = np.linalg.norm(z, axis=0)
    return np.asarray(np.where(norms > least, z / np.maximum(norms, 1e-300), 0.0))
