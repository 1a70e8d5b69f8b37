"""Gradient checkpointing (Chen et al. 2016, https://arxiv.org/abs/1604.06174) over Sequential modules.

Activations are kept only at the borders between segments of about sqrt(n) layers and computed again on the
way back: memory O(sqrt(n)) for about one more forward pass.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from math import isqrt
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@contextmanager
def checkpointed(module: nn.Module) -> Iterator[None]:
    """Inside, the module's outermost Sequentials compute their activations again instead of keeping them."""
    with ExitStack() as stack:
        for sequential in _outermost(module):
            sequential.forward = _in_segments(list(sequential))  # type: ignore[method-assign]
            stack.callback(delattr, sequential, "forward")
        yield


def _outermost(module: nn.Module) -> Iterator[nn.Sequential]:
    if isinstance(module, nn.Sequential):
        yield module
        return
    for child in module.children():
        yield from _outermost(child)


def _in_segments(layers: list[nn.Module]) -> Callable[[Tensor], Tensor]:
    size = max(1, isqrt(len(layers)))
    segments = [nn.Sequential(*layers[i : i + size]) for i in range(0, len(layers), size)]

    def forward(x: Tensor) -> Tensor:
        for segment in segments[:-1]:
            x = checkpoint(segment, x, use_reentrant=False, context_fn=_contexts(segment))
        return segments[-1](x)  # type: ignore[no-any-return]

    return forward


def _contexts(
    segment: nn.Module,
) -> Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]:
    return lambda: (nullcontext(), _statistics_kept(segment))


@contextmanager
def _statistics_kept(segment: nn.Module) -> Iterator[None]:
    """Keep BatchNorm from counting a batch twice when its segment is computed again."""
    norms = [layer for layer in segment.modules() if isinstance(layer, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    counts = [norm.num_batches_tracked.clone() if norm.num_batches_tracked is not None else None for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # running = 1 * running + 0 * batch: the same bits
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            if count is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(count)
