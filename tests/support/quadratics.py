"""Nodes whose losses are quadratic: F_i(w) = 1/2 sum_j a_ij (w_j - b_ij)^2, trained by plain gradient descent.

Everything about them can be written down, so a strategy's two halves, run over the real reducer, can be compared
with the paper's formulas in float64.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tutti.core.local import Correction, Memory, Request, Trained
from tutti.core.params import Params
from tutti.core.reduce import Update, fold
from tutti.core.registry import Choice
from tutti.core.strategy import ServerState, folded, strategies

Array = NDArray[np.float64]
Gradient = Callable[[Array], Array]


@dataclass(frozen=True)
class Quadratic:
    """One node: its loss, how many steps it takes in a round, and how much it weighs."""

    a: Array
    b: Array
    steps: int = 5
    weight: int = 1

    def loss(self, w: Array) -> float:
        return float(0.5 * np.sum(self.a * (w - self.b) ** 2))

    def gradient(self, w: Array) -> Array:
        return self.a * (w - self.b)

    def descend(self, w: Array, lr: float, added: Gradient = np.zeros_like) -> Array:
        """The slow and obvious local work: w after all steps on the gradient and what is added to it."""
        for _ in range(self.steps):
            w = w - lr * (self.gradient(w) + added(w))
        return w

    def train(self, start: Params, correction: Correction, lr: float) -> Trained:
        first = start.buffer

        def added(w: Array) -> Array:
            return correction.at(w.astype(np.float32), first).astype(np.float64) if correction else np.zeros_like(w)

        w = self.descend(first.astype(np.float64), lr, added)
        return Trained(Params(start.layout, (w - first).astype(np.float32)), self.steps)


def nodes(
    *, seed: int = 0, count: int = 4, size: int = 3, weights: bool = False, steps: bool = False
) -> list[Quadratic]:
    """Heterogeneous nodes; all take five steps and weigh 1, unless asked otherwise."""
    rng = np.random.default_rng(seed)
    return [
        Quadratic(
            rng.uniform(0.5, 2.0, size),
            rng.normal(0, 2, size),
            int(rng.integers(1, 20)) if steps else 5,
            int(rng.integers(1, 9)) if weights else 1,
        )
        for _ in range(count)
    ]


def optimum(federation: list[Quadratic]) -> Array:
    """Where the weighted sum of all losses is least."""
    weights = np.array([[node.weight] for node in federation])
    a, b = np.stack([node.a for node in federation]), np.stack([node.b for node in federation])
    return np.asarray((weights * a * b).sum(0) / (weights * a).sum(0))


@dataclass
class Run:
    """What a strategy makes of a federation, round by round, by the code that deployments run."""

    text: str
    federation: list[Quadratic]
    lr: float = 0.1
    momentum: float = 0.0

    def __post_init__(self) -> None:
        self.strategy = strategies.build(Choice.parse(self.text))
        size = len(self.federation[0].a)
        self.state: ServerState = self.strategy.init(Params.from_arrays({"w": np.zeros(size)}))
        self.memory: dict[int, Memory] = {}
        self.facts: Mapping[str, float] = {}

    def round(self, cohort: list[int] | None = None) -> Array:
        """One round with these nodes (all if not said); the model after it."""
        local, model = self.strategy.local, self.state.params
        layout, updates, given = model.layout.with_vectors(local.vectors), [], []
        for i in range(len(self.federation)) if cohort is None else cohort:
            node = self.federation[i]
            request = Request(
                model,
                self.state.slots if self.strategy.shares_slots else {},
                self.strategy.configure(self.state),
                self.memory.get(i, {}),
                self.lr,
                self.momentum,
                node.loss(model.buffer.astype(np.float64)) if local.loss_first else 0.0,
            )
            trained = [node.train(plan.start, plan.correction, self.lr) for plan in local.plan(request)]
            handed = local.report(request, trained)
            assert local.fault_of(handed.facts) is None
            self.memory[i] = handed.memory
            updates.append(Update(handed.joined(), node.weight))
            given.append((node.weight, handed.facts))
        mean = fold(self.strategy.reducer, updates, layout, 16)
        update = folded(mean, model.layout, local, given, len(self.federation))
        self.state, self.facts = self.strategy.finish(self.state, update), update.facts
        return self.model

    @property
    def model(self) -> Array:
        return self.state.params.buffer.astype(np.float64)

    def rounds(self, count: int) -> Array:
        for _ in range(count):
            self.round()
        return self.model
