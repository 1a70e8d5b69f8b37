from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutti.core.params import Vector

Integers = NDArray[np.int64]

def train(
    widths: Integers,
    params: Vector,
    x: Vector,
    y: NDArray[Any],
    order: Integers,
    sizes: Integers,
    workspace: NDArray[np.uint8],
    delta: Vector,
    tallied: int,
    lr: float,
    momentum: float,
    decay: float,
    mu: float,
    lanes: int = 0,
) -> tuple[float, int]: ...
def room(widths: Integers, batch: int, momentum: float, mu: float, lanes: int = 0) -> int: ...
def lanes() -> list[int]: ...
