"""Updates as files: a plain tensor file, or a layout and what a codec made of its values.

    MAGIC | length of the codec's name (2 bytes, little-endian) | name, such as topk:share=0.05
          | a safetensors file of the update up to its values | core.codec's code of them

The digest that a node hands in is that of these bytes; what is summed is what they decode to.
"""

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


def encode(handed: Handed, codec: Choice) -> bytearray:
    """The file of what a node hands in, which went through this codec if it has a code."""
    if not handed.code:
        return tensors.encode(handed.joined())
    name, layout = str(codec).encode(), tensors.encode_layout(handed.delta.layout.with_vectors(handed.vectors))
    return bytearray().join((MAGIC, len(name).to_bytes(_NAME, "little"), name, layout, handed.code))


def decode(data: Data, expected: Layout | None = None) -> Params:
    """The update in a file of either kind; a plain one is a view of it.

    `expected` is what its layout must be before memory is taken for values that travel encoded; None only for an
    update that was examined before. Raises BadTensors and BadCode, UnknownName or BadOption for the codec.
    """
    view = memoryview(data).cast("B")
    if view[: len(MAGIC)] != MAGIC:
        return tensors.decode(data)
    start = len(MAGIC) + _NAME
    length = int.from_bytes(view[len(MAGIC) : start], "little")
    if length > min(LONGEST_NAME, len(view) - start):
        raise BadCode(f"a codec's name may have {LONGEST_NAME} bytes, this one should have {length}")
    name = str(view[start : start + length], "utf-8", "replace")
    rest = view[start + length :]
    layout = tensors.decode_layout(rest)
    if expected is not None and (difference := expected.difference(layout)):
        raise BadTensors(difference)
    body = rest[_LENGTH + int.from_bytes(rest[:_LENGTH], "little") :]
    return decoded(codecs.build(Choice.parse(name)), layout, body)
