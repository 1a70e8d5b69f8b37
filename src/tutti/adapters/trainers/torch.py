"""Local training of any torch module: same inputs, same bits, on one machine and thread count."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tutti.adapters.trainers.batches import batches
from tutti.adapters.trainers.chance import Chance
from tutti.adapters.trainers.checkpointing import checkpointed
from tutti.adapters.trainers.measure import Misfit, check, measure
from tutti.adapters.trainers.network import Network
from tutti.adapters.trainers.optimizers import Step, adam, sgd
from tutti.core.local import Correction
from tutti.core.params import Params
from tutti.domain.spec import DataSchema, Metrics
from tutti.ports.training import Examples, Report, Task, Work

REPORT_EVERY = 4
"""Batches between two calls of Report."""

EVALUATION_BATCH = 1024


class TorchTrainer:
    """Trains what `build` makes: a module from float32 (batch, *shape) to (batch, outputs) logits or targets.

    A network is kept between calls and shared by none: calls from several threads each get their own.
    """

    def __init__(self, build: Callable[[], nn.Module], data: DataSchema, device: torch.device | None = None) -> None:
        self.data = data
        self._build = build
        self._device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._idle: list[Network] = []

    def module(self) -> nn.Module:
        """A module of this kind, untrained and shared with nobody."""
        return self._build()

    def init(self, seed: int) -> Params:
        """The module's own initialisation, from a seed; the same on every device."""
        network = self._new(seed)
        self._idle.append(network)
        return network.dump()

    def train(self, params: Params, examples: Examples, task: Task, report: Report) -> Work:
        """Metrics are of the last epoch: `loss` and, for classes, `accuracy`."""
        with self._network() as network:
            check(network.layout, params, self.data, examples)
            _check_batch_norm(network.module, min(task.batch_size, len(examples)))
            network.load(params)
            network.module.train()
            saving = _memory_saved(network.module, task.training.gradient_checkpointing)
            taking_over = network.linear.taken_over() if _is_plain(task) else nullcontext()
            with _precisely(network.device), saving, taking_over:
                metrics, steps = _fit(network, self.data, examples, task, report)
            return Work(network.dump(), len(examples), metrics, steps)

    def evaluate(self, params: Params, examples: Examples) -> Metrics:
        with self._network() as network:
            check(network.layout, params, self.data, examples)
        return measure(self.predict(params, examples.x), examples.y, self.data)

    def predict(self, params: Params, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of classes, or targets: float32 (n, outputs), for `x` float32 (n, *shape)."""
        with self._network() as network, torch.inference_mode(), _precisely(network.device):
            network.load(params)
            network.module.eval()
            slices = (x[start : start + EVALUATION_BATCH] for start in range(0, len(x), EVALUATION_BATCH))
            outputs = [network.module(torch.tensor(part, device=network.device)).float().cpu() for part in slices]
        return np.asarray(torch.cat(outputs).numpy()) if outputs else np.zeros((0, self.data.outputs), np.float32)

    @contextmanager
    def _network(self) -> Iterator[Network]:
        try:
            network = self._idle.pop()
        except IndexError:
            network = self._new(seed=0)
        try:
            yield network
        finally:
            self._idle.append(network)

    def _new(self, seed: int) -> Network:
        with Chance(seed, torch.device("cpu")).turn():
            module = self._build()
        _check_outputs(module, self.data)
        return Network(module, self._device)


def _tensor(array: NDArray[np.generic]) -> Tensor:
    """The array as a tensor, without a copy where torch allows it: read-only arrays are copied."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _memory_saved(module: nn.Module, wanted: bool) -> AbstractContextManager[None]:
    return checkpointed(module) if wanted else nullcontext()


def _precisely(device: torch.device) -> AbstractContextManager[None]:
    """Inside, cuDNN takes no algorithm whose result depends on timing."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(deterministic=True, benchmark=False)


def half(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 where the device computes in it; its range is that of float32, so losses need no scaling."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if computes_half(device) else nullcontext()


def computes_half(device: torch.device) -> bool:
    """Whether bfloat16 is faster there: on a GPU with units for it, or a CPU with AVX-512 BF16 or AMX."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _check_outputs(module: nn.Module, data: DataSchema) -> None:
    """Show the module two empty examples before anything is sent anywhere; raises Misfit."""
    try:
        with torch.no_grad():
            outputs = module.eval()(torch.zeros(2, *data.shape))
    except (RuntimeError, ValueError, TypeError) as error:
        raise Misfit(f"the model cannot take examples of shape {data.shape}: {error}") from error
    if not isinstance(outputs, Tensor) or outputs.shape != (2, data.outputs):
        came = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise Misfit(f"expected outputs of shape (2, {data.outputs}) for two examples, the model gave {came}")


def _check_batch_norm(module: nn.Module, batch: int) -> None:
    if batch < 2 and _has_batch_norm(module):
        raise Misfit("BatchNorm needs batches of at least 2 examples, this one would have 1; raise batch_size")


def _has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(layer, _BatchNorm) for layer in module.modules())


