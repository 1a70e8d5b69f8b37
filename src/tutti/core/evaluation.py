"""How good a model is, beyond loss and accuracy: what it confuses, how it ranks, whether it is sure for a reason,
and whether it serves every node. Numpy only; scores are logits or probabilities as said.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Classes = NDArray[np.int64]
Scores = NDArray[np.floating]


def confusion(y: Classes, predicted: Classes, classes: int) -> NDArray[np.int64]:
    """Counts (classes, classes): row = true class, column = predicted one."""
    return np.bincount(y * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def auc(y: Classes, scores: Scores) -> float | None:
    """The chance that a random positive (y = 1) scores higher than a random negative, ties counting half.

    Area under the ROC curve as the Mann-Whitney statistic (Hanley & McNeil 1982,
    https://doi.org/10.1148/radiology.143.1.7063747); None where one of the classes is missing.
    """
    positive = y == 1
    p, n = int(positive.sum()), int((~positive).sum())
    if p == 0 or n == 0:
        return None
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # tied scores share their mean rank
    return float((ranks[place][positive].sum() - p * (p + 1) / 2) / (p * n))


def softmax(logits: Scores) -> NDArray[np.float64]:
    """Probabilities (n, classes) from logits (n, classes)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def calibration_error(y: Classes, probabilities: Scores, bins: int = 15) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over bins of equal width.

    Guo et al. 2017, https://arxiv.org/abs/1706.04599, equation 3. Probabilities (n, classes); a bin is open to the
    left: (0, 1/15], (1/15, 2/15] …
    """
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == y
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=confidence - hit, minlength=bins)
    return float(np.abs(gaps).sum() / len(y))


@dataclass(frozen=True, slots=True)
class Fairness:
    """How evenly a metric falls on the nodes, each counting once (Li et al. 2020, https://arxiv.org/abs/1905.10497).

    Attributes:
        worst, worst_node: The least value, and whose it is (the first by name among equals).
        variance: Of the values over nodes, in the metric's unit squared.
    """

    mean: float
    worst: float
    worst_node: str
    best: float
    variance: float


def fairness(values: Mapping[str, float], *, lower_is_better: bool = False) -> Fairness:
    """Of one metric by node, such as accuracy (or, with `lower_is_better`, loss); raises ValueError for no nodes."""
    if not values:
        raise ValueError("fairness needs the metric of at least one node")
    names = sorted(values)
    numbers = np.array([values[name] for name in names], np.float64)
    order = numbers if lower_is_better else -numbers
    worst, best = int(order.argmax()), int(order.argmin())
    return Fairness(
        float(numbers.mean()), float(numbers[worst]), names[worst], float(numbers[best]), float(numbers.var())
    )
