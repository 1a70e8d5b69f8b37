"""Cohort sampling depends on the set of nodes and the seed, on nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutti.core.sampling import Pool, cohort_size, sample

names = st.sets(st.from_regex(r"[a-z]{1,4}", fullmatch=True), min_size=1, max_size=20)


@given(names, st.integers(1, 25), st.randoms(), st.integers(0, 2**62), st.integers(0, 99))
def test_the_order_of_the_nodes_does_not_matter(nodes, k, chance, seed, round):
    shuffled = list(nodes)
    chance.shuffle(shuffled)
    first = sample(sorted(nodes), k, seed=seed, round=round, attempt=0)
    assert sample(shuffled, k, seed=seed, round=round, attempt=0) == first
    assert len(first) == min(k, len(nodes)) == len(set(first))
    assert set(first) <= nodes


def test_rounds_and_attempts_draw_anew():
    nodes = [f"n{i}" for i in range(100)]
    draws = {sample(nodes, 10, seed=1, round=r, attempt=a) for r in range(5) for a in range(5)}
    assert len(draws) == 25


def test_every_node_is_drawn_about_equally_often():
    nodes = [f"n{i}" for i in range(20)]
    counts = dict.fromkeys(nodes, 0)
    for round in range(2000):
        for node in sample(nodes, 5, seed=7, round=round, attempt=0):
            counts[node] += 1
    assert all(count == pytest.approx(500, abs=100) for count in counts.values())


@pytest.mark.parametrize(
    ("eligible", "size", "fraction", "expected"),
    [(10, None, 1.0, 10), (10, None, 0.1, 1), (10, None, 0.11, 2), (3, None, 0.01, 1), (3, 5, 1.0, 3), (9, 4, 1.0, 4)],
)
def test_cohort_sizes(eligible, size, fraction, expected):
    assert cohort_size(eligible, size, fraction) == expected


@given(names, st.sets(st.from_regex(r"[a-z]{1,4}", fullmatch=True), max_size=20))
def test_a_pool_holds_what_its_set_holds(nodes, others):
    pool = Pool.of(list(nodes) * 2)
    assert list(pool) == sorted(nodes)
    assert Pool.of(pool) is pool
    assert {node for node in nodes | others if node in pool} == nodes
