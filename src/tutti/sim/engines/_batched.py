"""The nodes of a cohort as one batched computation, in torch.

Every step takes the next batch of every node. Nodes with more steps come first, so those that still have one are
always the first k; a batch with fewer rows than its neighbours' is filled up with rows that have no share in the
loss. Equal to the sequential engine but for rounding: about 1e-6 a parameter after a hundred steps, and more with
tf32 or the job's mixed precision, which computes in bfloat16 where the device can.

All rows stay on the device. Where the memory does not suffice for a group of nodes, smaller groups are tried. On one
GPU too, the same job gives the same bits again.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tutti.adapters.trainers.batches import batches
from tutti.adapters.trainers.torch import computes_half
from tutti.core.errors import UserError
from tutti.core.params import Params
from tutti.domain.spec import JobSpec, Metrics
from tutti.ports.training import Trainer
from tutti.services.work import reason_of
from tutti.sim.engines._dense import dense_of
from tutti.sim.engines._gradients import Batch, DenseGradients, FunctionalGradients, Gradients, Judged
from tutti.sim.engines._graphs import Recorded
from tutti.sim.engines.port import Assignment, CannotCompute, Failed, Result, Trained
from tutti.sim.federation import Federation

log = logging.getLogger(__name__)

GROUP_BYTES, GPU_GROUP_BYTES = 512 * 2**20, 2 * 2**30
"""Parameters, gradients and moments of the nodes that are computed together; the cohort may be larger."""


class Vectorised:
    name = "vectorised"

    def __init__(
        self,
        spec: JobSpec,
        trainer: Trainer,
        federation: Federation,
        *,
        device: str = "auto",
        tf32: bool = False,
        group: int | None = None,
    ) -> None:
        self._device = _device(device)
        self._prepare = partial(_gradients, spec, trainer, federation, self._device)
        self._gradients = self._prepare()
        self._federation = federation
        self._group, self._tf32 = group, tf32
        self._classes = federation.schema.task == "classification"
        rows = federation.rows
        self._x, self._y = (torch.from_numpy(array).to(self._device) for array in (rows.x, rows.y))
        self._group_bytes = GPU_GROUP_BYTES if self._device.type == "cuda" else GROUP_BYTES
        self._host = torch.empty(0)

    @torch.no_grad()
    def train(self, params: Params, assignments: Sequence[Assignment]) -> Iterator[Result]:
        plans = [_Plan(a, self._federation.train[a.node]) for a in assignments if len(self._federation.train[a.node])]
        planned = {plan.assignment.node for plan in plans}
        yield from (
            Failed(a.node, "expected at least one example, came none") for a in assignments if a.node not in planned
        )
        plans.sort(key=lambda plan: (-len(plan.sizes), plan.assignment.node))
        size = self._group or max(1, self._group_bytes // (16 * params.layout.size))
        while plans:
            try:
                done = list(self._together(params, plans[:size]))
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                if self._device.type == "cuda":
                    self._gradients = self._prepare()  # without what was recorded
                    torch.cuda.empty_cache()
                if min(size, len(plans)) > 1:
                    size = min(size, len(plans)) // 2
                    self._group = size
                    log.warning("out of memory: %s nodes are computed at once from here on", size)
                    continue
                done = [Failed(plans[0].assignment.node, _TOO_LARGE)]
            yield from done
            plans = plans[size:]

    def close(self) -> None:
        pass

    def _together(self, params: Params, plans: list["_Plan"]) -> Iterator[Result]:
        """Raises what says that the memory does not suffice."""
        began = perf_counter()
        try:
            with _precision(self._tf32):
                weights, tally = self._run(params, plans)
        except Exception as error:
            if out_of_memory(error):
                raise
            yield from (Failed(plan.assignment.node, reason_of(error)) for plan in plans)
            return
        seconds = (perf_counter() - began) / len(plans)
        metrics = tally.metrics(self._classes)
        for plan, changed, found in zip(plans, self._on_host(weights), metrics, strict=True):
            change = Params(params.layout, changed)
            yield Trained(plan.assignment.node, change, plan.rows, found, seconds, len(plan.sizes))

    def _run(self, params: Params, plans: list["_Plan"]) -> tuple[Tensor, "_Tally"]:
        """How the weights of each node changed (k, n), and what it tells of its last epoch."""
        with torch.no_grad():
            task = plans[0].assignment.task
            anchor = torch.from_numpy(params.buffer.copy()).to(self._device)
            weights = anchor.expand(len(plans), -1).clone()
            move = _Move(task.training.optimizer, task.training.momentum, task.lr)
            decay, mu, offsets = task.training.weight_decay, task.correction.pull, _offsets(plans, self._device)
            plain = task.training.optimizer == "sgd" and not (task.training.momentum or decay or task.correction)
            tally, gradient = _Tally(len(plans), self._device), None
            descent = self._gradients.descent(weights) if plain else None
            for step in _Steps(plans):
                mine, batch = weights[: step.active], self._batch(step)
                if descent is not None:
                    judged = descent.step(batch, task.lr)
                else:
                    gradient = torch.zeros_like(weights) if gradient is None else gradient
                    g = gradient[: step.active]
                    judged = self._gradients.into(mine, batch, g)
                    if decay:
                        g.add_(mine, alpha=decay)
                    if mu:
                        g.add_(mine - anchor, alpha=mu)
                    if offsets is not None:
                        g.add_(offsets[: step.active])
                    move(mine, g)
                if step.tallied is not None:
                    tally.add(step, batch, judged, self._classes)
            if descent is not None:
                descent.write(weights)
            return weights.sub_(anchor), tally

    def _on_host(self, weights: Tensor) -> NDArray[np.float32]:
        """A GPU writes to the same pages of the host each time: to fill new ones takes forty times as long."""
        if self._device.type != "cuda":
            return np.asarray(weights.cpu().numpy())
        if len(self._host) < len(weights):
            self._host = torch.empty(weights.shape, pin_memory=True)
        return np.asarray(self._host[: len(weights)].copy_(weights).numpy())

    def _batch(self, step: "_Step") -> Batch:
        index, shape = step.rows.reshape(-1).to(self._device), step.rows.shape
        x, y = (rows.index_select(0, index).view(*shape, *rows.shape[1:]) for rows in (self._x, self._y))
        return Batch(x, y, step.shares.to(self._device))


_TOO_LARGE = "out of memory with this node alone: take a smaller batch_size or model, or another engine"


def out_of_memory(error: BaseException) -> bool:
    """On a CPU, torch's allocator raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"engine 'vectorised' cannot compute on device {name!r}: {str(error).splitlines()[0]}"
        ) from None
    return device


