"""What each partitioner promises beside covering all rows, and what it refuses."""

from itertools import pairwise

import numpy as np
import pytest

from tutti.adapters.partitioners import CannotPartition, Parts, Population, partitioners
from tutti.core.registry import Choice

TEN = np.arange(6000) % 10


def divide(text: str, rows: Population, nodes: int, seed: int = 0) -> Parts:
    return partitioners.build(Choice.parse(text))(rows, nodes, seed)


def sizes(parts: Parts) -> list[int]:
    return [len(part) for part in parts]


@pytest.mark.parametrize(
    ("text", "rows", "nodes", "expected"),
    [
        ("linear", 60, 3, [10, 20, 30]),
        ("linear", 61, 3, [10, 20, 31]),
        ("square", 140, 3, [10, 40, 90]),
        ("exponential", 1000, 3, [90, 245, 665]),  # softmax of 1, 2, 3
        ("exponential:0.6931472", 70, 3, [10, 20, 40]),
        ("size:sizes=5x3x2", 100, 3, [50, 30, 20]),
        ("size:7", 9, 1, [9]),
        ("iid", 10, 4, [3, 3, 2, 2]),
    ],
)
def test_sizes_by_rule(text: str, rows: int, nodes: int, expected: list[int]) -> None:
    assert sizes(divide(text, Population(np.zeros(rows, np.int64)), nodes)) == expected


def test_parts_of_any_size_have_the_same_mixture() -> None:
    for text in ("linear", "square", "quantity-skew:100"):
        largest = max(divide(text, Population(TEN), 4), key=len)
        counts = np.bincount(TEN[largest])
        assert counts.max() < 1.3 * counts.min()


def test_pathological_nodes_hold_exactly_so_many_classes() -> None:
    for classes in (1, 2, 3):
        parts = divide(f"pathological:{classes}", Population(TEN), 20)
        assert {len(np.unique(TEN[part])) for part in parts} == {classes}
        assert sizes(parts) == [300] * 20  # every class is held by as many nodes as every other


def test_distribution_has_two_classes_a_node_and_a_heavy_tail() -> None:
    parts = divide("distribution:classes=2,sigma=2,minimum=5", Population(TEN), 50)
    counts = np.array([np.bincount(TEN[part], minlength=10) for part in parts])
    assert ((counts > 0).sum(axis=1) == 2).all()
    assert counts[counts > 0].min() >= 5
    assert counts.sum(axis=1).max() > 5 * np.median(counts.sum(axis=1))
    even = divide("distribution:classes=2,sigma=0", Population(TEN), 50)
    assert max(sizes(even)) - min(sizes(even)) <= 2


def test_inner_dirichlet_keeps_sizes_and_skews_classes() -> None:
    def skew(alpha: float) -> float:
        parts = divide(f"inner-dirichlet:{alpha}", Population(TEN), 20)
        assert sizes(parts) == [300] * 20
        return float(np.mean([np.bincount(TEN[part]).max() / len(part) for part in parts]))

    assert skew(0.05) > 0.6 > skew(0.5) > 0.2 > skew(100.0) > 0.1


def test_no_node_of_inner_dirichlet_is_left_with_what_others_spared() -> None:
    """Every node's largest class is one that its own draw favours: as skewed for the last node as for the first."""
    labels = np.arange(20_000) % 10
    parts = [divide("inner-dirichlet:0.3", Population(labels), 10, seed) for seed in range(10)]
    skews = np.array([[np.bincount(labels[p], minlength=10).max() / len(p) for p in each] for each in parts])
    assert skews.mean(axis=0).min() > 0.3


def test_quantity_skew_keeps_its_minimum() -> None:
    parts = divide("quantity-skew:beta=0.1,minimum=20", Population(TEN), 10)
    assert min(sizes(parts)) == 20
    assert max(sizes(parts)) > 2000


