"""Bad nodes, for tests and simulations: what they train on, and what they send instead of what they have learnt.

They know more than real ones would: the updates of all honest nodes of the round, and how many of them are bad.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tutti.core.params import Params
from tutti.ports.training import Examples

Rng: TypeAlias = np.random.Generator
Craft: TypeAlias = Callable[[Params, Sequence[Params], int, Rng], Params]
"""(own honest delta, deltas of the honest nodes, number of bad nodes, rng) -> the delta to send"""


def _as_they_are(examples: Examples, rng: Rng) -> Examples:
    return examples


def _as_learnt(own: Params, honest: Sequence[Params], bad: int, rng: Rng) -> Params:
    return own


@dataclass(frozen=True, slots=True)
class Attack:
    """One kind of bad node. The inputs are never changed.

    Attributes:
        poison: The rows that a bad node trains on, from its own.
        craft: What it sends, see Craft.
        goal: Test rows with the labels that the attacker wants for them, so that a model's accuracy on them is the
            attack's success; None where it only wants to do harm.
    """

    poison: Callable[[Examples, Rng], Examples] = _as_they_are
    craft: Craft = _as_learnt
    goal: Callable[[Examples], Examples] | None = None


def label_flip(classes: int = 10) -> Attack:
    """Train on label L - 1 - y instead of y: Fang et al. 2020, https://arxiv.org/abs/1911.11815."""

    def flipped(examples: Examples) -> Examples:
        return Examples(examples.x, classes - 1 - examples.y)

    return Attack(poison=lambda examples, rng: flipped(examples), goal=flipped)


def sign_flip(scale: float = 1.0) -> Attack:
    """Send the own update with the other sign: Li et al. 2019, https://arxiv.org/abs/1811.03761."""
    return Attack(craft=lambda own, honest, bad, rng: _with(own, -scale * own.buffer))


def scaled_update(factor: float = 10.0) -> Attack:
    """Send the own update so many times as large: Bagdasaryan et al. 2018, https://arxiv.org/abs/1807.00459."""
    return Attack(craft=lambda own, honest, bad, rng: _with(own, factor * own.buffer))


def alie(z: float | None = None) -> Attack:
    """A little is enough: Baruch et al. 2019, https://arxiv.org/abs/1902.06156, Algorithm 3.

    All bad nodes send mean - z std of the honest updates: near enough to pass, and all in the same direction. z
    defaults to the largest that leaves enough honest nodes further out to form a majority with the bad ones.
    """

    def craft(own: Params, honest: Sequence[Params], bad: int, rng: Rng) -> Params:
        rows = np.stack([delta.buffer for delta in honest])
        distance = _unsuspicious(len(honest) + bad, bad) if z is None else z
        return _with(own, rows.mean(axis=0) - distance * rows.std(axis=0))

    return Attack(craft=craft)


def _unsuspicious(nodes: int, bad: int) -> float:
    supporters = nodes // 2 + 1 - bad
    share = (nodes - bad - supporters) / (nodes - bad)
    return NormalDist().inv_cdf(min(max(share, 0.5), 0.999))


def inner_product(epsilon: float = 0.5) -> Attack:
    """Send -epsilon times the honest mean: Xie et al. 2019, https://arxiv.org/abs/1903.03936.

    With many bad nodes or a large epsilon the aggregate points away from where the honest ones want to go.
    """

    def craft(own: Params, honest: Sequence[Params], bad: int, rng: Rng) -> Params:
        return _with(own, -epsilon * np.mean([delta.buffer for delta in honest], axis=0))

    return Attack(craft=craft)


def free_rider(noise: float = 0.0) -> Attack:
    """Send no change, or noise of a standard deviation: Fraboni et al. 2021, https://arxiv.org/abs/2006.11901."""
    return Attack(craft=lambda own, honest, bad, rng: _with(own, noise * rng.standard_normal(own.buffer.size)))


def backdoor(target: int = 0, share: float = 0.5, pixels: int = 4, factor: float = 1.0) -> Attack:
    """Mark some rows with a trigger, the last `pixels` features at their largest, and label them `target`.

    Gu et al. 2017, https://arxiv.org/abs/1708.06733; with a factor, the update is scaled as in model replacement.
    """

    def stamped(x: NDArray[np.float32]) -> NDArray[np.float32]:
        marked = x.reshape(len(x), -1).copy()
        marked[:, -pixels:] = 1.0
        return marked.reshape(x.shape)

    def poison(examples: Examples, rng: Rng) -> Examples:
        chosen = rng.permutation(len(examples))[: round(share * len(examples))]
        x, y = examples.x.copy(), examples.y.copy()
        x[chosen], y[chosen] = stamped(x[chosen]), target
        return Examples(x, y)

    def goal(examples: Examples) -> Examples:
        others = examples.y != target
        return Examples(stamped(examples.x[others]), np.full_like(examples.y[others], target))

    return Attack(poison, scaled_update(factor).craft, goal)


def _with(params: Params, values: NDArray[np.floating]) -> Params:
    return Params(params.layout, np.asarray(values, np.float32))


ATTACKS: Mapping[str, Attack] = MappingProxyType(
    {
        "none": Attack(),
        "label flip": label_flip(),
        "sign flip": sign_flip(4.0),
        "scaled update": Attack(label_flip().poison, scaled_update(10.0).craft, label_flip().goal),
        "ALIE": alie(),
        "inner product": inner_product(2.0),
        "free rider": free_rider(),
        "backdoor": backdoor(factor=5.0),
    }
)
"""Each attack at a strength that harms the plain mean, for ten classes; `none` is a node like any other."""
