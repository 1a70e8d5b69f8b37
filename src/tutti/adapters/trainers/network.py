"""A torch module whose trained weights are views on one contiguous vector, and so are their gradients.

The optimiser, weight decay and the proximal term are then single operations on one vector, whatever the number of
layers. On a CPU the kernels of convolutions lie with their channels last, which oneDNN computes faster; import and
export put them in the order of the layout.
"""

import torch
from torch import Tensor, nn

from tutti.adapters.trainers.linear import LinearSteps
from tutti.adapters.trainers.measure import Misfit
from tutti.core.params import Entry, Layout, Params, Role, Vector


class Network:
    """`weights` and `gradient` are float32 (n,), in an order of their own; `layout` lists weights first, then buffers,
    then counters.

    Trained parameters are weights. Frozen parameters and floating buffers are buffers (averaged, never
    optimised), integer buffers are counters; buffers that a module does not save are not exchanged.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.device = device
        self.module = module.float().to(device)
        trained = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        self._rest = _rest(self.module)
        self.layout = Layout((*(_entry(name, p, Role.WEIGHT) for name, p in trained.items()), *self._rest))
        self.weights, self.gradient = _flatten(list(trained.values()), device)
        self.parameters = list(trained.values())
        self.linear = LinearSteps(self.module)
        self._trained = [(self.layout.spans[name], p.data) for name, p in trained.items()]

    def load(self, params: Params) -> None:
        """Copy `params` in; they are not kept."""
        buffer = params.buffer
        host = torch.from_numpy(buffer if buffer.flags.writeable else buffer.copy())
        state = self.module.state_dict()
        with torch.no_grad():
            for span, weights in self._trained:
                weights.copy_(host[span].view(weights.shape))
            for entry in self._rest:
                state[entry.name].copy_(host[self.layout.spans[entry.name]].view(entry.shape))

    def on_device(self, vector: Vector) -> Tensor:
        """What of a vector as long as the model lies at the weights, as a copy beside them and in their order."""
        host = torch.from_numpy(vector[: len(self.weights)].copy()).to(self.device)
        copy = torch.empty_like(self.weights)
        for span, weights in self._trained:
            _as_computed(copy[span], weights.shape).copy_(host[span].view(weights.shape))
        return copy

    def dump(self) -> Params:
        """A copy of everything that is exchanged."""
        params = Params.zeros(self.layout)
        for span, weights in self._trained:
            params.buffer[span] = weights.reshape(-1).cpu().numpy()
        # By name, not by view: a module may replace its buffers while it trains.
        state = self.module.state_dict()
        for entry in self._rest:
            params.buffer[self.layout.spans[entry.name]] = state[entry.name].reshape(-1).cpu().numpy()
        return params


def _flatten(parameters: list[nn.Parameter], device: torch.device) -> tuple[Tensor, Tensor]:
    """Move the parameters into one vector and point them, and their gradients, at their places in it."""
    weights = torch.zeros(sum(p.numel() for p in parameters), device=device)
    gradient = torch.zeros_like(weights)
    start = 0
    for parameter in parameters:
        place = slice(start, start + parameter.numel())
        view = _as_computed(weights[place], parameter.shape)
        view.copy_(parameter.detach())
        parameter.data = view
        parameter.grad = _as_computed(gradient[place], parameter.shape)
        start = place.stop
    return weights, gradient


def _as_computed(flat: Tensor, shape: torch.Size) -> Tensor:
    """A view of that shape: of a convolution's kernel (outputs, inputs, height, width), with its inputs last."""
    if len(shape) != 4 or flat.device.type != "cpu":
        return flat.view(shape)
    outputs, inputs, height, width = shape
    return flat.view(outputs, height, width, inputs).permute(0, 3, 1, 2)


def _rest(module: nn.Module) -> list[Entry]:
    """Entries of frozen parameters and saved buffers: floating ones first, then counters."""
    frozen = {name: p for name, p in module.named_parameters() if not p.requires_grad}
    saved = module.state_dict().keys()
    buffers = {name: b for name, b in module.named_buffers() if name in saved}
    floating = {name: t for name, t in {**frozen, **buffers}.items() if t.is_floating_point()}
    counters = {name: t for name, t in {**frozen, **buffers}.items() if not t.is_floating_point()}
    return [_entry(name, t, Role.BUFFER) for name, t in floating.items()] + [
        _entry(name, t, Role.COUNTER) for name, t in counters.items()
    ]


def _entry(name: str, tensor: Tensor, role: Role) -> Entry:
    if tensor.is_complex():
        raise Misfit(f"the model's {name!r} is complex; only real tensors can be exchanged as float32")
    return Entry(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), role)
