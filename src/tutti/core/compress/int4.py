"""Four bits a value, in blocks of 64 with a scale each; what is left out is kept for the next round."""

import numpy as np

from tutti.core.codec import Bytes, Codec, codecs
from tutti.core.compress._blocks import quantised, restored
from tutti.core.compress._bytes import expanded, joined, split, squeezed
from tutti.core.params import Vector

BLOCK, MOST = 64, 7


@codecs.register("int4")
def int4() -> Codec:
    """Four bits a value in blocks of 64, with error feedback: an eighth of the bytes."""
    return Codec(_encode, _decode, 7.0, feedback=True)


def _encode(values: Vector) -> bytes:
    numbers, scales = quantised(values, BLOCK, MOST)
    nibbles = np.zeros(len(numbers) + len(numbers) % 2, np.uint8)
    nibbles[: len(numbers)] = numbers + 8
    return joined(squeezed(scales), squeezed(nibbles[::2] | nibbles[1::2] << 4))


def _decode(code: Bytes, size: int) -> Vector:
    scales, pairs = split(code)
    packed = expanded(pairs, "u1", (size + 1) // 2)
    nibbles = np.empty((len(packed), 2), np.uint8)
    nibbles[:, 0], nibbles[:, 1] = packed & 15, packed >> 4
    numbers = nibbles.reshape(-1)[:size].astype(np.int8) - np.int8(8)
    return restored(numbers, expanded(scales, "f4", -(-size // BLOCK)), BLOCK)
