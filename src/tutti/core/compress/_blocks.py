"""Whole numbers of few bits, with one float32 scale for each block of values."""

import numpy as np
from numpy.typing import NDArray

from tutti.core.params import Vector

LEAST = np.float32(2.0**-110)
"""Blocks whose values all are smaller count as 0: no scale is subnormal then, whose bits differ between machines."""


def quantised(values: Vector, block: int, most: int) -> tuple[NDArray[np.int8], Vector]:
    """Per value a whole number from -most to most, ties to even; per block max |x| / most."""
    padded = np.zeros((-(-len(values) // block), block), np.float32)
    padded.reshape(-1)[: len(values)] = values
    largest = np.abs(padded).max(axis=1)
    scales = np.where(largest >= LEAST, largest / np.float32(most), np.float32(0))
    divisors = np.where(scales > 0, scales, np.float32(np.inf))[:, None]
    padded /= divisors
    np.rint(padded, out=padded)
    np.clip(padded, -most, most, out=padded)
    return padded.astype(np.int8).reshape(-1)[: len(values)], scales


def restored(numbers: NDArray[np.int8], scales: Vector, block: int) -> Vector:
    """Number times scale, rounded once."""
    padded = np.zeros((len(scales), block), np.float32)
    padded.reshape(-1)[: len(numbers)] = numbers
    with np.errstate(over="ignore", invalid="ignore"):  # a made-up scale: whoever checks for finite values sees it
        padded *= scales[:, None]
    return padded.reshape(-1)[: len(numbers)]
