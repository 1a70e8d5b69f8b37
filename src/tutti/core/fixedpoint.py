"""Exact sums and means of float32 vectors, in 64-bit fixed point.

A value `x` with weight `w` contributes the integer rint(x * w * 2**f). A float32 has 24 significant bits and a
weight at most 24, so `x * w` is exact in a double, scaling by a power of two keeps it so, and the contribution
is the same integer on every machine. Integer sums do not depend on order or grouping: neither does the mean.

Rounding is done by adding 1.5 * 2**52: doubles there are one apart, so the sum is rounded to the nearest integer
(ties to even) and its bit pattern, less that of 1.5 * 2**52, is the integer. It holds up to a magnitude of 2**51.
The slow twin of this file is reference.py; the fast one _kernels.c. All three agree bit for bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tutti.core.errors import UserError
from tutti.core.params import Vector

try:
    from tutti.core import _kernels
except ImportError:  # built without a C compiler
    _kernels = None  # type: ignore[assignment]

Sums: TypeAlias = NDArray[np.int64]
Blocks: TypeAlias = NDArray[np.int64]
"""Pairs (start, stop), each short enough for the sums between them to stay in the cache."""

MAX_WEIGHT = 2**24
MIN_LIMIT_BITS = 8
MIN_FRACTION_BITS = 19
MAX_FRACTION_BITS = 32  # finer than half a unit in the last place of any parameter above 1/256
CONTRIBUTION_BITS = 51

_BLOCK = 32768
_MAGIC = 1.5 * 2.0**52
_MAGIC_BITS = np.int64(np.float64(_MAGIC).view(np.int64))


class TooCoarse(UserError):
    """So many updates of such weights cannot be summed in 64 bits with useful precision."""


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """How values become integers: `fraction_bits` after the point, magnitudes up to `limit` (both powers of two)."""

    fraction_bits: int
    limit: float

    def scale(self, weight: int) -> float:
        return float(weight) * 2.0**self.fraction_bits


def fixed_point(max_updates: int, max_weight: int) -> FixedPoint:
    """The finest format in which `max_updates` updates of weight up to `max_weight` cannot overflow.

    A contribution has at most 51 bits, and fewer where the sum of all would not fit 63. What the weight leaves
    goes to the limit (at least 256) and the fraction (at most 32 bits); bits beyond that raise the limit.
    Raises TooCoarse if fewer than 19 are left for the fraction.
    """
    if max_updates < 1 or not 1 <= max_weight <= MAX_WEIGHT:
        raise TooCoarse(
            f"expected at least 1 update and a largest weight from 1 to {MAX_WEIGHT}, "
            f"came {max_updates} updates and weight {max_weight}"
        )
    bits = min(CONTRIBUTION_BITS, 63 - max_updates.bit_length()) - (max_weight - 1).bit_length()
    fraction_bits = min(MAX_FRACTION_BITS, bits - MIN_LIMIT_BITS)
    if fraction_bits < MIN_FRACTION_BITS:
        raise TooCoarse(
            f"{max_updates} updates of weight up to {max_weight} leave {fraction_bits} bits after the point where "
            f"{MIN_FRACTION_BITS} are needed; lower the largest weight by {2 ** (MIN_FRACTION_BITS - fraction_bits)} "
            "times, or ask fewer nodes"
        )
    return FixedPoint(fraction_bits, 2.0 ** (bits - fraction_bits))


def blocks_of(spans: Sequence[slice]) -> Blocks:
    """Cut spans into blocks, in order."""
    starts = [np.arange(span.start, span.stop, _BLOCK) for span in spans]
    stops = [np.minimum(start + _BLOCK, span.stop) for start, span in zip(starts, spans, strict=True)]
    if not starts:
        return np.zeros((0, 2), np.int64)
    return np.stack([np.concatenate(starts), np.concatenate(stops)], axis=1)


def accumulate_numpy(
    sums: Sums,
    deltas: Sequence[Vector],
    scales: Sequence[float],
    blocks: Blocks,
    limit: float,
    anew: bool = False,
) -> bool:
    """Add rint(delta * scale) of every delta to the sums, in place; False if a value was beyond the limit.

    `anew`: to 0 in the blocks, whatever the sums hold; they need not have been written. A block of a delta that holds
    NaN or a magnitude above the limit adds nothing. Since integers can be taken away again exactly, a second call with
    negated scales undoes the first.
    """
    scratch = np.empty(_BLOCK)
    clean = True
    for start, stop in blocks.tolist():
        part, shifted = sums[start:stop], scratch[: stop - start]
        if anew:
            part[:] = 0
        for delta, scale in zip(deltas, scales, strict=True):
            values = delta[start:stop]
            if not _within(values, limit):
                clean = False
                continue
            np.multiply(values, scale, out=shifted, dtype=np.float64)
            shifted += _MAGIC
            part += shifted.view(np.int64)
            part -= _MAGIC_BITS
    return clean


def all_within_numpy(values: Vector, blocks: Blocks, limit: float) -> bool:
    """Whether the blocks hold no NaN and no magnitude above the limit."""
    return all(_within(values[start:stop], limit) for start, stop in blocks.tolist())


def _within(values: Vector, limit: float) -> bool:
    return bool(values.max() <= limit and values.min() >= -limit)  # NaN fails both


accumulate = accumulate_numpy if _kernels is None else _kernels.accumulate
all_within = all_within_numpy if _kernels is None else _kernels.all_within


def divide_in_place(sums: Sums, total: int, fraction_bits: int) -> Vector:
    """sums / (total * 2**fraction_bits), correctly rounded to float32, written over the first half of `sums`.

    `total` is below 2**37 and the sums are no further from zero than 2**63 - 1, as FixedPoint makes sure.
    """
    divide(sums, total, fraction_bits)
    return sums.view(np.float32)[: sums.size]


def divide_numpy(sums: Sums, total: int, fraction_bits: int) -> None:
    """Write the quotients of divide_in_place over the first half of `sums`."""
    mean = sums.view(np.float32)[: sums.size]
    divisor = float(total) * 2.0**fraction_bits
    for start in range(0, sums.size, _BLOCK):  # upwards: a mean is written where sums have been read already
        block = sums[start : start + _BLOCK]
        quotient = block / divisor
        mean[start : start + _BLOCK] = _settled(quotient, block, total, fraction_bits)


divide = divide_numpy if _kernels is None else _kernels.divide


_LOW = np.int64(2**29 - 1)  # the bits of a double that a float32 lacks
_HALF = np.int64(2**28)
_DOUBT = np.int64(4)  # a quotient of three roundings is off by at most three units in its last place


def _settled(quotient: NDArray[np.float64], sums: Sums, total: int, fraction_bits: int) -> NDArray[np.float64]:
    """Quotients that round to float32 as the exact ones would.

    Those next to the middle of two float32 values are compared with it in integers, and put on the right side.
    """
    doubtful = np.flatnonzero(np.abs((quotient.view(np.int64) & _LOW) - _HALF) <= _DOUBT)
    if doubtful.size:
        middle = (quotient[doubtful].view(np.int64) & ~_LOW) | _HALF
        mantissa, exponent = np.frexp(np.abs(middle.view(np.float64)))
        product = (mantissa * 2.0**25).astype(np.int64) * total
        shift = exponent.astype(np.int64) - 25 + fraction_bits
        exact = np.abs(sums[doubtful]) << np.maximum(-shift, 0)
        side = np.sign(exact - (product << np.maximum(shift, 0)))
        quotient[doubtful] = (middle + side).view(np.float64)
    return quotient
