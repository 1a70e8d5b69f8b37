"""Challenges answered on this machine's GPU, by PyTorch: to the bit what `tutti.core.challenge` says."""

import importlib.util
from collections.abc import Callable

import numpy as np

from tutti.core.challenge import P, given, packed


def gpu_answer() -> Callable[[int, int], bytes] | None:
    """What answers on the GPU; None where PyTorch sees none."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    return (lambda seed, steps: answer_on(torch.device("cuda"), seed, steps)) if torch.cuda.is_available() else None


def answer_on(device: object, seed: int, steps: int) -> bytes:
    import torch

    a, y = (torch.from_numpy(part).to(device) for part in given(seed))  # type: ignore[call-overload]
    for t in range(steps):
        y = a @ torch.roll(y, t + 1, 0)
        y -= P * torch.round(y * np.float32(1 / P))
    return packed(y.cpu().numpy())
