"""Named arrays of float64 as safetensors files: the tables that compute jobs are on, and their results.

8 bytes little-endian header length, a JSON header, the values: https://github.com/huggingface/safetensors#format.
Equal arrays give equal bytes, hence equal digests; nothing in a file is ever executed.
"""

from collections.abc import Mapping
from math import prod
from mmap import mmap
from typing import Annotated, TypeAlias

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from tutti.core.workload import Floats, Table
from tutti.wire.tensors import BadTensors

Data: TypeAlias = bytes | bytearray | memoryview | mmap

MAX_HEADER = 64 * 1024
_LENGTH, _ALIGNMENT = 8, 64
_Count = Annotated[int, Meta(ge=0, le=2**48)]


class _Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: Annotated[tuple[_Count, ...], Meta(max_length=8)]
    data_offsets: tuple[_Count, _Count]


def encode(arrays: Mapping[str, Floats]) -> bytes:
    """The whole file."""
    header, at = {}, 0
    plain = {name: np.asarray(array, np.dtype("<f8")) for name, array in sorted(arrays.items())}
    for name, array in plain.items():
        header[name] = _Tensor("F64", array.shape, (at, at + array.nbytes))
        at += array.nbytes
    text = msgspec.json.encode(header)
    text += b" " * (-(_LENGTH + len(text)) % _ALIGNMENT)
    return b"".join((len(text).to_bytes(_LENGTH, "little"), text, *(array.tobytes() for array in plain.values())))


def decode(data: Data) -> dict[str, Floats]:
    """The arrays, as views of `data`; raises BadTensors for whatever is malformed, or of another type."""
    view = memoryview(data).cast("B")
    length = int.from_bytes(view[:_LENGTH], "little")
    if len(view) < _LENGTH or length > min(MAX_HEADER, len(view) - _LENGTH):
        raise BadTensors(f"expected a safetensors file with a header of up to {MAX_HEADER} bytes")
    try:
        header = msgspec.json.decode(view[_LENGTH : _LENGTH + length], type=dict[str, _Tensor])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadTensors(f"the header is not one of safetensors: {error}") from None
    body = view[_LENGTH + length :]
    if len(body) % 8:
        raise BadTensors(f"expected whole numbers of 8 bytes, came {len(body)} bytes")
    values = np.frombuffer(body, np.dtype("<f8"))
    found, at = {}, 0
    for name, tensor in sorted(header.items(), key=lambda item: item[1].data_offsets):
        start, stop = tensor.data_offsets
        if tensor.dtype != "F64" or start != at or stop - start != 8 * prod(tensor.shape) or stop > len(body):
            raise BadTensors(f"{name!r} should be F64, begin at byte {at} and lie within the file's {len(body)} bytes")
        found[name] = _aligned(values[start // 8 : stop // 8]).reshape(tensor.shape)
        at = stop
    if at != len(body):
        raise BadTensors(f"expected {at} bytes of values, came {len(body)}")
    return found


def _aligned(values: NDArray[np.float64]) -> Floats:
    return values if values.flags.aligned else values.copy()


def encode_table(table: Table) -> bytes:
    arrays = {"x": table.x, "y": table.y, "start": table.start}
    return encode({name: array for name, array in arrays.items() if array is not None})


def decode_table(data: Data) -> Table:
    """Raises BadTensors."""
    arrays = decode(data)
    if "x" not in arrays:
        raise BadTensors(f"expected a table with the array 'x', came {', '.join(arrays) or 'nothing'}")
    return Table(arrays["x"], arrays.get("y"), arrays.get("start"))
