"""Keccak-256, with which Ethereum names and signs things: https://keccak.team/keccak_specs_summary.html.

It is SHA3-256 (FIPS 202) but for the padding, so the standard library's does not do. `reference` is the specification
as it is written; _keccak.c does the same hundreds of times as fast.
"""

from functools import reduce
from operator import xor
from typing import TypeAlias

RATE = 136
"""Bytes that go in between two permutations."""

Lanes: TypeAlias = list[list[int]]
"""The state, 5 x 5 lanes of 64 bits: A[x][y]."""


def reference(data: bytes) -> bytes:
    """32 bytes."""
    padded = bytearray(data) + b"\x01" + bytes(-(len(data) + 1) % RATE)
    padded[-1] ^= 0x80
    state: Lanes = [[0] * 5 for _ in range(5)]
    for start in range(0, len(padded), RATE):
        for i in range(RATE // 8):
            state[i % 5][i // 5] ^= int.from_bytes(padded[start + 8 * i : start + 8 * i + 8], "little")
        _permute(state)
    return b"".join(state[i][0].to_bytes(8, "little") for i in range(4))


def _permute(a: Lanes) -> None:
    """Keccak-f[1600]: 24 rounds of theta, rho and pi, chi, and iota, whose constants come from a shift register."""
    register = 1
    for _ in range(24):
        parity = [reduce(xor, column) for column in a]
        for x in range(5):
            turned = parity[x - 1] ^ _rotated(parity[(x + 1) % 5], 1)
            a[x] = [lane ^ turned for lane in a[x]]
        x, y, moved = 1, 0, a[1][0]
        for step in range(24):
            x, y = y, (2 * x + 3 * y) % 5
            moved, a[x][y] = a[x][y], _rotated(moved, (step + 1) * (step + 2) // 2 % 64)
        for y in range(5):
            row = [a[x][y] for x in range(5)]
            for x in range(5):
                a[x][y] = row[x] ^ (~row[(x + 1) % 5] & row[(x + 2) % 5])
        for j in range(7):
            a[0][0] ^= (register & 1) << ((1 << j) - 1)
            register = (register << 1) ^ (0x171 if register & 0x80 else 0)


def _rotated(lane: int, by: int) -> int:
    return (lane << by | lane >> (64 - by)) & 0xFFFFFFFFFFFFFFFF


try:
    from tutti.core._keccak import keccak256 as keccak256
except ImportError:  # built without a C compiler
    keccak256 = reference
