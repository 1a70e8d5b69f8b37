"""The sum of some of a round's updates, from one replica to another: the accumulator of `mean`, exactly.

    MAGIC | count | fraction bits | weight | limit | BLAKE3 of the layout | sums (int64) | maxima (float32)

All little-endian. The layout is known to both; how long the bytes must be follows from it.
"""

import struct

import numpy as np
from blake3 import blake3

from tutti.core.errors import UserError
from tutti.core.params import Layout
from tutti.core.reduce import Mean
from tutti.wire import tensors
from tutti.wire.tensors import Data

MAGIC = b"TUTTI\x00P1"
_HEADER = struct.Struct("<8sIIQd32s")


class BadPartial(UserError):
    """Bytes that are not the sum that was asked for."""


def encode(acc: Mean) -> bytearray:
    """The bytes of an accumulator that is not finished."""
    fields = acc.count, acc.point.fraction_bits, acc.weight, acc.point.limit, _named(acc.layout)
    sums, maxima = acc.sums.astype("<i8", copy=False), acc.maxima.astype("<f4", copy=False)
    return bytearray().join((_HEADER.pack(MAGIC, *fields), sums.data, maxima.data))


def length(like: Mean) -> int:
    """Bytes of a sum that may be merged with `like`."""
    return _HEADER.size + 8 * like.layout.size + 4 * like.counters.size


def check_length(size: int, like: Mean) -> None:
    """Raises BadPartial for so many bytes, of which nothing need be read then."""
    if size != (expected := length(like)):
        raise BadPartial(f"expected a partial sum of {expected} bytes, came {size}")


def decode(data: Data, like: Mean) -> Mean:
    """The accumulator in these bytes, which may be merged with `like`; a view of them. Raises BadPartial."""
    view, size = memoryview(data).cast("B"), like.layout.size
    check_length(len(view), like)
    magic, count, bits, weight, limit, layout = _HEADER.unpack_from(view)
    if magic != MAGIC:
        raise BadPartial("not a partial sum of this version")
    if layout != _named(like.layout) or (bits, limit) != (like.point.fraction_bits, like.point.limit):
        raise BadPartial("a partial sum for another model, or for a cohort of another size")
    sums = np.frombuffer(view, "<i8", size, _HEADER.size)
    maxima = np.frombuffer(view, "<f4", like.counters.size, _HEADER.size + 8 * size)
    if not 1 <= count <= like.max_updates or not count <= weight <= count * like.max_weight:
        raise BadPartial(f"{count} updates cannot weigh {weight}")
    most = int(weight * limit) << bits  # below 2**63, as FixedPoint makes sure
    if size and (sums.max() > most or sums.min() < -most):
        raise BadPartial("a sum is larger than its updates can be")
    if sums[like.counters].any() or not np.isfinite(maxima).all():
        raise BadPartial("a counter is no finite number")
    return Mean(
        like.layout,
        like.max_updates,
        like.max_weight,
        like.point,
        like.blocks,
        like.counters,
        sums,
        maxima,
        count,
        weight,
    )


def check(part: Mean, count: int, weight: int) -> None:
    """Raises BadPartial if it is not the sum of so many updates that weigh so much."""
    if (part.count, part.weight) != (count, weight):
        raise BadPartial(f"expected {count} updates that weigh {weight}, came {part.count} that weigh {part.weight}")


def _named(layout: Layout) -> bytes:
    return blake3(tensors.encode_layout(layout)).digest()
