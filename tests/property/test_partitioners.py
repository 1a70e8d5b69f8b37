"""Every registered partitioner: disjoint, covering, deterministic, and skewed as promised."""

from contextlib import nullcontext, suppress
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutti.adapters.partitioners import CannotPartition, Partitioner, Population, Vertical, partitioners
from tutti.core.registry import Choice

ALL = list(partitioners)
SEEDS = st.integers(0, 2**32)

MAY_REFUSE = {"exponential", "square", "linear", "size", "pathological", "distribution", "natural-id"}
"""Those for which some populations of two rows a node cannot be divided so; the others always can."""


def test_those_we_document_are_there() -> None:
    documented = "iid dirichlet inner-dirichlet pathological shard linear square exponential size distribution"
    more = "continuous natural-id grouped-natural-id quantity-skew feature-skew vertical"
    assert set(f"{documented} {more}".split()) <= set(ALL)


def choice(name: str, nodes: int) -> Choice:
    return Choice(name, {"sizes": list(range(1, nodes + 1))} if name == "size" else {})


def population(labels: list[int]) -> Population:
    """Rows with a feature like their label, another of chance, and two rows of each id."""
    n = len(labels)
    noise = np.random.default_rng(n).normal(size=(n, 19))
    x = np.column_stack([np.array(labels) + noise[:, 0], noise]).astype(np.float32)
    return Population(np.array(labels, np.int64), x, np.array([f"id-{i // 2}" for i in range(n)]))


@pytest.mark.parametrize("name", ALL)
@given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=120), nodes=st.integers(1, 20), seed=SEEDS)
def test_parts_are_disjoint_and_cover_everything(name: str, labels: list[int], nodes: int, seed: int) -> None:
    rows = population(labels * 2)
    nodes = min(nodes, len(labels))  # at least two rows a node
    partition = partitioners.build(choice(name, nodes))
    with suppress(CannotPartition) if name in MAY_REFUSE else nullcontext():
        check_parts(name, partition, rows, nodes, seed)


def check_parts(name: str, partition: Partitioner, rows: Population, nodes: int, seed: int) -> None:
    parts = partition(rows, nodes, seed)
    assert len(parts) == nodes
    assert all(part.dtype == np.int64 and len(part) > 0 and (np.diff(part) > 0).all() for part in parts)
    divided = 20 if isinstance(partition, Vertical) else len(rows)
    assert sorted(np.concatenate(parts).tolist()) == list(range(divided))
    again = partitioners.build(choice(name, nodes))(population(rows.labels.tolist()), nodes, seed)
    assert all(np.array_equal(one, two) for one, two in zip(parts, again, strict=True))


@pytest.mark.parametrize("name", sorted(set(ALL) - {"natural-id"}))
def test_another_seed_gives_another_partition(name: str) -> None:
    rows = population([i % 10 for i in range(200)])
    partition = partitioners.build(choice(name, 5))
    one, two = partition(rows, 5, 0), partition(rows, 5, 1)
    assert any(not np.array_equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("name", ALL)
def test_more_parts_than_rows_are_refused(name: str) -> None:
    partition = partitioners.build(choice(name, 4))
    with pytest.raises(CannotPartition, match="rows, there are 3"):
        partition(population([0, 1, 2]), 4, 0)
    with pytest.raises(CannotPartition, match="one part or more"):
        partition(population([0, 1, 2]), 0, 0)


@given(
    nodes=st.integers(1, 12),
    alpha=st.floats(0.001, 100),
    minimum=st.integers(1, 60),
    classes=st.integers(1, 10),
    seed=SEEDS,
)
def test_dirichlet_keeps_its_minimum(nodes: int, alpha: float, minimum: int, classes: int, seed: int) -> None:
    labels = np.arange(300) % classes
    partition = partitioners.build(Choice("dirichlet", {"alpha": alpha, "minimum": minimum}))
    assert min(len(part) for part in partition(Population(labels), nodes, seed)) >= min(minimum, 300 // nodes)


def test_smaller_alpha_means_more_skew() -> None:
    """Mean over nodes of the largest class share: 0.1 when even, 1 when a node has one class only."""
    labels = np.arange(5000) % 10

    def skew(alpha: float) -> float:
        parts = partitioners.build(Choice("dirichlet", {"alpha": alpha}))(Population(labels), 20, 0)
        return float(np.mean([np.bincount(labels[part]).max() / len(part) for part in parts]))

    assert skew(0.05) > 0.6 > skew(0.5) > 0.2 > skew(100.0) > 0.1


def test_dirichlet_shares_have_the_distribution_of_the_paper() -> None:
    """The share of a class that the first of two nodes gets is Beta(alpha, alpha): variance 1 / (4 (2 alpha + 1))."""
    labels = np.zeros(1000, np.int64)
    partition = partitioners.build(Choice("dirichlet", {"alpha": 1.5, "minimum": 1}))
    shares = [len(partition(Population(labels), 2, seed)[0]) / 1000 for seed in range(2000)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.02)
    assert np.var(shares) == pytest.approx(1 / 16, rel=0.1)


def test_two_shards_a_node_is_the_split_of_mcmahan() -> None:
    """100 nodes of 600 rows with at most four classes, mostly two (https://arxiv.org/abs/1602.05629, section 3)."""
    labels = np.arange(60_000) % 10
    parts = partitioners.build(Choice.parse("shard:2"))(Population(labels), 100, 0)
    assert {len(part) for part in parts} == {600}
    classes = [len(np.unique(labels[part])) for part in parts]
    assert max(classes) <= 4
    assert np.median(classes) == 2


def test_shards_of_targets_are_sorted_by_value() -> None:
    targets = np.random.default_rng(0).normal(size=(100, 1)).astype(np.float32)
    parts = partitioners.build(Choice.parse("shard:1"))(Population(targets), 4, 0)
    spans = sorted((targets[part].min(), targets[part].max()) for part in parts)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
