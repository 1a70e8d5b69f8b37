from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

def combine(
    out: NDArray[np.float32],
    columns: Sequence[NDArray[np.float32]],
    coefficients: Sequence[float],
    blocks: NDArray[np.int64],
    threads: int = 0,
) -> None: ...
def gram(
    out: NDArray[np.float64],
    columns: Sequence[NDArray[np.float32]],
    size: int,
    blocks: NDArray[np.int64],
    threads: int = 0,
) -> None: ...
def window_mean(
    out: NDArray[np.float32],
    columns: Sequence[NDArray[np.float32]],
    pairs: NDArray[np.int32],
    low: int,
    width: int,
    slide: int,
    blocks: NDArray[np.int64],
    threads: int = 0,
) -> None: ...
