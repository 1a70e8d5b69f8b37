"""Ridge regression, checked by the residual of its normal equations.

With standardised columns Z, centred target t and lam = ridge * n the loss f(w) = |Z w - t|^2 / 2 + lam |w|^2 / 2 is
lam-strongly convex, so that for every w (Boyd and Vandenberghe, Convex Optimization, 9.1.2)

    f(w) - f* <= |g|^2 / (2 lam),    g = Z' (Z w - t) + lam w.

The check is one product with Z and one with Z': O(n d), where the solution takes O(n d^2 + d^3). It is a proof: what
passes is within a millionth of the optimum, whoever made it, and however.
"""

from typing import Annotated

import numpy as np
from msgspec import Meta

from tutti.core.workload import BadTable, Floats, Result, Table, Verdict, Workload, check_finite, workloads

GAP = 1e-6
"""Largest (f - f*) / f; solutions in float64 come to 1e-20, in float32 to 1e-9, one off by a thousandth to 1e-1."""

ROUNDING = 1e-9
"""Relative error that intercept and error may have; a solution in float32 needs its intercept in float64."""


@workloads.register("linear_regression")
def linear_regression(ridge: Annotated[float, Meta(ge=1e-6, le=1e3)] = 1e-3) -> Workload:
    """Coefficients, intercept and mean squared error of a linear model, with a little ridge on standardised columns."""
    check = _checker(ridge)
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
        raise BadTable("linear regression needs a target column")


def _shapes(table: Table) -> dict[str, tuple[int, ...]]:
    return {"coefficients": (table.x.shape[1],), "intercept": (), "mse": ()}


def _standardised(table: Table) -> tuple[Floats, Floats, Floats, Floats]:
    """Z (n, d), t (n,), and the columns' means and scales; a constant column has scale 1 and becomes zeros."""
    assert table.y is not None
    mean = table.x.mean(axis=0)
    centred = table.x - mean
    spread = np.sqrt(np.mean(centred**2, axis=0))
    constant = spread <= 1e-12 * np.abs(mean)
    scale = np.where(constant | (spread == 0), 1.0, spread)
    return np.where(constant, 0.0, centred / scale), table.y - table.y.mean(), mean, scale


def _solve(table: Table, ridge: float) -> Result:
    z, target, mean, scale = _standardised(table)
    assert table.y is not None
    gram = z.T @ z
    gram[np.diag_indices_from(gram)] += ridge * len(z)
    w = np.linalg.solve(gram, z.T @ target)
    residual = z @ w - target
    coefficients = w / scale
    return {
        "coefficients": coefficients,
        "intercept": np.asarray(table.y.mean() - mean @ coefficients),
        "mse": np.asarray(np.mean(residual**2)),
    }


def _checker(ridge: float):  # type: ignore[no-untyped-def]  # the type is Workload.check's
    def check(table: Table, result: Result, _: int, __: int) -> Verdict:
        z, target, mean, scale = _standardised(table)
        assert table.y is not None
        w, lam = result["coefficients"] * scale, ridge * len(z)
        residual = z @ w - target
        gradient = z.T @ residual + lam * w
        loss = (residual @ residual + lam * (w @ w)) / 2
        gap = float(gradient @ gradient / (2 * lam))
        size = float(target @ target)
        measures = {"gap": gap / max(float(loss), 1e-300)}
        if not gap <= GAP * loss + 1e-18 * size:
            return Verdict(False, f"the coefficients are not optimal: the gap may be {measures['gap']:.1e}", measures)
        offset = abs(float(result["intercept"] - (table.y.mean() - mean @ result["coefficients"])))
        bound = ROUNDING * float(np.abs(table.y).max() + np.abs(mean * result["coefficients"]).sum())
        if not offset <= bound:
            return Verdict(False, f"the intercept is off by {offset:.1e}", measures)
        error = abs(float(result["mse"] - np.mean(residual**2)))
        if not error <= ROUNDING * (float(np.mean(residual**2)) + 1e-6 * size / len(z)):
            return Verdict(False, f"the mean squared error is off by {error:.1e}", measures)
        return Verdict(True, measures=measures)

    return check
