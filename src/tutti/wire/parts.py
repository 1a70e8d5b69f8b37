"""A part of an uploaded table as bytes, which a peer gets sealed."""

import msgspec
import numpy as np

from tutti.core.errors import CorruptBlob
from tutti.domain.sessions import PeerTraining
from tutti.domain.spec import DataSchema

_Shape = tuple[int, ...]


class Array(msgspec.Struct, frozen=True, array_like=True):
    """`x` float32, `y` int64 or float32, as in Examples; C order, little-endian."""

    dtype: str
    shape: _Shape
    data: bytes

    @classmethod
    def of(cls, values: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> "Array":
        return cls(values.dtype.str, values.shape, np.ascontiguousarray(values).tobytes())

    def values(self) -> "np.ndarray[tuple[int, ...], np.dtype[np.generic]]":
        if self.dtype not in ("<f4", "<i8"):
            raise ValueError(f"expected float32 or int64, came {self.dtype}")
        return np.frombuffer(self.data, self.dtype).reshape(self.shape).copy()


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """`name` is the data set's, `training` are this peer's hyper-parameters."""

    name: str
    data: DataSchema
    x: Array
    y: Array
    held_out_x: Array
    held_out_y: Array
    training: PeerTraining


def encode(part: Part) -> bytes:
    return msgspec.msgpack.encode(part)


def decode(data: bytes) -> Part:
    """Raises CorruptBlob."""
    try:
        return msgspec.msgpack.decode(data, type=Part)
    except msgspec.MsgspecError as error:
        raise CorruptBlob(f"not a part of a table: {error}") from None
