"""The sum of some of a round's updates, from one replica to another: the accumulator of `mean`, exactly.

    MAGIC | count | fraction bits | weight | limit | BLAKE3 of the layout | sums (int64) | maxima (float32)

All little-endian. The layout is known to both; how long the bytes must be follows from it.
"""

import struct

import numpy as np
from blake3 import blake3

from tutti.core.errors import UserError
from tutti.core.fixedpoint import Sums
from tutti.core.params import Layout, Vector
from tutti.core.reduce import Mean
from tutti.wire import tensors
from tutti.wire.tensors import Data

MAGIC = b"TUTTI\x00P1"
_HEADER = struct.Struct("<8sIIQd32s")


class BadPartial(UserError):
    """Bytes that are not the sum that was asked for."""


def room_for(acc: Mean) -> bytearray:
    """Bytes in which an empty accumulator makes its sum from now on, so that it need not be copied to travel."""
    room, empty = bytearray(length(acc)), acc.maxima
    acc.sums, acc.maxima = _arrays(memoryview(room), acc)
    acc.maxima[:] = empty
    return room


def encode(acc: Mean, room: bytearray) -> bytearray:
    """The room that an accumulator has, which is not finished, with what belongs before its sums."""
    fields = acc.count, acc.point.fraction_bits, acc.weight, acc.point.limit, _named(acc.layout)
    _HEADER.pack_into(room, 0, MAGIC, *fields)
    return room


def _arrays(view: memoryview, like: Mean) -> tuple[Sums, Vector]:
    sums = np.frombuffer(view, "<i8", like.layout.size, _HEADER.size)
    return sums, np.frombuffer(view, "<f4", like.counters.size, _HEADER.size + sums.nbytes)


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
    sums, maxima = _arrays(view, like)
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
