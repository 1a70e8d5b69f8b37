"""Lossless: the values' bytes plane by plane, through zstd."""

from tutti.core.codec import Codec, codecs
from tutti.core.compress._bytes import expanded, squeezed


@codecs.register("shuffle")
def shuffle() -> Codec:
    """Every bit, about a tenth smaller: the bytes of one rank together, through zstd."""
    return Codec(squeezed, lambda code, size: expanded(code, "f4", size), 1.1, exact=True)
