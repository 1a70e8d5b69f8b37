"""A problem by which a machine's speed is measured: its answer is found slowly, and checked far more quickly.

    Y_0 = B,    Y_t+1 = A roll(Y_t, t + 1)  mod P

A (SIZE x SIZE) and B (SIZE x WIDTH) follow from a seed that nobody can foresee; the answer is Y after so many steps.
Rows are rolled on each step, so that there are no powers of A to be had by squaring. It is checked as Freivalds checks
products (R. Freivalds, Probabilistic machines can use less running time, IFIP 1977): for random vectors r, drawn once
the answer is there, Y r must be what the same steps make of B r. That is WIDTH / VECTORS times less work, and a wrong
answer passes with a chance of P^-VECTORS, one in a thousand million.

All is exact on every machine: residues lie within +-90, so that no sum of SIZE products reaches 2^24, and float32 (TF32
and bfloat16 with float32 sums, too) loses nothing, in whatever order it adds.
"""

import numpy as np
from numpy.typing import NDArray

SIZE, WIDTH, P, VECTORS = 512, 64, 179, 4

Residues = NDArray[np.float32]


def operations(steps: int) -> float:
    """Floating-point operations of the steps."""
    return 2.0 * SIZE * SIZE * WIDTH * steps


def given(seed: int) -> tuple[Residues, Residues]:
    """A and B."""
    rng = np.random.Generator(np.random.PCG64(seed))
    drawn = rng.integers(0, P, (SIZE, SIZE + WIDTH), np.uint8).astype(np.float32) - P // 2
    return np.ascontiguousarray(drawn[:, :SIZE]), np.ascontiguousarray(drawn[:, SIZE:])


def answer(seed: int, steps: int) -> bytes:
    """The answer, as this machine's processor finds it: residues from 0 to P - 1, row by row."""
    a, b = given(seed)
    return packed(_chain(a, b, steps))


def packed(y: Residues) -> bytes:
    return np.remainder(y, np.float32(P)).astype(np.uint8).tobytes()


def holds(came: bytes, seed: int, steps: int, check_seed: int) -> bool:
    """Whether this is the answer; `check_seed` is drawn after it came."""
    if len(came) != SIZE * WIDTH:
        return False
    y = np.frombuffer(came, np.uint8).reshape(SIZE, WIDTH)
    if y.max() >= P:
        return False
    a, b = given(seed)
    rng = np.random.Generator(np.random.PCG64(check_seed))
    vectors = rng.integers(0, P, (WIDTH, VECTORS), np.uint8).astype(np.float32) - P // 2
    expected = _chain(a, reduced(b @ vectors), steps)
    found = reduced(y.astype(np.float32) - P // 2) @ vectors + (P // 2) * vectors.sum(axis=0)
    return packed(expected) == packed(reduced(found))


def reduced(y: Residues) -> Residues:
    """The same modulo P, within +-90."""
    return np.asarray(y - np.float32(P) * np.rint(y * np.float32(1 / P)))


def _chain(a: Residues, y: Residues, steps: int) -> Residues:
    for t in range(steps):
        y = reduced(a @ np.roll(y, t + 1, axis=0))
    return y
