from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

def accumulate(
    sums: NDArray[np.int64],
    deltas: Sequence[NDArray[np.float32]],
    scales: Sequence[float],
    blocks: NDArray[np.int64],
    limit: float,
    anew: bool = False,
    threads: int = 0,
) -> bool: ...
def all_within(values: NDArray[np.float32], blocks: NDArray[np.int64], limit: float, threads: int = 0) -> bool: ...
def divide(sums: NDArray[np.int64], total: int, fraction_bits: int) -> None: ...
