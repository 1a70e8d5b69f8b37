"""What each codec decodes to, slow and obvious: one value at a time, in fractions where that is what is meant."""

from collections.abc import Callable, Mapping, Sequence
from math import ceil, frexp

import numpy as np

F = np.float32


def exact(values: Sequence[np.float32]) -> list[np.float32]:
    return list(values)


def fp16(values: Sequence[np.float32]) -> list[np.float32]:
    _, exponent = frexp(max((abs(float(value)) for value in values), default=0.0))
    if exponent < -80:
        return [F(0)] * len(values)
    scale = 2.0 ** (15 - exponent)
    return [F(float(np.float16(float(value) * scale)) / scale) for value in values]


def blocks(values: Sequence[np.float32], block: int, most: int) -> list[np.float32]:
    came: list[np.float32] = []
    for start in range(0, len(values), block):
        some = values[start : start + block]
        largest = max(abs(value) for value in some)
        scale = F(largest / F(most)) if largest >= F(2.0**-110) else F(0)
        for value in some:
            number = max(-most, min(most, round(float(F(value / scale))))) if scale else 0
            came.append(F(F(number) * scale))
    return came


def topk(values: Sequence[np.float32], share: float) -> list[np.float32]:
    order = sorted(range(len(values)), key=lambda i: (-abs(float(values[i])), i))
    sent = set(order[: ceil(share * len(values))])
    return [value if i in sent else F(0) for i, value in enumerate(values)]


REFERENCES: Mapping[str, Callable[[Sequence[np.float32]], list[np.float32]]] = {
    "none": exact,
    "shuffle": exact,
    "fp16": fp16,
    "int8": lambda values: blocks(values, 256, 127),
    "int4": lambda values: blocks(values, 64, 7),
    "topk": lambda values: topk(values, 0.05),
}
"""By the codec's name, with its default options."""
