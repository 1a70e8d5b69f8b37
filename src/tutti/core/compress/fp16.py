"""Half precision, scaled by a power of two so that the largest value nearly fills its range.

Updates are small: unscaled they would be subnormal halves, which are coarse, and slow to make.
"""

import numpy as np

from tutti.core.codec import BadCode, Bytes, Codec, codecs
from tutti.core.compress._bytes import expanded, squeezed
from tutti.core.params import Vector

TOP = 15
"""The largest value is brought to between 2^14 and 2^15; halves end at 65504."""

LEAST, MOST = -80, 128
"""Exponents of a largest value; below, all values count as 0, so that none decodes to a subnormal float32."""


@codecs.register("fp16")
def fp16() -> Codec:
    """Half precision under a common scale: half the bytes, an error of 0.02 %."""
    return Codec(_encode, _decode, 2.0)


def _encode(values: Vector) -> bytes:
    largest = float(np.abs(values).max(initial=0.0))
    exponent = int(np.frexp(largest)[1])
    if exponent < LEAST:
        values, exponent = np.zeros_like(values), 0
    scaled = (values * np.float32(2.0 ** (TOP - exponent))).astype("<f2")
    return exponent.to_bytes(2, "little", signed=True) + squeezed(scaled)


def _decode(code: Bytes, size: int) -> Vector:
    exponent = int.from_bytes(bytes(code[:2]), "little", signed=True)
    if not LEAST <= exponent <= MOST:
        raise BadCode(f"expected an exponent of {LEAST} to {MOST}, came {exponent}")
    halves = expanded(memoryview(code)[2:], "f2", size)
    with np.errstate(over="ignore", invalid="ignore"):  # made-up halves: whoever checks for finite values sees them
        return halves.astype(np.float32) * np.float32(2.0 ** (exponent - TOP))
