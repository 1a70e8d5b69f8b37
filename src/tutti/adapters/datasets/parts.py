"""A part of a data set that a client has placed at a member of a ring, as one blob. Not a data source of its own."""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from tutti.core.errors import UserError
from tutti.domain.spec import DataSchema, Name
from tutti.ports.training import Data, Examples
from tutti.ring.identifiers import Peer, identifier


class BadPart(UserError):
    """A blob that is no part of a data set."""


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Rows as they lie in memory: `x` float32; `y` int64 for classes, float32 for targets; little-endian."""

    name: Name
    schema: DataSchema
    x: bytes
    y: bytes


def encode(data: Data) -> bytes:
    """The training rows."""
    rows = data.train
    return msgspec.msgpack.encode(
        Part(data.name, data.schema, rows.x.astype("<f4").tobytes(), rows.y.astype(_kind(data.schema)).tobytes())
    )


def decode(blob: bytes | memoryview) -> Data:
    """Raises BadPart."""
    try:
        part = msgspec.msgpack.decode(blob, type=Part)
        schema = part.schema
        x = np.frombuffer(part.x, "<f4").reshape(-1, *schema.shape)
        y = np.frombuffer(part.y, _kind(schema))
        if schema.task == "regression":
            y = y.reshape(-1, schema.outputs)
        elif len(y) and not 0 <= y.min() <= y.max() < schema.outputs:
            raise ValueError(f"classes from {y.min()} to {y.max()}, expected 0 to {schema.outputs - 1}")
        if len(x) != len(y) or len(x) == 0 or not np.isfinite(x).all():
            raise ValueError(f"{len(x)} rows and {len(y)} answers, all of them finite")
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadPart(f"not a part of a data set: {error}") from None
    none = Examples(x[:0].copy(), y[:0].copy())
    return Data(part.name, schema, Examples(x.copy(), y.copy()), none)


def _kind(schema: DataSchema) -> str:
    return "<i8" if schema.task == "classification" else "<f4"


def owners(name: str, rows: int, members: Sequence[Peer]) -> dict[Peer, NDArray[np.int64]]:
    """Which rows each member owns, by consistent hashing: row i belongs to the successor of hash(name/i)."""
    ring = sorted(members)
    places = [peer.id for peer in ring]
    keys = [identifier(f"{name}/{row}") for row in range(rows)]
    at = [next((n for n, place in enumerate(places) if key <= place), 0) for key in keys]
    held = np.array(at)
    return {peer: np.flatnonzero(held == number) for number, peer in enumerate(ring)}
