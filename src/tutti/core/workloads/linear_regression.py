"""Ridge regression, checked by the residual of its normal equations.

With standardised columns Z, centred target t and lam = ridge * n the loss f(w) = |Z w - t|^2 / 2 + lam |w|^2 / 2 is
lam-strongly convex, so that for every w (Boyd and Vandenberghe, Convex Optimization, 9.1.2)

    f(w) - f* <= |g|^2 / (2 lam),    g = Z' (Z w - t) + lam w.

The check reads the table once: O(n d), where the solution takes O(n d^2 + d^3). Z is not made for it: with
r = X c + b - y, for the coefficients c and the intercept b that were handed in, Z w - t is r less its mean, and Z' r
follows from X' r, from the sum of r and from the columns' sums and squares. It is a proof: what passes is within a
millionth of the optimum, whoever made it, and however.
"""

from typing import Annotated, NamedTuple

import numpy as np
from msgspec import Meta

from tutti.core.workload import BadTable, Floats, Result, Table, Verdict, Workload, check_finite, workloads
from tutti.core.workloads._passes import about, less, pieces

GAP = 1e-6
"""Largest (f - f*) / f; solutions in float64 come to 1e-20, in float32 to 1e-9, one off by a thousandth to 1e-1."""

ROUNDING = 1e-9
"""Relative error that intercept and error may have; a solution in float32 needs its intercept in float64."""


@workloads.register("linear_regression")
def linear_regression(ridge: Annotated[float, Meta(ge=1e-6, le=1e3)] = 1e-3) -> Workload:
    """Coefficients, intercept and mean squared error of a linear model, with a little ridge on standardised columns."""

    def check(table: Table, result: Result, _: int, __: int) -> Verdict:
        with np.errstate(over="ignore", invalid="ignore"):  # of numbers that somebody made up
            return _check(table, result, ridge)

    return Workload(
        admit=_admit,
        solve=lambda t, _: _solve(t, ridge),
        shapes=_shapes,
        check=check,
        replay=lambda t, r, seed: check(t, r, seed, 0),  # the check is a proof: there is nothing to add
        work=lambda n, d: 2.0 * n * d * d + d**3,
    )


def _admit(table: Table) -> None:
    check_finite(table, 2)
    if table.y is None:
        raise BadTable("linear regression needs a target column: name it (--target), or have y in an NPZ file")


def _shapes(table: Table) -> dict[str, tuple[int, ...]]:
    return {"coefficients": (table.x.shape[1],), "intercept": (), "mse": ()}


class _Columns(NamedTuple):
    """Means of the columns, and their standard deviations; a constant column has the scale 1 and counts as zeros."""

    mean: Floats
    scale: Floats
    varies: Floats


def _columns(shift: Floats, sums: Floats, squares: Floats, n: int) -> _Columns:
    """From sums over the rows less `shift`."""
    off = sums / n
    mean, spread = shift + off, np.sqrt(np.maximum(squares / n - off**2, 0.0))
    constant = (spread <= 1e-12 * np.abs(mean)) | (spread == 0)
    return _Columns(mean, np.where(constant, 1.0, spread), np.where(constant, 0.0, 1.0))


def _solve(table: Table, ridge: float) -> Result:
    x, y = table.x, table.y
    assert y is not None
    (n, d), shift = x.shape, about(x)
    sums, squares = np.zeros(d), np.zeros(d)
    for _, c in less(x, shift):
        sums += np.ones(len(c)) @ c
        squares += np.einsum("ij,ij->j", c, c)
    mean, scale, varies = _columns(shift, sums, squares, n)
    target, into = y - y.mean(), varies / scale
    gram, products = np.zeros((d, d)), np.zeros(d)
    for rows in pieces(n, d, least=d):
        z = (x[rows] - mean) * into
        gram += z.T @ z
        products += z.T @ target[rows]
    gram[np.diag_indices_from(gram)] += ridge * n
    coefficients = np.linalg.solve(gram, products) * into
    wrong = 0.0
    for rows in pieces(n, d):
        r = (x[rows] - mean) @ coefficients - target[rows]
        wrong += float(r @ r)
    return {
        "coefficients": coefficients,
        "intercept": np.asarray(y.mean() - mean @ coefficients),
        "mse": np.asarray(wrong / n),
    }


def _check(table: Table, result: Result, ridge: float) -> Verdict:
    x, y, b = table.x, table.y, result["coefficients"]
    assert y is not None
    (n, d), shift, level = x.shape, about(x), float(about(y))
    sums, squares, products = np.zeros(d), np.zeros(d), np.zeros(d)
    offset, wrong, off, size, total = float(result["intercept"] + shift @ b - level), 0.0, 0.0, 0.0, 0.0
    for rows, c in less(x, shift):
        target = y[rows] - level
        r = c @ b + offset - target
        sums += np.ones(len(c)) @ c
        squares += np.einsum("ij,ij->j", c, c)
        products += r @ c
        wrong, off = wrong + float(r @ r), off + float(r.sum())
        size, total = size + float(target @ target), total + float(target.sum())
    mean, scale, varies = _columns(shift, sums, squares, n)
    off /= n
    wrong, size = max(wrong - n * off**2, 0.0), max(size - total**2 / n, 0.0)
    w, lam = b * scale, ridge * n
    gradient = varies * (products - sums * off) / scale + lam * w
    loss = (wrong + lam * float(w @ w)) / 2
    gap = float(gradient @ gradient) / (2 * lam)
    measures = {"gap": gap / max(loss, 1e-300)}
    magnitude = float(max(y.max(), -y.min()) + np.abs(mean * b).sum())
    digits = 1e-14 * magnitude  # what rounding may change in a residual
    if not (np.isfinite(loss) and gap <= GAP * loss + 1e-18 * size + n * d * digits**2):
        return Verdict(False, f"the coefficients are not optimal: the gap may be {measures['gap']:.1e}", measures)
    if not abs(off) <= ROUNDING * magnitude:
        return Verdict(False, f"the intercept is off by {abs(off):.1e}", measures)
    error = abs(float(result["mse"]) - wrong / n)
    if not error <= ROUNDING * (wrong + 1e-6 * size) / n + digits * (2 * (wrong / n) ** 0.5 + digits):
        return Verdict(False, f"the mean squared error is off by {error:.1e}", measures)
    return Verdict(True, measures=measures)
