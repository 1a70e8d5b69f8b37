"""Updates, and steps from model to model, as files: plain tensors, or a layout and what a codec made of the values.

    MAGIC | length of the codec's name (2 bytes, little-endian) | name, such as topk:share=0.05
          | a safetensors file of the update up to its values | core.codec's code of them

The digest that a node hands in is that of these bytes; what is summed is what they decode to.
"""

from typing import NamedTuple

from tutti.core import steps
from tutti.core.codec import BadCode, codecs
from tutti.core.codec import decode as decoded
from tutti.core.local import Handed
from tutti.core.params import Layout, Params
from tutti.core.registry import Choice
from tutti.wire import tensors
from tutti.wire.tensors import BadTensors, Data

MAGIC = b"TUTTI\x00C1"
_NAME, _LENGTH = 2, 8
LONGEST_NAME = 200


class Examined(NamedTuple):
    """What came of a look at an update: why it cannot be admitted (None when it can), its bytes and its codec."""

    fault: str | None = None
    size: int = 0
    codec: str = ""


def encode(handed: Handed, codec: Choice) -> bytes | bytearray | memoryview:
    """The file of what a node hands in, which went through this codec if it has a code."""
    if not handed.code:
        return tensors.encode(handed.joined())
    return encode_coded(handed.delta.layout.with_vectors(handed.vectors), handed.code, codec)


def encode_coded(layout: Layout, code: bytes, codec: Choice) -> bytearray:
    """The file of what a codec made of values of this layout."""
    name, header = str(codec).encode(), tensors.encode_layout(layout)
    return bytearray().join((MAGIC, len(name).to_bytes(_NAME, "little"), name, header, code))


def applied(model: Data, step: Data) -> memoryview:
    """The file of the next model; raises as `decode`."""
    before = tensors.decode(model)
    if (codec := codec_of(step)) is None:
        raise BadCode("expected a step by codec, came a plain tensor file")
    return tensors.encode(steps.applied(codecs.build(codec), before, decode(step, before.layout)))


def decode(data: Data, expected: Layout | None = None) -> Params:
    """The update in a file of either kind; a plain one is a view of it.

    `expected` is what its layout must be before memory is taken for values that travel encoded; None only for an
    update that was examined before. Raises BadTensors and BadCode, UnknownName or BadOption for the codec.
    """
    if (codec := codec_of(data)) is None:
        return tensors.decode(data)
    view = memoryview(data).cast("B")
    rest = view[len(MAGIC) + _NAME + int.from_bytes(view[len(MAGIC) : len(MAGIC) + _NAME], "little") :]
    layout = tensors.decode_layout(rest)
    if expected is not None and (difference := expected.difference(layout)):
        raise BadTensors(difference)
    body = rest[_LENGTH + int.from_bytes(rest[:_LENGTH], "little") :]
    return decoded(codecs.build(codec), layout, body)


def codec_of(data: Data) -> Choice | None:
    """The codec that such a file names; None for a plain tensor file. Raises BadCode."""
    view = memoryview(data).cast("B")
    if view[: len(MAGIC)] != MAGIC:
        return None
    start = len(MAGIC) + _NAME
    length = int.from_bytes(view[len(MAGIC) : start], "little")
    if length > min(LONGEST_NAME, len(view) - start):
        raise BadCode(f"a codec's name may have {LONGEST_NAME} bytes, this one should have {length}")
    return Choice.parse(str(view[start : start + length], "utf-8", "replace"))