@contextmanager
def _precision(tf32: bool) -> Iterator[None]:
    """Inside, float32 products on a GPU are what float32 says, or, if wished, what tensor cores make of it; and cuDNN
    takes no algorithm whose result depends on timing."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _offsets(plans: list["_Plan"], device: torch.device) -> Tensor | None:
    """What is added to each node's gradients (k, n); None if nothing is. A strategy does it for all nodes or none."""
    offsets = [plan.assignment.task.correction.offset for plan in plans]
    given = [offset for offset in offsets if offset is not None]
    return torch.from_numpy(np.stack(given)).to(device) if given else None


def _gradients(spec: JobSpec, trainer: Trainer, federation: Federation, device: torch.device) -> Gradients:
    half = spec.training.mixed_precision and computes_half(device)
    try:
        if not half:
            return DenseGradients(dense_of(trainer), federation.schema)
    except CannotCompute:
        if not hasattr(trainer, "module"):
            raise
    layout = trainer.init(spec.seed).layout
    module = cast(nn.Module, trainer.module())  # type: ignore[attr-defined]
    found = FunctionalGradients(module.float().to(device), layout, federation.schema, half=half)
    return Recorded(found) if device.type == "cuda" else found


class _Plan:
    """One node's batches: `order` are its row numbers as they come, `sizes` how many of them each batch takes.

    Batches from number `tallied` on are the last epoch.
    """

    def __init__(self, assignment: Assignment, mine: NDArray[np.int64]) -> None:
        work = batches(len(mine), assignment.task)
        self.assignment = assignment
        self.rows = len(mine)
        self.order = mine[np.concatenate([rows for _, rows in work])]
        self.sizes = [len(rows) for _, rows in work]
        self.tallied = next(i for i, (epoch, _) in enumerate(work) if epoch == work[-1][0])


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """The batches of the first `active` nodes: row numbers and shares (active, b). `tallied` (active,): 1 or 0."""

    active: int
    rows: Tensor
    shares: Tensor
    tallied: Tensor | None


