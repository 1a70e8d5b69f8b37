"""Random jobs for the compute market, to test that the honest are never found wanting: odd tables, every kind."""

import numpy as np

from tutti.core.registry import Choice
from tutti.core.workload import BadTable, Floats, Table, workloads
from tutti.domain.market.events import ComputeSubmitted
from tutti.services.market.judging import judge, solve
from tutti.wire.tables import encode, encode_table


def random_table(rng: np.random.Generator) -> Table:
    """Small, and as odd as users' tables are: constants, twins, whole numbers, few rows, far from zero, tiny, huge."""
    n, d = int(rng.integers(2, 60)), int(rng.integers(1, 7))
    x = rng.standard_normal((n, d)) * 10.0 ** rng.integers(-3, 4)
    oddity = int(rng.integers(0, 8))
    if oddity == 0:
        x[:, rng.integers(0, d)] = rng.integers(-3, 4)
    elif oddity == 1:
        x[:, -1] = x[:, 0]
    elif oddity == 2:
        x = rng.integers(0, 4, (n, d)).astype(np.float64)  # many ties
    elif oddity == 3:
        x = x + 10.0 ** rng.integers(2, 7)
    elif oddity == 4:
        x = np.repeat(x[: max(1, n // 4)], 4, axis=0)[:n]
    n = len(x)
    y = x @ rng.standard_normal(d) + rng.standard_normal(n) * rng.choice([0.0, 1e-3, 1.0])
    return Table(np.ascontiguousarray(x), y)


def random_kind(rng: np.random.Generator) -> Choice:
    options = {
        "linear_regression": {"ridge": float(10.0 ** rng.integers(-6, 2))},
        "kmeans": {"clusters": int(rng.integers(1, 6)), "iterations": int(rng.integers(1, 40))},
        "pca": {"components": int(rng.integers(1, 5))},
        "training": {
            "lr": float(rng.uniform(0.01, 1)),
            "epochs": int(rng.integers(1, 6)),
            "batch": int(rng.integers(1, 40)),
        },
    }
    name = str(rng.choice(sorted(options)))
    return Choice(name, options[name])  # type: ignore[arg-type]  # options of these kinds


def random_job(rng: np.random.Generator) -> tuple[ComputeSubmitted, Table]:
    """A job that is admitted, and its table."""
    while True:
        kind, table = random_kind(rng), random_table(rng)
        try:
            workloads.build(kind).admit(table)
        except BadTable:
            continue
        rows, columns = table.x.shape
        seed = int(rng.integers(0, 2**48))
        job = ComputeSubmitted(
            at=0, job="j", client="c", kind=kind, data="", rows=rows, columns=columns, seed=seed, reward=1
        )
        return job, table


def check_honest(rng: np.random.Generator) -> str:
    """Do a random job honestly, in the bytes in which it travels; why it was found wanting, or nothing."""
    job, table = random_job(rng)
    data = encode_table(table)
    result: bytes = encode(solve(job.kind, data, job.seed))
    verdict = judge(job, data, result, int(rng.integers(0, 2**48)), replay=bool(rng.random() < 0.5))
    return "" if verdict.holds else f"{job.kind} on {table.x.shape}: {verdict.reason}"


def garbage(rng: np.random.Generator, honest: dict[str, Floats]) -> dict[str, Floats]:
    """What somebody might send instead of a result."""
    found = dict(honest)
    for name in list(found):
        match int(rng.integers(0, 6)):
            case 0:
                del found[name]
            case 1:
                found[name] = np.full_like(found[name], rng.choice([np.nan, np.inf, 1e308, -1e308, 0.0, -1.0]))
            case 2:
                found[name] = np.zeros((0, *found[name].shape[1:]))
            case 3:
                found[name] = found[name] * 10.0 ** rng.integers(-300, 300)
            case 4:
                found[name] = np.zeros(tuple(rng.integers(0, 4, int(rng.integers(0, 5)))))
            case _:
                pass
    return found
