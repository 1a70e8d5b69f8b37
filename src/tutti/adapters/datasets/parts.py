"""Parts of a data set that a client places on a ring, each as one blob. Not a data source of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from tutti.core.errors import UserError
from tutti.domain.events import Digest
from tutti.domain.spec import DataSchema, Name
from tutti.ports.training import Data, Examples
from tutti.ring.identifiers import Peer
from tutti.ring.keys import key_of

PARTS = 1024
"""Into so many parts rows are divided, so that all of a small ring get some: row i is in part i modulo 1024."""


class BadPart(UserError):
    """A blob that is no part of a data set, or of another one than the others."""


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Rows as they lie in memory: `x` float32; `y` int64 for classes, float32 for targets; little-endian.

    `numbers` are the rows' places in the whole, int64: whoever holds several parts has their rows in that order.
    """

    name: Name
    schema: DataSchema
    numbers: bytes
    x: bytes
    y: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A part before it is placed."""

    blob: bytes
    digest: Digest
    rows: NDArray[np.int64]


def cut(data: Data) -> list[Cut]:
    """The training rows in parts."""
    numbers = np.arange(len(data.train), dtype="<i8")
    return [_cut(data, rows) for part in range(PARTS) if len(rows := numbers[part::PARTS])]


def content(parts: Sequence[Cut]) -> Digest:
    """What the whole is called."""
    return blake3("".join(part.digest for part in parts).encode()).hexdigest()


def _cut(data: Data, rows: NDArray[np.int64]) -> Cut:
    x, y = data.train.x[rows].astype("<f4"), data.train.y[rows].astype(_kind(data.schema))
    blob = msgspec.msgpack.encode(Part(data.name, data.schema, rows.tobytes(), x.tobytes(), y.tobytes()))
    return Cut(blob, blake3(blob).hexdigest(), rows)


def joined(blobs: Sequence[bytes | memoryview]) -> Data:
    """The rows of several parts of one data set; raises BadPart."""
    read = [_read(blob) for blob in blobs]
    name, schema = read[0][:2]
    if any(each[:2] != (name, schema) for each in read):
        raise BadPart(f"not parts of one data set: {sorted({each[0] for each in read})}")
    numbers, x, y = (np.concatenate([each[axis] for each in read]) for axis in (2, 3, 4))
    order = np.argsort(numbers, kind="stable")
    x, y = x[order], y[order]
    return Data(name, schema, Examples(x, y), Examples(x[:0], y[:0]))


def _read(
    blob: bytes | memoryview,
) -> tuple[str, DataSchema, NDArray[np.int64], NDArray[np.float32], NDArray[np.generic]]:
    try:
        part = msgspec.msgpack.decode(blob, type=Part)
        schema = part.schema
        numbers = np.frombuffer(part.numbers, "<i8")
        x = np.frombuffer(part.x, "<f4").reshape(-1, *schema.shape)
        y = np.frombuffer(part.y, _kind(schema))
        if schema.task == "regression":
            y = y.reshape(-1, schema.outputs)
        elif len(y) and not 0 <= y.min() <= y.max() < schema.outputs:
            raise ValueError(f"classes from {y.min()} to {y.max()}, expected 0 to {schema.outputs - 1}")
        if not len(numbers) == len(x) == len(y) > 0 or not np.isfinite(x).all():
            raise ValueError(f"{len(x)} rows, {len(y)} answers and {len(numbers)} numbers, all of them finite")
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadPart(f"not a part of a data set: {error}") from None
    return part.name, schema, numbers, x, y


def _kind(schema: DataSchema) -> str:
    return "<i8" if schema.task == "classification" else "<f4"


def owners(parts: Sequence[Cut], members: Sequence[Peer]) -> dict[Peer, list[Cut]]:
    """Which parts each member owns, by consistent hashing: a part belongs to the successor of its digest's key."""
    ring = sorted(members)
    owned: dict[Peer, list[Cut]] = {peer: [] for peer in ring}
    for part in parts:
        key = key_of(part.digest)
        owned[next((peer for peer in ring if key <= peer.id), ring[0])].append(part)
    return owned
