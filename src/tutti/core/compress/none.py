"""No codec: every bit of every value, for links that are fast."""

import numpy as np

from tutti.core.codec import BadCode, Bytes, Codec, codecs
from tutti.core.params import Vector


@codecs.register("none")
def none() -> Codec:
    """Every value as it is, 4 bytes each."""
    return Codec(lambda values: values.tobytes(), _decode, 1.0, exact=True)


def _decode(code: Bytes, size: int) -> Vector:
    if len(code) != 4 * size:
        raise BadCode(f"expected {4 * size} bytes of {size} values, came {len(code)}")
    return np.frombuffer(code, "<f4")
