"""Codecs: how an update becomes fewer bytes, and the same numbers again on every machine.

What counts is what was decoded: the coordinator folds the decoded values exactly, a simulation folds the same ones, and
what a codec left out can stay on the node and be added to its next update (error feedback, Seide et al. 2014,
https://www.microsoft.com/en-us/research/publication/1-bit-stochastic-gradient-descent-and-application-to-data-parallel-distributed-training-of-speech-dnns/,
and Karimireddy et al. 2019, https://arxiv.org/abs/1901.09847). Codecs see weights only: what is averaged beside them
(BatchNorm statistics) or counted is of another size, and travels as it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from tutti.core.errors import UserError
from tutti.core.local import Handed, Memory
from tutti.core.params import Layout, Params, Role, Vector
from tutti.core.registry import Choice, Registry

Bytes: TypeAlias = bytes | bytearray | memoryview

NONE = Choice("none")
AUTO = Choice("auto")
"""Each node takes the mildest codec that its link needs; see `chosen`."""

RESIDUAL = "codec:residual"
"""The name under which a node keeps what its codec left out."""

_LENGTH = 8


class BadCode(UserError):
    """Bytes that no codec of this name has written for so many values."""


@dataclass(frozen=True, slots=True)
class Codec:
    """A pair of pure functions.

    Attributes:
        encode: Bytes from finite float32 values; the same values give the same bytes to the same library.
        decode: As many float32 values as are asked for, the same bits everywhere; raises BadCode for other bytes, and
            never takes more memory than the values do.
        ratio: How much smaller updates become, about: by this a node chooses, where it may.
        feedback: What is left out is kept, and added to the next update.
        exact: Nothing is left out; values may then be any bits at all.
    """

    encode: Callable[[Vector], bytes]
    decode: Callable[[Bytes, int], Vector]
    ratio: float
    feedback: bool = False
    exact: bool = False


codecs: Registry[Codec] = Registry("codec", "tutti.core.compress")


def check(choice: Choice) -> None:
    """Raise UnknownName or BadOption unless a job can name this codec."""
    if choice != AUTO:
        codecs.build(choice)


def ratio_of(choice: Choice) -> float:
    """How much smaller updates become, about; 1 for `auto`, where nodes may all have fast links."""
    return 1.0 if choice == AUTO else codecs.build(choice).ratio


# -- an update ---------------------------------------------------------------------------------------


def encode(codec: Codec, update: Params) -> bytes:
    """The code's length (8 bytes, little-endian), the code of the weights, then the other values as they are."""
    weights, others = _spans(update.layout)
    code = codec.encode(_gathered(update.buffer, weights))
    return b"".join((len(code).to_bytes(_LENGTH, "little"), code, _gathered(update.buffer, others).tobytes()))


def decode(codec: Codec, layout: Layout, body: Bytes) -> Params:
    """The inverse of `encode`; raises BadCode. Takes the memory of two such updates at most."""
    view = memoryview(body).cast("B")
    weights, others = _spans(layout)
    length, plain = int.from_bytes(view[:_LENGTH], "little"), 4 * _count(others)
    if len(view) != _LENGTH + length + plain:
        raise BadCode(f"expected a code of {length} bytes and {plain} beside it, came {len(view) - _LENGTH} in all")
    code, rest = view[_LENGTH : _LENGTH + length], view[_LENGTH + length :]
    values = codec.decode(code, _count(weights))
    if len(weights) == 1 and not others:
        return Params(layout, values)
    update = Params.zeros(layout)
    _scatter(update.buffer, weights, values)
    _scatter(update.buffer, others, np.frombuffer(rest, "<f4"))
    return update


def compressed(choice: Choice, handed: Handed, kept: Memory) -> Handed:
    """What a node hands in through a codec: the values that will be decoded, their code, and what it left out.

    `kept` is the node's memory of its last round that counted; what a codec left out there is added first.
    """
    left = kept.get(RESIDUAL)
    if choice == NONE and left is None:
        return handed
    codec, whole = codecs.build(choice), handed.joined()
    wanted = whole if left is None or len(left) != len(whole.buffer) else Params(whole.layout, whole.buffer + left)
    code = encode(codec, wanted)
    came = decode(codec, wanted.layout, code)
    memory = {**handed.memory, RESIDUAL: wanted.buffer - came.buffer} if codec.feedback else handed.memory
    n = handed.delta.layout.size
    vectors = {name: came.buffer[i * n : (i + 1) * n] for i, name in enumerate(handed.vectors, start=1)}
    return replace(
        handed, delta=Params(handed.delta.layout, came.buffer[:n]), vectors=vectors, memory=memory, code=code
    )


def without_residual(kept: Memory) -> Memory:
    """What a strategy is to see of a node's memory."""
    return {name: values for name, values in kept.items() if name != RESIDUAL}


# -- a node's choice ---------------------------------------------------------------------------------

SECONDS = 1.0
"""What the transfer of an update may take before a node with codec `auto` takes a smaller one."""

_MILDEST_FIRST = tuple(map(Choice, ("none", "fp16", "int8", "int4")))


def chosen(size: int, rate: float | None) -> Choice:
    """The mildest codec by which `size` bytes are through in SECONDS at `rate` bytes a second; None: not known yet."""
    if rate is None:
        return NONE
    for choice in _MILDEST_FIRST:
        if size / codecs.build(choice).ratio <= rate * SECONDS:
            return choice
    return _MILDEST_FIRST[-1]


def _spans(layout: Layout) -> tuple[Sequence[slice], Sequence[slice]]:
    """Where the weights lie, and where all else does."""
    return layout.spans_of(Role.WEIGHT), (*layout.spans_of(Role.BUFFER), *layout.spans_of(Role.COUNTER))


def _count(spans: Sequence[slice]) -> int:
    return sum(span.stop - span.start for span in spans)


def _gathered(values: Vector, spans: Sequence[slice]) -> Vector:
    if len(spans) == 1:
        return values[spans[0]]
    return np.concatenate([values[span] for span in spans]) if spans else np.zeros(0, np.float32)


def _scatter(into: Vector, spans: Sequence[slice], values: Vector) -> None:
    at = 0
    for span in spans:
        into[span] = values[at : at + span.stop - span.start]
        at += span.stop - span.start
