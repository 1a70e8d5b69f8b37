"""Measures against numbers worked out by hand."""

import numpy as np
import pytest

from tutti.core.evaluation import Fairness, auc, calibration_error, confusion, fairness, softmax


def test_confusion_has_true_classes_in_rows() -> None:
    y, predicted = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 0, 2])
    assert confusion(y, predicted, 4).tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("y", "scores", "expected"),
    [
        ([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], 0.75),  # 3 of 4 pairs are in order
        ([0, 1], [0.0, 1.0], 1.0),
        ([0, 1], [1.0, 0.0], 0.0),
        ([0, 1, 1], [0.5, 0.5, 0.5], 0.5),
        ([0, 0, 1, 1], [1, 2, 2, 3], 0.875),  # 3 pairs in order, one tied
        ([1, 1], [0.1, 0.2], None),
        ([0], [0.3], None),
    ],
)
def test_auc_counts_pairs(y: list[int], scores: list[float], expected: float | None) -> None:
    assert auc(np.array(y), np.array(scores)) == expected


def test_auc_is_that_of_all_pairs() -> None:
    chance = np.random.default_rng(0)
    y, scores = chance.integers(0, 2, 300), chance.integers(0, 40, 300) / 40
    pairs = scores[y == 1][:, None] - scores[y == 0][None]
    assert auc(y, scores) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean(), abs=1e-12)


def test_softmax_of_large_logits() -> None:
    assert softmax(np.array([[1000.0, 1000.0], [0.0, np.log(3.0)]])) == pytest.approx(
        np.array([[0.5, 0.5], [0.25, 0.75]])
    )


def test_calibration_error() -> None:
    """Four rows at 0.75, three of them right: no error. Two rows at 0.95, one right: 0.45, of weight 2 / 6."""
    probabilities = np.array([[0.25, 0.75]] * 4 + [[0.95, 0.05]] * 2)
    y = np.array([1, 1, 1, 0, 0, 1])
    assert calibration_error(y, probabilities, bins=10) == pytest.approx(2 / 6 * 0.45)
    assert calibration_error(np.array([0]), np.array([[1.0, 0.0]])) == 0.0


def test_calibration_bins_are_open_to_the_left() -> None:
    """0.6 and 0.5 with five bins lie in one, (0.4, 0.6], and their gaps -0.4 and +0.5 cancel to 0.1."""
    probabilities = np.array([[0.6, 0.4], [0.5, 0.5]])
    assert calibration_error(np.array([0, 1]), probabilities, bins=5) == pytest.approx(0.1 / 2)


def test_fairness_names_the_worst_node() -> None:
    accuracies = {"zurich": 0.5, "basel": 0.5, "bern": 0.8}
    found = fairness(accuracies)
    assert found == Fairness(pytest.approx(0.6), 0.5, "basel", 0.8, pytest.approx(0.02))  # type: ignore[arg-type]
    losses = fairness(accuracies, lower_is_better=True)
    assert (losses.worst, losses.worst_node, losses.best) == (0.8, "bern", 0.5)
    with pytest.raises(ValueError, match="at least one node"):
        fairness({})
