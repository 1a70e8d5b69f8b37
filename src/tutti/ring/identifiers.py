"""The circle of identifiers, and who stands on it."""

from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

BITS = 160


@dataclass(frozen=True, slots=True, order=True)
class Peer:
    """A process on the circle. A process that was taken for dead comes back with a higher incarnation.

    Attributes:
        id: Its place, from 0 to 2**bits - 1.
        address: `host:port`; empty for an entry that only fills a successor list up, and never answers.
        incarnation: Which life of this address; messages of an earlier one are refused.
    """

    id: int
    address: str
    incarnation: int = 0


@lru_cache(maxsize=1024)
def identifier(name: str | bytes, bits: int = BITS) -> int:
    """The place of an address or a key: the first `bits` bits of its SHA-256."""
    data = name.encode() if isinstance(name, str) else name
    return int.from_bytes(sha256(data).digest()) >> (256 - bits)


def between(a: int, x: int, b: int) -> bool:
    """Whether `x` lies strictly inside the arc from `a` to `b`; if a = b, whether x is anywhere else."""
    return a < x < b if a < b else x > a or x < b


def within(a: int, x: int, b: int) -> bool:
    """Whether `x` lies in the arc (a, b], which is the whole circle if a = b."""
    return x == b or a == b or between(a, x, b)
