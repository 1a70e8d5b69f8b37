"""Gradients of many nodes' models at once: torch, one batch of matrices for each layer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from tutti.core.params import Layout
from tutti.domain.spec import DataSchema
from tutti.sim.engines._dense import Dense
from tutti.sim.engines.port import CannotCompute


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """k nodes' batches: `x` (k, b, *shape), `y` (k, b) or (k, b, outputs), `shares` (k, b) of each row in its mean.

    Rows that only fill up have a share of 0.
    """

    x: Tensor
    y: Tensor
    shares: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """The loss of each row (k, b), and the outputs (k, b, outputs)."""

    losses: Tensor
    outputs: Tensor


class Gradients(Protocol):
    def into(self, weights: Tensor, batch: Batch, gradient: Tensor) -> Judged:
        """Write the gradient of each node's mean loss at its `weights` (k, n) to `gradient` (k, n)."""
        ...

    def descent(self, weights: Tensor) -> "Descent | None":
        """Plain gradient steps from `weights` (k, n); None if they cannot be taken without a gradient of its own."""
        ...


class Descent(Protocol):
    """Weights of k nodes on their way, laid out as suits the computation."""

    def step(self, batch: Batch, lr: float) -> Judged:
        """Move the first nodes, as many as the batch is of, against their gradients."""
        ...

    def write(self, weights: Tensor) -> None:
        """Where they are now, to (k, n)."""
        ...


Layers: TypeAlias = list[tuple[Tensor, Tensor]]


class DenseGradients:
    """Written out by hand: one batched product for each layer and direction."""

    def __init__(self, dense: Dense, schema: DataSchema) -> None:
        self._widths, self._kind = dense.widths, dense.activation
        self._classes = schema.task == "classification"

    def into(self, weights: Tensor, batch: Batch, gradient: Tensor) -> Judged:
        return self.back(self.layers(weights), batch, self.layers(gradient), beta=0.0, alpha=1.0)

    def descent(self, weights: Tensor) -> "Descent | None":
        return _DenseDescent(self, weights)

    def back(self, layers: Layers, batch: Batch, targets: Layers, beta: float, alpha: float) -> Judged:
        """targets = beta * targets + alpha * gradient. A layer's own product comes before its weights move."""
        inputs, pre, h = [], [], batch.x.flatten(2)
        for number, (w, b) in enumerate(layers):
            inputs.append(h)
            pre.append(torch.baddbmm(b.unsqueeze(1), h, w.transpose(1, 2)))
            h = self._activate(pre[-1]) if number < len(layers) - 1 else pre[-1]
        judged, d = self._judge(h, batch)
        for number in reversed(range(len(layers))):
            (w, _), (to_w, to_b) = layers[number], targets[number]
            before = torch.bmm(d, w) if number else d
            to_w.baddbmm_(d.transpose(1, 2), inputs[number], beta=beta, alpha=alpha)
            to_b.mul_(beta).add_(d.sum(1), alpha=alpha)
            if number:
                d = self._deactivate(before, pre[number - 1], inputs[number])
        return judged

    def layers(self, flat: Tensor) -> Layers:
        """Views (k, outputs, inputs) and (k, outputs) of parameters (k, n)."""
        found, start = [], 0
        for inputs, outputs in zip(self._widths, self._widths[1:], strict=False):
            middle = start + inputs * outputs
            w = flat[:, start:middle].view(len(flat), outputs, inputs)
            found.append((w, flat[:, middle : middle + outputs]))
            start = middle + outputs
        return found

    def _activate(self, z: Tensor) -> Tensor:
        if self._kind == "gelu":
            return nn.functional.gelu(z)  # needs z on the way back
        return z.relu_() if self._kind == "relu" else z.tanh_()

    def _deactivate(self, d: Tensor, z: Tensor, h: Tensor) -> Tensor:
        ops = torch.ops.aten
        back: dict[str, Callable[[], Tensor]] = {
            "relu": lambda: ops.threshold_backward(d, h, 0),
            "tanh": lambda: ops.tanh_backward(d, h),
            "gelu": lambda: ops.gelu_backward(d, z),
        }
        return back[self._kind]()

    def _judge(self, outputs: Tensor, batch: Batch) -> tuple[Judged, Tensor]:
        if self._classes:
            logs = outputs.log_softmax(2)
            picked = batch.y.unsqueeze(2)
            losses = logs.gather(2, picked).squeeze(2).neg()
            d = logs.exp().scatter_add_(2, picked, logs.new_full((), -1.0).expand_as(picked))
        else:
            d = outputs - batch.y
            losses = d.square().mean(2)
            d = d.mul_(2 / outputs.shape[2])
        return Judged(losses, outputs), d.mul_(batch.shares.unsqueeze(2))


class _DenseDescent:
    """Each layer's weights of all nodes lie together: only so does torch multiply them as one batch in place."""

    def __init__(self, dense: DenseGradients, weights: Tensor) -> None:
        self._dense = dense
        self._layers = [(w.contiguous(), b.contiguous()) for w, b in dense.layers(weights)]

    def step(self, batch: Batch, lr: float) -> Judged:
        k = len(batch.x)
        layers = [(w[:k], b[:k]) for w, b in self._layers]
        return self._dense.back(layers, batch, layers, beta=1.0, alpha=-lr)

    def write(self, weights: Tensor) -> None:
        for (w, b), (to_w, to_b) in zip(self._layers, self._dense.layers(weights), strict=True):
            to_w.copy_(w)
            to_b.copy_(b)


class FunctionalGradients:
    """Any module without state of its own, by torch.func: vmap over nodes of the gradient of one."""

    def __init__(self, module: nn.Module, layout: Layout, schema: DataSchema, *, half: bool = False) -> None:
        """With `half`, the module computes in bfloat16 and the loss in float32."""
        _check_stateless(module)
        self._module, self._layout, self._half = module, layout, half
        self._classes = schema.task == "classification"
        one = torch.func.grad_and_value(self._loss, has_aux=True)
        self._all = torch.func.vmap(one)

    def into(self, weights: Tensor, batch: Batch, gradient: Tensor) -> Judged:
        named = {
            entry.name: weights[:, self._layout.spans[entry.name]].view(len(weights), *entry.shape)
            for entry in self._layout.entries
        }
        found, (_, (losses, outputs)) = self._all(named, batch.x, batch.y, batch.shares)
        for entry in self._layout.entries:
            gradient[:, self._layout.spans[entry.name]] = found[entry.name].flatten(1)
        return Judged(losses, outputs)

    def descent(self, weights: Tensor) -> "Descent | None":
        return None

    def _loss(
        self, named: dict[str, Tensor], x: Tensor, y: Tensor, shares: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self._half, cache_enabled=False):
            outputs = torch.func.functional_call(self._module, named, (x,)).float()
        if self._classes:
            losses = nn.functional.cross_entropy(outputs, y, reduction="none")
        else:
            losses = (outputs - y).square().mean(1)
        return (losses * shares).sum(), (losses, outputs)


def _check_stateless(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            raise CannotCompute("BatchNorm keeps statistics of its own")
        if isinstance(layer, _DropoutNd):
            raise CannotCompute("dropout draws from each node's own stream of random numbers")
    if any(True for _ in module.buffers()) or not all(p.requires_grad for p in module.parameters()):
        raise CannotCompute("the model has buffers or frozen parameters")
