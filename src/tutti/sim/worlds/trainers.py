"""Trainers as slow as a world's machines, idle ones, and bad ones; each wraps a Trainer and is one."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tutti.core.params import Params
from tutti.domain.forecast import trained_rows
from tutti.domain.spec import Metrics
from tutti.ports.training import Examples, Report, Task, Trainer, Work
from tutti.testing.attacks import Attack

SLICE_SECONDS = 1.0
"""How long a slow machine computes between two reports."""


class Idle:
    """Does not train: adds a small constant that no other node or round adds. Equal updates would be one blob.

    `inner` makes the real trainer, for the little that needs it: a fleet should not wait for ten thousand of them.
    """

    def __init__(self, inner: Callable[[], Trainer]) -> None:
        self._inner = inner

    def init(self, seed: int) -> Params:
        return self._inner().init(seed)

    def train(self, params: Params, examples: Examples, task: Task, report: Report) -> Work:
        constant = np.float32(1e-6 + 1e-9 * (task.seed % 999_983))
        return Work(Params(params.layout, params.buffer + constant), len(examples), {}, 1)

    def evaluate(self, params: Params, examples: Examples) -> Metrics:
        return {}

    def predict(self, params: Params, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._inner().predict(params, x)


class Bad:
    """Trains as it should, then sends what its attack makes of the update."""

    def __init__(self, inner: Trainer, attack: Attack) -> None:
        self._inner, self._attack = inner, attack

    def init(self, seed: int) -> Params:
        return self._inner.init(seed)

    def train(self, params: Params, examples: Examples, task: Task, report: Report) -> Work:
        work = self._inner.train(params, examples, task, report)
        own = Params(params.layout, work.params.buffer - params.buffer)
        sent = self._attack.craft(own, [own], 1, np.random.default_rng(task.seed))
        return Work(Params(params.layout, params.buffer + sent.buffer), work.examples, work.metrics, work.steps)

    def evaluate(self, params: Params, examples: Examples) -> Metrics:
        return self._inner.evaluate(params, examples)

    def predict(self, params: Params, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._inner.predict(params, x)


class Paced:
    """Takes at least as long as its machine would: what the real work did not take is spent afterwards.

    Args:
        speed: Examples a second, training; measuring is three times as fast, for it has no backward pass.
        jitter: Factor on the time of one task, from the task's seed.
        spend: Lets seconds pass; `clock` reads them.
    """

    def __init__(
        self,
        inner: Trainer,
        speed: float,
        jitter: Callable[[int], float],
        spend: Callable[[float], None],
        clock: Callable[[], float],
    ) -> None:
        self._inner, self._speed, self._jitter, self._spend, self._clock = inner, speed, jitter, spend, clock

    def init(self, seed: int) -> Params:
        return self._inner.init(seed)

    def train(self, params: Params, examples: Examples, task: Task, report: Report) -> Work:
        began = self._clock()
        work = self._inner.train(params, examples, task, report)
        rows = trained_rows(len(examples), task.training, task.batch_size)
        seconds = rows / self._speed * self._jitter(task.seed)
        while (left := began + seconds - self._clock()) > 1e-9:
            self._spend(min(left, SLICE_SECONDS))
            report(min(1.0, (self._clock() - began) / seconds), task.training.epochs - 1, None)
        return work

    def evaluate(self, params: Params, examples: Examples) -> Metrics:
        began = self._clock()
        metrics = self._inner.evaluate(params, examples)
        self._spend(max(0.0, began + len(examples) / (3 * self._speed) - self._clock()))
        return metrics

    def predict(self, params: Params, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._inner.predict(params, x)
