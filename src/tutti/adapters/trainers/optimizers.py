"""SGD and Adam on one flat vector.

torch.optim gives the same numbers (a test compares them) but takes over a second to import, and ten times
as long per step on a small model.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

Step: TypeAlias = Callable[[Tensor, Tensor], None]
"""Moves the weights (n,) in place, given their gradient (n,), which may be changed too."""


def sgd(lr: float, momentum: float) -> Step:
    """Stochastic gradient descent with heavy-ball momentum (Sutskever et al. 2013)."""
    velocity: Tensor | None = None

    def step(weights: Tensor, gradient: Tensor) -> None:
        nonlocal velocity
        if momentum:
            velocity = gradient.clone() if velocity is None else velocity.mul_(momentum).add_(gradient)
        weights.sub_(gradient if velocity is None else velocity, alpha=lr)

    return step


def adam(lr: float, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8) -> Step:
    """Kingma & Ba 2015, https://arxiv.org/abs/1412.6980, Algorithm 1."""
    m = v = torch.zeros(0)
    t = 0

    def step(weights: Tensor, gradient: Tensor) -> None:
        nonlocal m, v, t
        if t == 0:
            m, v = torch.zeros_like(weights), torch.zeros_like(weights)
        t += 1
        m.lerp_(gradient, 1 - beta1)
        v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = (v.sqrt() / (1 - beta2**t) ** 0.5).add_(epsilon)
        weights.addcdiv_(m, denominator, value=-lr / (1 - beta1**t))

    return step
