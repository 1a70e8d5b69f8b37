"""Federated training by the compute market: each update is a job, done by whoever is paid, checked, and averaged here.

The client keeps its rows together and pays for computing; nothing is private, as on the market nothing is. Whoever
has rows of its own that must not leave its machine joins a federation instead (`tutti join --data`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tutti.apps.market_client import MarketClient
from tutti.core.errors import Conflict, UserError
from tutti.core.params import Layout, Params
from tutti.core.reduce import Update, fold, weighted_mean

Numbers: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Plan:
    """`parts` updates a round, each paid `reward`; `key` names the whole: repeated with it, nothing is paid twice."""

    client: str
    parts: int
    rounds: int
    reward: int
    key: str
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


def train(market: MarketClient, x: Numbers, y: Numbers, plan: Plan, told: Callable[[int, float], None]) -> Numbers:
    """The weights (d + 1, outputs) in a row after all rounds; `told` hears of each round, and its mean loss.

    Raises Conflict if an update could not be had: repeat it with its key, and what is done is not done again.
    """
    if not 1 <= plan.parts <= len(x):
        raise UserError(f"expected 1 to {len(x)} parts, for there are so many rows, came {plan.parts}")
    order = np.random.Generator(np.random.PCG64(plan.seed)).permutation(len(x))
    shards = np.array_split(order, plan.parts)
    weights: Numbers | None = None
    for number in range(1, plan.rounds + 1):
        jobs = [_ask(market, x[rows], y[rows], weights, plan, number, at) for at, rows in enumerate(shards)]
        done = [_result(market, job) for job in jobs]
        weights = _mean(weights, [after for after, _ in done], [len(rows) for rows in shards])
        told(number, float(np.average([loss for _, loss in done], weights=[len(rows) for rows in shards])))
    assert weights is not None
    return weights


def _ask(market: MarketClient, x: Numbers, y: Numbers, start: Numbers | None, plan: Plan, number: int, at: int) -> str:
    file = BytesIO()
    np.savez(file, x=x, y=y) if start is None else np.savez(file, x=x, y=y, start=start)
    data, seed = market.upload(file.getvalue()).data, plan.seed + 1000 * number + at
    key = f"{plan.key}-{number}-{at}"
    wish = {"options": plan.options, "data": data, "seed": seed, "key": key}
    return market.submit(plan.client, "training", plan.reward, **wish).job_id  # type: ignore[arg-type]


def _result(market: MarketClient, job: str) -> tuple[Numbers, float]:
    found = market.wait(job)
    if found.status != "verified":
        raise Conflict(f"update {job} failed: {found.reason}; its reward is back: repeat the command with its key")
    values = market.result(job).values
    return np.array(values["weights"], np.float64), float(values["loss"])


def _mean(before: Numbers | None, after: list[Numbers], sizes: list[int]) -> Numbers:
    """FedAvg (McMahan et al. 2017, https://arxiv.org/abs/1602.05629), by the exact mean that coordinators use."""
    base = np.zeros_like(after[0]) if before is None else before
    deltas = [Params.from_arrays({"w": (each - base).astype(np.float32)}) for each in after]
    layout: Layout = deltas[0].layout
    updates = [Update(delta, size) for delta, size in zip(deltas, sizes, strict=True)]
    return np.asarray(base + fold(weighted_mean(), updates, layout, max(sizes)).buffer.astype(np.float64))
