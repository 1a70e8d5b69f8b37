"""Plain steps of large linear layers, without a gradient matrix of their own.

The gradient of a layer's weights is the product d'x of two far smaller matrices, with a row for each example: the
gradient d of the layer's outputs, and its inputs x. Subtracted from the weights at once, w - lr * d'x, it is never
written to memory, where a large one would cost more time than the product itself. For the same reason such layers stay
in float32 in a CPU's mixed precision, which would round their weights anew in every step.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

LARGE = 2**18
"""Weights from which it pays: fewer stay in a processor's cache, and a call from Python costs more than they do."""


class LinearSteps:
    """The large linear layers of a module; inside `taken_over`, it is `step` that moves their weights."""

    def __init__(self, module: nn.Module) -> None:
        self._layers = [layer for layer in module.modules() if type(layer) is nn.Linear and _is_large(layer)]
        self._open = False
        self._factors: list[tuple[nn.Linear, Tensor, Tensor]] = []

    @contextmanager
    def taken_over(self) -> Iterator[None]:
        with ExitStack() as stack:
            for layer in self._layers:
                layer.forward = _forward(layer, layer.weight, self)  # type: ignore[method-assign, assignment]
                stack.callback(delattr, layer, "forward")
            yield

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Inside, gradients of the layers' parameters are kept as their factors, and autograd is told of none."""
        self._factors, self._open = [], True
        try:
            yield
        finally:
            self._open = False

    def keeps(self, layer: nn.Linear, x: Tensor, d: Tensor) -> bool:
        if self._open:
            self._factors.append((layer, x.detach(), d.detach()))
        return self._open

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Move the weights against what was gathered."""
        for layer, x, d in self._factors:
            layer.weight.addmm_(d.t(), x, alpha=-lr)
            if layer.bias is not None:
                layer.bias.sub_(d.sum(0), alpha=lr)
        self._factors = []


def _is_large(layer: nn.Linear) -> bool:
    """Whether it is large, and trained: a weight that is computed from others is none of its own."""
    parameters = [p for p in (layer.weight, layer.bias) if p is not None]
    return layer.weight.numel() >= LARGE and all(isinstance(p, nn.Parameter) and p.requires_grad for p in parameters)


def _forward(layer: nn.Linear, weight: Tensor, steps: LinearSteps) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        replaced = layer.weight is not weight  # by torch.func.functional_call, for example
        half, device = torch.is_autocast_enabled(x.device.type), x.device.type
        if replaced or torch.compiler.is_compiling() or (half and device != "cpu"):
            return nn.functional.linear(x, layer.weight, layer.bias)
        rows = x.reshape(-1, x.shape[-1])
        with torch.autocast(device, enabled=False) if half else nullcontext():
            y: Tensor = _Linear.apply(layer, steps, rows.float() if half else rows, weight, layer.bias)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], y.shape[-1])

    return forward


class _Linear(torch.autograd.Function):
    """y = x w' + b for x (n, inputs)."""

    @staticmethod
    def forward(ctx: Any, layer: nn.Linear, steps: LinearSteps, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        ctx.layer, ctx.steps = layer, steps
        ctx.save_for_backward(x, w)
        return _product(x, w, b)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Any:
        x, w = ctx.saved_tensors
        before = None
        if ctx.needs_input_grad[2]:
            before = d @ w if torch.is_grad_enabled() else _product(d.contiguous(), w.t(), None)
        if ctx.steps.keeps(ctx.layer, x, d):
            return None, None, before, None, None
        return None, None, before, d.t() @ x, d.sum(0) if ctx.needs_input_grad[4] else None


def _product(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """x w' + b: by oneDNN where torch has it, whose kernels take half the time of BLAS on some processors."""
    if x.device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return torch.ops.mkldnn._linear_pointwise(x, w, b, "none", [], "")  # type: ignore[no-any-return]
    return nn.functional.linear(x, w, b)
