"""Numbers as zstd of their bytes, plane by plane: the first bytes of all values, then the second ones, and so on.

Bytes of one rank resemble each other (signs and exponents above all), which is what an entropy coder can use:
https://www.hdfgroup.org/2014/03/19/byte-shuffle-filter/ calls it shuffle.
"""

from typing import Any

import numpy as np
import zstandard
from numpy.typing import DTypeLike, NDArray

from tutti.core.codec import BadCode, Bytes

LEVEL = 1
WORD = 4


def squeezed(values: NDArray[Any]) -> bytes:
    """A zstd frame that says its size; values of one byte are not rearranged."""
    width = values.dtype.itemsize
    planes = values.view(np.uint8).reshape(-1, width).T if width > 1 else values
    return zstandard.ZstdCompressor(level=LEVEL).compress(np.ascontiguousarray(planes).tobytes())


def expanded(code: Bytes, dtype: DTypeLike, count: int) -> NDArray[Any]:
    """`count` little-endian values; the frame's own size is checked before memory is taken. Raises BadCode."""
    kind = np.dtype(dtype).newbyteorder("<")
    size = count * kind.itemsize
    try:
        said = zstandard.get_frame_parameters(code).content_size
        if said != size:
            raise BadCode(f"expected {size} bytes of {count} values, the frame says {said}")
        data = zstandard.ZstdDecompressor().decompress(code, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise BadCode(f"not a zstd frame of {size} bytes: {error}") from None
    if len(data) != size:
        raise BadCode(f"expected {size} bytes of {count} values, came {len(data)}")
    if kind.itemsize == 1 or count == 0:
        return np.frombuffer(data, kind)
    planes = np.frombuffer(data, np.uint8).reshape(kind.itemsize, count)
    return np.ascontiguousarray(planes.T).view(kind).reshape(-1)


def split(code: Bytes) -> tuple[memoryview, memoryview]:
    """A code of two frames behind the first one's length: 4 bytes, little-endian. Raises BadCode."""
    view = memoryview(code).cast("B")
    length = int.from_bytes(view[:WORD], "little")
    if len(view) < WORD + length:
        raise BadCode(f"expected a frame of {length} bytes and another, came {len(view)} bytes in all")
    return view[WORD : WORD + length], view[WORD + length :]


def joined(one: bytes, other: bytes) -> bytes:
    """What `split` takes apart."""
    return b"".join((len(one).to_bytes(WORD, "little"), one, other))
