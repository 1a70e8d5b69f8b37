"""Learning-rate schedules: hand-computed factors, and promises that all of them keep."""

from math import sqrt

import pytest

from tutti.core.registry import BadOption, Choice
from tutti.core.schedules import schedules


def factors(text: str, rounds: int) -> list[float]:
    schedule = schedules.build(Choice.parse(text))
    return [schedule(round, rounds) for round in range(1, rounds + 1)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("step:every=2,gamma=0.5", [1, 1, 0.5, 0.5]),
        ("exponential:0.5", [1, 0.5, 0.25, 0.125]),
        ("cosine", [1, (1 + sqrt(0.5)) / 2, 0.5, (1 - sqrt(0.5)) / 2]),
        ("cosine:floor=0.5", [1, (3 + sqrt(0.5)) / 4, 0.75, (3 - sqrt(0.5)) / 4]),
        ("warmup:2", [0.5, 1, 1, 1]),
        ("warmup:8", [0.125, 0.25, 0.375, 0.5]),
    ],
)
def test_factors_by_hand(text: str, expected: list[float]) -> None:
    assert factors(text, 4) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", list(schedules))
@pytest.mark.parametrize("rounds", [1, 2, 100])
def test_factors_are_positive_and_at_most_one(name: str, rounds: int) -> None:
    assert all(0 < factor <= 1 for factor in factors(name, rounds))


@pytest.mark.parametrize("text", ["step:every=0", "exponential:0", "cosine:floor=1.5", "warmup:0", "step:gamma=2.0"])
def test_options_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(BadOption):
        schedules.build(Choice.parse(text))
