"""Model parameters as one contiguous float32 buffer with a layout of names, shapes, dtypes and roles.

Everything the server does with a model (sum, average, optimise, hash, send) is then one pass over
memory. Which entries a pass may touch is decided by their role: server optimisers move only weights,
buffers such as BatchNorm statistics are averaged, counters take the maximum.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from math import prod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Vector: TypeAlias = NDArray[np.float32]


class Role(StrEnum):
    """What an entry is to the server: how it is aggregated and who may change it."""

    WEIGHT = "weight"  # trained; averaged, then moved by the server optimiser
    BUFFER = "buffer"  # statistics (BatchNorm mean and variance): averaged, never optimised
    COUNTER = "counter"  # batches seen: the maximum over the cohort


class LayoutMismatch(ValueError):
    """Two parameter sets that should have the same layout do not."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One named tensor: its shape, its dtype at home (float32 in the buffer) and its role."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    role: Role = Role.WEIGHT

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """The order of the entries in the buffer. Equal layouts mean interchangeable buffers."""

    entries: tuple[Entry, ...]

    @cached_property
    def size(self) -> int:
        """Number of float32 values."""
        return sum(entry.size for entry in self.entries)

    @cached_property
    def spans(self) -> Mapping[str, slice]:
        """Where each entry lies in the buffer."""
        spans: dict[str, slice] = {}
        start = 0
        for entry in self.entries:
            if entry.name in spans:
                raise LayoutMismatch(f"the layout names {entry.name!r} twice")
            spans[entry.name] = slice(start, start + entry.size)
            start += entry.size
        return spans

    def spans_of(self, role: Role) -> tuple[slice, ...]:
        """The spans of one role, adjacent ones joined: often a single slice over the whole buffer."""
        joined: list[slice] = []
        for entry in self.entries:
            if entry.role is not role or entry.size == 0:
                continue
            span = self.spans[entry.name]
            if joined and joined[-1].stop == span.start:
                joined[-1] = slice(joined[-1].start, span.stop)
            else:
                joined.append(span)
        return tuple(joined)

    def with_vectors(self, names: Iterable[str]) -> "Layout":
        """This layout, followed by one averaged vector as long as it for each name: what is summed in one pass."""
        extra = tuple(Entry(f"vector:{name}", (self.size,)) for name in names)
        return Layout(self.entries + extra) if extra else self

    def difference(self, other: "Layout") -> str | None:
        """What makes `other` unusable in place of this layout, in words; None when they are equal."""
        if self == other:
            return None
        ours = {entry.name: entry for entry in self.entries}
        theirs = {entry.name: entry for entry in other.entries}
        if missing := sorted(ours.keys() - theirs.keys()):
            return f"{missing[0]!r} is missing ({len(missing)} of {len(ours)} entries)"
        if extra := sorted(theirs.keys() - ours.keys()):
            return f"{extra[0]!r} is not part of the model ({len(extra)} extra entries)"
        for name, entry in ours.items():
            if entry != theirs[name]:
                got = theirs[name]
                return (
                    f"{name!r} should be {entry.dtype}{list(entry.shape)} ({entry.role}), "
                    f"came as {got.dtype}{list(got.shape)} ({got.role})"
                )
        return "the entries come in another order"


@dataclass(frozen=True, slots=True, eq=False)
class Params:
    """A layout and its values: `buffer` is 1-D float32, contiguous, `layout.size` long."""

    layout: Layout
    buffer: Vector

    def __post_init__(self) -> None:
        if self.buffer.shape != (self.layout.size,) or self.buffer.dtype != np.float32:
            raise LayoutMismatch(
                f"expected float32[{self.layout.size}], came {self.buffer.dtype}{list(self.buffer.shape)}"
            )

    def __getitem__(self, name: str) -> Vector:
        """A view of one entry in its own shape; writing to it writes to the buffer."""
        shape = next(entry.shape for entry in self.layout.entries if entry.name == name)
        return self.buffer[self.layout.spans[name]].reshape(shape)

    def items(self) -> Iterator[tuple[Entry, Vector]]:
        """Entries with their views, in layout order."""
        for entry in self.layout.entries:
            yield entry, self.buffer[self.layout.spans[entry.name]].reshape(entry.shape)

    @classmethod
    def zeros(cls, layout: Layout) -> "Params":
        return cls(layout, np.zeros(layout.size, np.float32))

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[np.generic]], roles: Mapping[str, Role] | None = None
    ) -> "Params":
        """Copy named arrays into one buffer, in the mapping's order. `roles` defaults to weights."""
        roles = roles or {}
        entries = tuple(
            Entry(name, tuple(int(n) for n in array.shape), str(array.dtype), roles.get(name, Role.WEIGHT))
            for name, array in arrays.items()
        )
        params = cls.zeros(Layout(entries))
        for name, array in arrays.items():
            params.buffer[params.layout.spans[name]] = np.asarray(array, np.float32).reshape(-1)
        return params
