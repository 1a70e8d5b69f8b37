"""Seeded chance for layers that draw from torch's global generators, such as dropout."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_TURN = threading.Lock()


class Chance:
    """One training's own stream of random numbers, independent of other threads of the process.

    torch has one generator per device for everybody, so trainings take turns with it, one step at a time.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._state = torch.Generator().manual_seed(seed).get_state()
        self._cuda_state = torch.Generator(device).manual_seed(seed).get_state() if self._cuda else None

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Inside, torch's generators go on where this stream left off; outside, they are as they were."""
        with _TURN:
            before, cuda_before = torch.get_rng_state(), self._swap_cuda(self._cuda_state)
            torch.set_rng_state(self._state)
            try:
                yield
            finally:
                self._state = torch.get_rng_state()
                torch.set_rng_state(before)
                self._cuda_state = self._swap_cuda(cuda_before)

    def _swap_cuda(self, state: torch.Tensor | None) -> torch.Tensor | None:
        if self._cuda is None or state is None:
            return None
        before = torch.cuda.get_rng_state(self._cuda)
        torch.cuda.set_rng_state(state, self._cuda)
        return before
