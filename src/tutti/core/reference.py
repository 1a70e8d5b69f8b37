"""The weighted mean of reduce.py once more, slow and obvious: Python integers and fractions, one value at a time."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from tutti.core.params import Params, Role
from tutti.core.reduce import Update


def weighted_mean(updates: Sequence[Update], fraction_bits: int) -> Params:
    """What `fold(weighted_mean(), ...)` must return, bit for bit."""
    mean = Params.zeros(updates[0].delta.layout)
    for entry in mean.layout.entries:
        span = mean.layout.spans[entry.name]
        for i in range(span.start, span.stop):
            values = [(float(update.delta.buffer[i]), update.weight) for update in updates]
            if entry.role is Role.COUNTER:
                mean.buffer[i] = max(value for value, _ in values) + 0.0
            else:
                mean.buffer[i] = _mean(values, fraction_bits)
    return mean


def _mean(values: Sequence[tuple[float, int]], fraction_bits: int) -> np.float32:
    one = 2**fraction_bits
    total = sum(round(Fraction(value) * weight * one) for value, weight in values)  # ties to even
    return nearest_float32(Fraction(total, one * sum(weight for _, weight in values)))


def nearest_float32(exact: Fraction) -> np.float32:
    """The float32 next to a fraction; of two equally near the one whose last bit is 0."""
    guess = np.float32(float(exact))
    near = (np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf)))
    return min(near, key=lambda value: (abs(Fraction(float(value)) - exact), int(value.view(np.int32)) & 1))