def _fit(network: Network, data: DataSchema, examples: Examples, task: Task, report: Report) -> tuple[Metrics, int]:
    """Run the epochs; the metrics are those of the last one. Also says how many steps it took."""
    training, chance = task.training, Chance(task.seed, network.device)
    work = batches(len(examples), task, pairs=_has_batch_norm(network.module))
    x, y = (_tensor(array) for array in (examples.x, examples.y))
    correct = _corrected(network, task.correction)
    move = adam(task.lr) if training.optimizer == "adam" else sgd(task.lr, training.momentum)
    tally, plain = _Tally(network.device), _is_plain(task)
    report(0.0, 1, None)
    for done, (epoch, rows) in enumerate(work, start=1):
        tally = tally if tally.epoch == epoch else _Tally(network.device, epoch)
        index = torch.from_numpy(rows)
        with chance.turn():
            loss = _loss(network, data, x[index], y[index], task, tally)
            if plain:
                _descend(network, loss, task.lr)
            else:
                network.gradient.zero_()
                loss.backward()  # type: ignore[no-untyped-call]
        if not plain:
            _move(network, task, correct, move)
        if done % REPORT_EVERY == 0 or done == len(work):
            report(done / len(work), epoch, tally.loss())
    return tally.metrics(data), len(work)


def _corrected(network: Network, correction: Correction) -> Callable[[Tensor], None] | None:
    """Adds a correction to a gradient in place, at the weights as they are then; None if there is nothing to add."""
    if not correction:
        return None
    weights, pull = network.weights, correction.pull
    offset = None if correction.offset is None else network.on_device(correction.offset)
    anchor = weights.clone() if correction.anchor is None else network.on_device(correction.anchor)

    def correct(gradient: Tensor) -> None:
        if pull:
            gradient.add_(weights - anchor, alpha=pull)
        if offset is not None:
            gradient.add_(offset)

    return correct


def _loss(network: Network, data: DataSchema, x: Tensor, y: Tensor, task: Task, tally: "_Tally") -> Tensor:
    """The batch's mean loss."""
    x, y = x.to(network.device), y.to(network.device)
    with half(network.device) if task.training.mixed_precision else nullcontext():
        outputs = network.module(x)
    outputs = outputs.float()
    classes = data.task == "classification"
    loss = nn.functional.cross_entropy(outputs, y) if classes else nn.functional.mse_loss(outputs, y)
    tally.add(loss.detach(), outputs.detach(), y)
    return loss


def _is_plain(task: Task) -> bool:
    """Whether a step is w - lr * gradient and nothing else."""
    training = task.training
    extras = training.momentum or training.weight_decay or training.gradient_checkpointing or task.correction
    return training.optimizer == "sgd" and not extras


def _descend(network: Network, loss: Tensor, lr: float) -> None:
    """The same step as `_move`, without gradients that are kept, set to zero and added to: less memory is moved."""
    with network.linear.gathering():
        gradients = torch.autograd.grad(loss, network.parameters, allow_unused=True)
    used = [(p.data, g) for p, g in zip(network.parameters, gradients, strict=True) if g is not None]
    torch._foreach_add_([weights for weights, _ in used], [gradient for _, gradient in used], alpha=-lr)
    network.linear.step(lr)


@torch.no_grad()
def _move(network: Network, task: Task, correct: Callable[[Tensor], None] | None, move: Step) -> None:
    gradient, weights = network.gradient, network.weights
    if decay := task.training.weight_decay:
        gradient.add_(weights, alpha=decay)
    if correct is not None:
        correct(gradient)
    move(weights, gradient)


class _Tally:
    """Sums over one epoch, kept on the device: reading them would make every step wait for it."""

    def __init__(self, device: torch.device, epoch: int = 1) -> None:
        self.epoch = epoch
        self._rows = 0
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._hits = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, loss: Tensor, outputs: Tensor, y: Tensor) -> None:
        self._rows += len(y)
        self._loss += loss * len(y)
        if y.dim() == 1:
            self._hits += (outputs.argmax(dim=1) == y).sum()

    def loss(self) -> float:
        return float(self._loss) / self._rows

    def metrics(self, data: DataSchema) -> Metrics:
        metrics = {"loss": self.loss()}
        if data.task == "classification":
            metrics["accuracy"] = float(self._hits) / self._rows
        return metrics
