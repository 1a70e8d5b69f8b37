"""The rules of this package once more, slow and obvious: whole matrices in float64, one line of a paper each.

All take the updates as rows of a float64 matrix (n, size) and return float64 (size,).
"""

import numpy as np

from tutti.core.robust._columns import Matrix


def median(rows: Matrix) -> Matrix:
    return np.asarray(np.median(rows, axis=0))


def trimmed_mean(rows: Matrix, cut: int) -> Matrix:
    ordered = np.sort(rows, axis=0)
    return np.asarray(ordered[cut : len(rows) - cut].mean(axis=0))


def krum_scores(rows: Matrix, f: int) -> list[float]:
    """The sum of squared distances to the n - f - 2 closest others, at least one if there is any."""
    scores = []
    for i, row in enumerate(rows):
        distances = sorted(float(((row - other) ** 2).sum()) for j, other in enumerate(rows) if j != i)
        scores.append(sum(distances[: max(1, len(rows) - f - 2)]))
    return scores


def multi_krum(rows: Matrix, f: int, m: int) -> Matrix:
    """Krum for m = 1."""
    return np.asarray(rows[np.argsort(krum_scores(rows, f), kind="stable")[:m]].mean(axis=0))


def bulyan(rows: Matrix, f: int) -> Matrix:
    theta, left, chosen = len(rows) - 2 * f, list(rows), []
    for _ in range(theta):
        chosen.append(left.pop(int(np.argmin(krum_scores(np.array(left), f)))))
    return np.array([closest_to_median(column, theta - 2 * f) for column in np.array(chosen).T])


def closest_to_median(values: Matrix, count: int) -> float:
    """The mean of the values next to the median; of two equally near, the smaller one."""
    middle = np.median(values)
    ordered = sorted(values.tolist(), key=lambda value: (abs(value - middle), value))
    return float(np.mean(ordered[:count]))


def geometric_median_cost(rows: Matrix, v: Matrix) -> float:
    return float(np.linalg.norm(rows - v, axis=1).sum())


def centred_clipping(rows: Matrix, tau: float | None, iterations: int) -> Matrix:
    v = np.zeros(rows.shape[1])
    for _ in range(iterations):
        v = v + norm_bounding(rows - v, tau)
    return v


def norm_bounding(rows: Matrix, bound: float | None) -> Matrix:
    norms = [float(np.linalg.norm(row)) for row in rows]
    radius = sorted(norms)[(len(norms) - 1) // 2] if bound is None else bound
    return np.asarray(
        sum(row * min(1.0, radius / norm if norm else 1.0) for row, norm in zip(rows, norms, strict=True)) / len(rows)
    )


def fltrust(rows: Matrix, root: Matrix) -> Matrix:
    length = np.linalg.norm(root)
    trust = [max(0.0, row @ root / (np.linalg.norm(row) * length)) for row in rows]
    return np.asarray(
        sum(t * length / np.linalg.norm(row) * row for t, row in zip(trust, rows, strict=True)) / sum(trust)
    )
