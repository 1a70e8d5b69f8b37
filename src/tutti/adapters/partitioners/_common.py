"""What several partitioners share: seeded chance, classes, parts by size, by owner and by value."""

import numpy as np
from numpy.typing import NDArray

from tutti.adapters.partitioners import CannotPartition, Parts, Population

Sizes = NDArray[np.int64]


def rng(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def classes_of(population: Population, partitioner: str) -> NDArray[np.int64]:
    """int64 (n,) classes; raises CannotPartition for targets that are none."""
    labels = population.labels
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise CannotPartition(
            f"partition {partitioner!r} divides by class, and these targets are no classes; use 'iid' or 'continuous'"
        )
    return np.asarray(labels, np.int64)


def ids_of(population: Population, partitioner: str) -> NDArray[np.str_]:
    if population.ids is None:
        raise CannotPartition(
            f"partition {partitioner!r} divides by whom rows belong to, and these rows carry no ids; "
            "take a data set that has them, or name their column (csv:…,id=column)"
        )
    return population.ids


def apportion(shares: NDArray[np.float64], rows: int) -> Sizes:
    """Whole numbers in the proportions of `shares` that add up to `rows` (largest remainders)."""
    exact = shares / shares.sum() * rows
    sizes: Sizes = np.floor(exact).astype(np.int64)
    order = np.argsort(sizes - exact, kind="stable")
    sizes[order[: rows - int(sizes.sum())]] += 1
    return sizes


def by_size(population: Population, sizes: Sizes, seed: int, partitioner: str) -> Parts:
    """Shuffled rows cut into parts of these sizes; raises CannotPartition if one is empty."""
    require_rows(sizes, partitioner, len(population))
    order = rng(seed).permutation(len(population))
    return [np.sort(part) for part in np.split(order, np.cumsum(sizes)[:-1])]


def by_owner(owner: NDArray[np.int64], nodes: int, partitioner: str) -> Parts:
    """The rows of each node from the node of each row; raises CannotPartition if a node has none."""
    require_rows(np.bincount(owner, minlength=nodes), partitioner, len(owner))
    return [np.flatnonzero(owner == node) for node in range(nodes)]


def require_rows(sizes: Sizes, partitioner: str, rows: int) -> None:
    if (sizes == 0).any():
        raise CannotPartition(
            f"partition {partitioner!r} leaves node-{int(np.argmin(sizes)) + 1} of {len(sizes)} without any of the "
            f"{rows} rows; make fewer parts, or choose gentler options"
        )


def by_value(values: NDArray[np.float64], nodes: int, strictness: float, seed: int) -> Parts:
    """Equal parts by rank of `values` mixed with noise: strictness 1 gives each node an interval, 0 is IID."""
    deviation = values.std()
    standard = (values - values.mean()) / (deviation if deviation > 0 else 1.0)
    # A stream of its own: data that somebody drew from the plain seed must not come out as their own noise.
    chance = np.random.Generator(np.random.PCG64([seed, 1]))
    score = strictness * standard + (1 - strictness) * chance.standard_normal(len(values))
    order = np.lexsort((chance.permutation(len(values)), score))  # equal values fall to either side at random
    places = chance.permutation(nodes)
    parts = np.array_split(order, nodes)
    return [np.sort(parts[place]) for place in places]


def top_up(owner: NDArray[np.int64], nodes: int, minimum: int, chance: np.random.Generator) -> None:
    """Let the largest node give random rows to the smallest until every node has `minimum`."""
    counts = np.bincount(owner, minlength=nodes)
    while counts.min() < minimum:
        poor, rich = int(counts.argmin()), int(counts.argmax())
        given = min(minimum - counts[poor], counts[rich] - minimum)
        owner[chance.choice(np.flatnonzero(owner == rich), size=given, replace=False)] = poor
        counts[poor] += given
        counts[rich] -= given
