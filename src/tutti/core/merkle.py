"""Merkle trees over SHA-256: one short root for many records, and a proof of each.

SHA-256 because everything can compute it: the standard library, a contract (precompile 0x02), a shell. A leaf is
hashed twice, so that no inner node can pass for one; a pair is hashed in sorted order, so that a proof needs no
directions (as in https://docs.openzeppelin.com/contracts/5.x/api/utils/cryptography#MerkleProof); a node without
a partner goes up unchanged.
"""

from collections.abc import Sequence
from hashlib import sha256

EMPTY = bytes(32)
"""The root of no records."""


def leaf(record: bytes) -> bytes:
    return sha256(sha256(record).digest()).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """The root (32 bytes) of leaves made by `leaf`, in the order given."""
    return _levels(leaves)[-1][0] if leaves else EMPTY


def proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The partners on the way from leaf `index` to the root, at most ⌈log2 n⌉ of them."""
    found = []
    for level in _levels(leaves)[:-1]:
        if (partner := index ^ 1) < len(level):
            found.append(level[partner])
        index //= 2
    return found


def follow(start: bytes, steps: Sequence[bytes]) -> bytes:
    """The root that a proof leads to; the record is in the tree if that is the tree's root."""
    for step in steps:
        start = _join(start, step)
    return start


def _levels(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """From the leaves up to the root."""
    levels = [list(leaves)]
    while len(level := levels[-1]) > 1:
        joined = [_join(a, b) for a, b in zip(level[::2], level[1::2], strict=False)]
        levels.append(joined + level[len(joined) * 2 :])
    return levels


def _join(a: bytes, b: bytes) -> bytes:
    return sha256(min(a, b) + max(a, b)).digest()