def test_continuous_gives_ranges() -> None:
    targets = np.random.default_rng(0).normal(size=(400, 1)).astype(np.float32)
    rows = Population(targets, np.column_stack([-targets, targets * 0]))
    spans = sorted((targets[part].min(), targets[part].max()) for part in divide("continuous:1", rows, 4))
    assert all(one[1] <= two[0] for one, two in pairwise(spans))
    spread = [targets[part].std() for part in divide("continuous:0", rows, 4)]
    assert min(spread) > 0.8
    by_target, by_feature = (
        {tuple(part) for part in divide(text, rows, 4)} for text in ("continuous:1", "continuous:1,feature=0")
    )
    assert by_target == by_feature
    assert sizes(divide("continuous:1,feature=1", rows, 4)) == [100] * 4  # a constant divides at random


def test_feature_skew_follows_the_direction_of_largest_spread() -> None:
    chance = np.random.default_rng(0)
    along, across = chance.normal(size=900) * 10, chance.normal(size=900)
    x = np.column_stack([along + across, along - across])
    parts = divide("feature-skew:1", Population(np.zeros(900, np.int64), x), 3)
    means = sorted(along[part].mean() for part in parts)
    assert means[0] < -8
    assert abs(means[1]) < 2
    assert means[2] > 8


def test_natural_ids() -> None:
    ids = np.array(["b", "a", "c", "a", "b", "d"])
    rows = Population(np.zeros(6, np.int64), ids=ids)
    assert [part.tolist() for part in divide("natural-id", rows, 4)] == [[1, 3], [0, 4], [2], [5]]
    grouped = divide("grouped-natural-id", rows, 2)
    assert not set(ids[grouped[0]]) & set(ids[grouped[1]])
    assert sorted(len(set(ids[part])) for part in grouped) == [2, 2]


def test_vertical_divides_features() -> None:
    rows = Population(np.zeros(9, np.int64), np.zeros((9, 5)))
    parts = divide("vertical", rows, 2)
    assert sorted(sizes(parts)) == [2, 3]
    assert sorted(np.concatenate(parts).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("text", "rows", "nodes", "message"),
    [
        ("exponential", Population(TEN[:60]), 8, "leaves node-1 of 8 without any of the 60 rows.*fewer parts"),
        ("size:sizes=1x1", Population(TEN), 3, "2 sizes for 3 parts"),
        ("size:sizes=1x9999999", Population(TEN), 2, "'size' leaves node-1 of 2"),
        ("pathological:2", Population(TEN), 4, "4 nodes of 2 classes cannot hold all 10 classes.*at least 5 parts"),
        ("pathological:2", Population(np.array([0, 0, 0, 0, 0, 1])), 3, "class 1 has 1 rows for the 3 nodes"),
        ("distribution:minimum=700", Population(TEN), 10, "class 0 has 600 rows, fewer than 700 for each of 2"),
        ("natural-id", Population(TEN), 4, "carry no ids.*id=column"),
        (
            "natural-id",
            Population(TEN[:3], ids=np.array(["a", "b", "b"])),
            3,
            r"2 ids \(a, b\) for 3 parts",
        ),
        ("natural-id", Population(TEN[:3], ids=np.array(["a", "b", "c"])), 2, "make 3 parts, or use 'grouped-"),
        ("grouped-natural-id", Population(TEN[:3], ids=np.array(["a", "b", "b"])), 3, "make at most 2 parts"),
        ("feature-skew", Population(TEN), 2, "without features"),
        ("continuous:feature=3", Population(TEN), 2, "without features"),
        ("continuous:feature=3", Population(TEN, np.zeros((6000, 2))), 2, "no feature 3, the last is 1"),
        ("vertical", Population(TEN, np.zeros((6000, 2))), 3, "node-3 of 3 without any of the 2 features"),
        ("vertical", Population(TEN, np.zeros((6000, 1, 8, 8))), 3, "columns of a table"),
        ("inner-dirichlet", Population(np.zeros((9, 1), np.float32)), 2, "divides by class"),
    ],
)
def test_what_is_impossible_is_named(text: str, rows: Population, nodes: int, message: str) -> None:
    with pytest.raises(CannotPartition, match=message):
        divide(text, rows, nodes)