class _Steps:
    """All steps of a group, whose plans come with the longest first."""

    def __init__(self, plans: list[_Plan]) -> None:
        count, most = len(plans[0].sizes), max(max(plan.sizes) for plan in plans)
        self._sizes = np.zeros((count, len(plans)), np.int64)
        self._tallied = np.zeros((count, len(plans)), np.float64)
        self._rows = np.zeros((count, len(plans), most), np.int64)
        for k, plan in enumerate(plans):
            steps = len(plan.sizes)
            self._sizes[:steps, k] = plan.sizes
            self._tallied[plan.tallied : steps, k] = 1
            self._rows[:, k] = plan.order[0]  # a row of its own: 0 x NaN is NaN, and must not come from another node
            filled = np.arange(most) < np.array(plan.sizes)[:, None]
            self._rows[:steps, k][filled] = plan.order
        self._active = (self._sizes > 0).sum(axis=1)

    def __iter__(self) -> Iterator[_Step]:
        for s, active in enumerate(self._active.tolist()):
            sizes = self._sizes[s, :active]
            most = int(sizes.max())
            shares = (np.arange(most) < sizes[:, None]) / sizes[:, None].astype(np.float32)
            tallied = self._tallied[s, :active]
            yield _Step(
                active,
                torch.from_numpy(self._rows[s, :active, :most]),
                torch.from_numpy(shares.astype(np.float32)),
                torch.from_numpy(tallied) if tallied.any() else None,
            )


class _Move:
    """The steps of `tutti.adapters.trainers.optimizers`, for the first nodes of a group."""

    def __init__(self, kind: str, momentum: float, lr: float) -> None:
        self._adam, self._momentum, self._lr = kind == "adam", momentum, lr
        self._slots: list[Tensor] = []
        self._t = 0

    def __call__(self, weights: Tensor, gradient: Tensor) -> None:
        self._t += 1
        if not self._slots:
            self._slots = [torch.zeros_like(weights) for _ in range(2 if self._adam else 1)]
        slots = [slot[: len(weights)] for slot in self._slots]
        if self._adam:
            self._step_adam(weights, gradient, *slots)
        elif self._momentum:
            weights.sub_(slots[0].mul_(self._momentum).add_(gradient), alpha=self._lr)
        else:
            weights.sub_(gradient, alpha=self._lr)

    def _step_adam(self, weights: Tensor, gradient: Tensor, m: Tensor, v: Tensor) -> None:
        beta1, beta2, epsilon = 0.9, 0.999, 1e-8
        m.lerp_(gradient, 1 - beta1)
        v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = (v.sqrt() / (1 - beta2**self._t) ** 0.5).add_(epsilon)
        weights.addcdiv_(m, denominator, value=-self._lr / (1 - beta1**self._t))


class _Tally:
    """Sums over each node's last epoch."""

    def __init__(self, nodes: int, device: torch.device) -> None:
        self._device = device
        self._loss, self._hits, self._rows = (torch.zeros(nodes, dtype=torch.float64, device=device) for _ in range(3))

    def add(self, step: _Step, batch: Batch, judged: Judged, classes: bool) -> None:
        assert step.tallied is not None
        k, real, tallied = step.active, batch.shares > 0, step.tallied.to(self._device)
        self._rows[:k] += real.sum(1) * tallied
        self._loss[:k] += (judged.losses * real).sum(1) * tallied
        if classes:
            self._hits[:k] += ((judged.outputs.argmax(2) == batch.y) & real).sum(1) * tallied

    def metrics(self, classes: bool) -> list[Metrics]:
        loss, hits = (self._loss / self._rows).tolist(), (self._hits / self._rows).tolist()
        if not classes:
            return [{"loss": value} for value in loss]
        return [{"loss": value, "accuracy": share} for value, share in zip(loss, hits, strict=True)]
