"""The problem that measures machines: exact, checked for a fraction of its work, and not to be guessed."""

import numpy as np
import pytest

from tutti.core import challenge
from tutti.core.challenge import SIZE, VECTORS, WIDTH, P, answer, given, holds, packed, reduced


def by_hand(seed: int, steps: int) -> bytes:
    """The definition, in whole numbers."""
    a, b = (part.astype(np.int64) for part in given(seed))
    for t in range(steps):
        b = a @ np.roll(b, t + 1, axis=0) % P
    return (b % P).astype(np.uint8).tobytes()


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_answer_is_the_definition_to_the_last_bit(steps):
    assert answer(5, steps) == by_hand(5, steps)
    assert holds(answer(5, steps), 5, steps, 99)


def test_no_sum_is_rounded():
    assert SIZE * 90 * 90 < 2**24
    y = np.arange(-SIZE * 8100, SIZE * 8100, 7, dtype=np.float32)
    assert np.abs(reduced(y)).max() <= 90
    assert packed(reduced(y)) == (y.astype(np.int64) % P).astype(np.uint8).tobytes()


def test_one_wrong_number_is_found_whatever_it_is():
    right = bytearray(answer(3, 2))
    for seed in range(200):
        rng = np.random.default_rng(seed)
        at, wrong = int(rng.integers(len(right))), bytearray(right)
        wrong[at] = (wrong[at] + int(rng.integers(1, P))) % P
        assert not holds(bytes(wrong), 3, 2, seed)


@pytest.mark.parametrize(
    "came", [b"", b"\x00", bytes(SIZE * WIDTH), bytes([P]) * (SIZE * WIDTH), bytes([255]) * (SIZE * WIDTH)]
)
def test_what_is_no_answer_is_none(came):
    assert not holds(came, 3, 2, 0)


def test_another_seed_or_fewer_steps_are_no_answer():
    assert not holds(answer(4, 3), 3, 3, 1)
    assert not holds(answer(3, 2), 3, 3, 1)


def test_its_check_is_a_fraction_of_the_work():
    assert WIDTH / VECTORS == 16
    assert challenge.operations(6) == 2 * 512 * 512 * 64 * 6
