"""Principal components, handed in with the covariance that they are of, which is a proof of them.

For the covariance C, components V (k, d) as rows and their variances L:

1. C is that of the table: C s is what one pass over the rows gives for a random, Gaussian s (Freivalds 1977). One that
   is off by RESIDUAL of its largest variance passes with a chance of some d^1.5 1e-8, 1e-3 at most.
2. |V V' - 1| is at most 1e-6, and C V' = V' L.
3. No other component has more variance than OUTSIDE times the last: with P = 1 - V' V, OUTSIDE L_k 1 - P C P is
   positive definite, as its Cholesky factorisation finds for sure (Golub and Van Loan, Matrix Computations, 4.2). An
   honest result can never fail here, but for rounding, for which there is room.

Only the first reads the table, once, where the work multiplies all of it by itself: O(n d) for O(n d^2); what comes
after takes a thirtieth of the eigenvectors that the work needs.
"""

from typing import Annotated

import numpy as np
from msgspec import Meta

from tutti.core.workload import BadTable, Floats, Result, Table, Verdict, Workload, check_finite, workloads
from tutti.core.workloads._passes import SOME, about, less, pieces

ORTHONORMAL = 1e-6
RESIDUAL = 1e-4
"""Relative to the largest variance; eigenvectors in float64 come to 1e-14, in float32 to 1e-6."""

LARGEST = 1e250
"""Sum of variances; those of a table that is admitted come to 1e204."""

COVARIANCE = 1e-12
"""Error of C s relative to the sum of all variances; 64 bits come to 1e-14, and 32 bits are not enough."""

OUTSIDE = 1.02
"""How far beyond the last variance the outside may reach."""

MOST_COLUMNS = 2048
"""A covariance of more would not be handed in any more."""


@workloads.register("pca")
def pca(components: Annotated[int, Meta(ge=1, le=MOST_COLUMNS)] = 2) -> Workload:
    """The leading principal components, the variance that each explains, and the covariance that they are of."""

    def admit(table: Table) -> None:
        check_finite(table, 2)
        if table.x.shape[1] > MOST_COLUMNS:
            raise BadTable(f"principal components are computed of {MOST_COLUMNS} columns at most: leave some out")
        if components > min(table.x.shape[1], len(table.x) - 1):
            raise BadTable(f"{components} components are more than {table.x.shape} data have: ask for fewer")

    def shapes(table: Table) -> dict[str, tuple[int, ...]]:
        d = table.x.shape[1]
        return {"components": (components, d), "explained_variance": (components,), "covariance": (d, d)}

    def check(table: Table, result: Result, _: int, check_seed: int) -> Verdict:
        with np.errstate(over="ignore", invalid="ignore"):  # of numbers that somebody made up
            return _check(table, result, check_seed)

    return Workload(
        admit=admit,
        solve=lambda t, _: _solve(t, components),
        shapes=shapes,
        check=check,
        replay=lambda t, r, _: _replay(t, r, components),
        work=lambda n, d: 2.0 * n * d * d + 10.0 * d**3,
        detection=0.999,
    )


def _solve(table: Table, k: int) -> Result:
    x = table.x
    (n, d), mean = x.shape, x.mean(axis=0)
    covariance = np.zeros((d, d))
    for rows in pieces(n, d, least=d):
        c = x[rows] - mean
        covariance += c.T @ c
    covariance /= n - 1
    values, vectors = np.linalg.eigh(covariance)
    return {
        "components": vectors.T[::-1][:k].copy(),
        "explained_variance": np.maximum(values[::-1][:k], 0.0),
        "covariance": covariance,
    }


def _replay(table: Table, result: Result, k: int) -> Verdict:
    """The variances are unique, the vectors are not; that these belong to them, the check has found already."""
    mine = _solve(table, k)
    variances, total = mine["explained_variance"], float(np.trace(mine["covariance"]))
    largest = max(float(variances[0]), 1e-300)
    off = float(np.abs(np.sort(result["explained_variance"])[::-1] - variances).max()) / largest
    if not off <= RESIDUAL + _noise(table.x, total) / largest:
        return Verdict(False, f"the variances are not the largest: off by {off:.1e}", {"off": off})
    return Verdict(True, measures={"off": off})


def _check(table: Table, result: Result, seed: int) -> Verdict:
    v, variances, covariance = result["components"], result["explained_variance"], result["covariance"]
    (k, d), total = v.shape, float(np.trace(covariance))
    orthonormal = float(np.abs(v @ v.T - np.eye(k)).max())
    measures = {"orthonormal": orthonormal}
    if not orthonormal <= ORTHONORMAL:
        return Verdict(False, f"the components are not orthonormal: off by {orthonormal:.1e}", measures)
    if not 0 <= total <= LARGEST:
        return Verdict(False, f"the variances come to {total:.1e}, which are those of no table", measures)
    noise = _noise(table.x, total)
    probe: Floats = np.random.Generator(np.random.PCG64(seed)).standard_normal((d,))
    off = float(np.abs(covariance @ probe - _covariance_times(table.x, probe)).max())
    measures["covariance"] = off / max(total, 1e-300)
    if not off <= COVARIANCE * total + noise:
        return Verdict(False, f"the covariance is not that of the table: off by {measures['covariance']:.1e}", measures)
    largest = max(float(np.abs(variances).max()), 1e-300)
    images = covariance @ v.T
    measures["residual"] = float(np.abs(images - v.T * variances).max()) / largest
    if not measures["residual"] <= RESIDUAL + noise / largest:
        return Verdict(
            False, f"these are not eigenvectors with these variances: residual {measures['residual']:.1e}", measures
        )
    bound = OUTSIDE * float(variances.min()) + 1e-9 * total + noise
    if not _below(bound, covariance - images @ v - v.T @ (images.T - (v @ images) @ v)):
        return Verdict(False, f"a component with a variance of more than {bound:.3g} was left out", measures)
    return Verdict(True, measures=measures)


def _covariance_times(x: Floats, s: Floats) -> Floats:
    """C s in one pass: (X - m)' (X - m) s = (X - a)' (X - a) s - n (a - m) (a - m)' s for any a."""
    (n, d), shift = x.shape, about(x)
    sums, products = np.zeros(d), np.zeros(d)
    for _, c in less(x, shift):
        sums += np.ones(len(c)) @ c
        products += (c @ s) @ c
    mean = sums / n
    return np.asarray((products - n * float(mean @ s) * mean) / (n - 1))


def _below(bound: float, matrix: Floats) -> bool:
    """Whether all eigenvalues of a symmetric matrix are."""
    if not bound > 0:
        return bool(np.abs(matrix).max() <= 0)
    try:
        np.linalg.cholesky(np.eye(len(matrix)) - (matrix + matrix.T) / (2 * bound))
    except np.linalg.LinAlgError:
        return False
    return True


def _noise(x: Floats, total: float) -> float:
    """What rounding alone may change in a covariance: data far from zero lose digits when they are centred."""
    entry = 1e-14 * float(np.abs(x[:: max(1, len(x) // SOME)].mean(axis=0)).max())
    return float(x.shape[1] * entry * (2 * total**0.5 + entry))
