"""Statistics without rows: against numpy on all rows together, and never of fewer rows than the owner allows."""

import numpy as np
import pytest

from tutti.core.statistics import Column, Distribution, Range, Statistics, class_counts, describe, pooled

RNG = np.random.default_rng(7)
LEAST = 10


def values(kind: str, n: int) -> np.ndarray:
    return {
        "normal": RNG.normal(50, 12, n),
        "lognormal": RNG.lognormal(3, 1, n),
        "signed": RNG.normal(0, 3, n),
        "binary": RNG.integers(0, 2, n).astype(float),
        "small": RNG.uniform(0, 1e-3, n),
    }[kind]


@pytest.mark.parametrize("kind", ["normal", "lognormal", "signed", "binary", "small"])
def test_what_nodes_tell_adds_up_to_the_statistics_of_all_rows(kind):
    parts = [values(kind, n) for n in (400, 900, 150)]
    told = {
        f"node-{i}": Statistics(rows=len(part), columns=(describe("age", part, least=LEAST),))
        for i, part in enumerate(parts)
    }
    whole, (column,) = np.concatenate(parts), pooled(told).columns
    assert column.count == len(whole)
    assert column.mean == pytest.approx(whole.mean())
    assert column.deviation == pytest.approx(whole.std())
    found = Distribution(column.ranges)
    assert found.rows == len(whole)
    for share, quantile in zip((0.25, 0.5, 0.75), found.quantiles((0.25, 0.5, 0.75)), strict=True):
        within = np.quantile(whole, [max(0, share - 0.03), share + 0.03]) + 0.021 * np.abs(whole).max() * np.array(
            [-1, 1]
        )
        assert within[0] <= quantile <= within[1]
    assert sum(bar.rows for bar in found.histogram(7)) == pytest.approx(len(whole), abs=7)


@pytest.mark.parametrize("kind", ["normal", "lognormal", "signed", "binary"])
@pytest.mark.parametrize("n", [10, 19, 20, 21, 57, 5000])
def test_no_range_holds_fewer_rows_than_the_least(kind, n):
    column = describe("age", values(kind, n), least=LEAST)
    assert all(each.rows >= LEAST for each in column.ranges)
    assert sum(each.rows for each in column.ranges) == (n if n >= 2 * LEAST else 0)


def test_an_extreme_row_leaves_no_border():
    ordinary = RNG.uniform(20, 90, 300)
    usual, odd = (describe("age", np.append(ordinary, last), least=LEAST) for last in (50.0, 1e6))
    assert max(each.high for each in odd.ranges) <= 1.03 * max(each.high for each in usual.ranges)


def test_too_few_rows_tell_nothing():
    assert describe("age", np.arange(9.0), least=LEAST) == Column(name="age")


@pytest.mark.parametrize(("missing", "shown", "count"), [(0, 0, 40), (3, None, 40), (10, 10, 40)])
def test_few_missing_values_are_hidden_and_cannot_be_worked_out(missing, shown, count):
    column = describe("age", values("normal", 40), least=LEAST, missing=missing)
    assert (column.missing, column.count) == (shown, count)


@pytest.mark.parametrize(("missing", "shown", "count"), [(10, 10, 40), (30, 30, 40), (31, None, 0), (40, None, 0)])
def test_the_mean_of_few_values_is_not_told_of_where_it_was_put_for_the_others(missing, shown, count):
    column = describe("age", values("normal", 40), least=LEAST, missing=missing, filled=True)
    assert (column.missing, column.count, column.mean != 0) == (shown, count, count > 0)


@pytest.mark.parametrize(
    ("counts", "shown"),
    [
        ((50, 60), (50, 60)),
        ((0, 60), (0, 60)),
        ((3, 60), (None, None)),
        ((3, 60, 80), (None, None, 80)),
        ((3, 8, 80), (None, None, 80)),
        ((3, 4, 70, 80), (None, None, None, 80)),
    ],
)
def test_small_classes_are_hidden_with_what_would_tell_them(counts, shown):
    y = np.repeat(np.arange(len(counts)), counts)
    assert class_counts(y, len(counts), least=LEAST) == shown


def test_rows_of_many_values_count_as_rows():
    column = describe("pixels", RNG.uniform(0, 1, (30, 64)), least=LEAST)
    assert column.count == 30
    assert all(each.rows >= LEAST for each in column.ranges)


def test_quantiles_by_hand():
    found = Distribution([Range(0, 10, 10), Range(10, 10, 10), Range(10, 20, 20)])
    assert found.quantiles((0.0, 0.125, 0.25, 0.4, 0.5, 0.75, 1.0)) == [0, 5, 10, 10, 10, 15, 20]
    assert found.below(15) == 30
    assert found.histogram(2) == [Range(0, 10, 20), Range(10, 20, 20)]
    assert Distribution([]).quantiles((0.5,)) == Distribution([]).histogram() == []


def test_the_order_of_nodes_leaves_no_trace():
    told = {name: Statistics(rows=50, columns=(describe("a", values("normal", 50), least=LEAST),)) for name in "abc"}
    assert pooled(dict(reversed(told.items()))) == pooled(told)
    hidden = Statistics(rows=50, classes=(None, 30))
    assert pooled({"a": hidden, "b": Statistics(rows=50, classes=(20, 30))}).classes == (None, 60)
