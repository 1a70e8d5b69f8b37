"""The exact weighted mean: hand-computed numbers, refusals with their reasons, and both implementations."""

import re
from collections.abc import Callable

import numpy as np
import pytest

from tutti.core import fixedpoint
from tutti.core.fixedpoint import (
    FixedPoint,
    TooCoarse,
    accumulate_numpy,
    all_within_numpy,
    blocks_of,
    divide_numpy,
    fixed_point,
)
from tutti.core.params import Params, Role
from tutti.core.reduce import BadUpdate, Update, fold, weighted_mean

reducer = weighted_mean()

ROLES = {"mean": Role.BUFFER, "seen": Role.COUNTER}


def update(w: list[float], mean: list[float], seen: float, weight: int = 1) -> Update:
    arrays = {"w": np.array(w, float), "mean": np.array(mean, float), "seen": np.array(seen, float)}
    return Update(Params.from_arrays(arrays, ROLES), weight)


ONE = update([1.0, -2.0], [0.5], 7.0, weight=1)
THREE = update([2.0, 2.0], [1.5], 3.0, weight=3)


def test_mean_by_hand() -> None:
    mean = fold(reducer, [ONE, THREE], ONE.delta.layout, max_weight=3)
    assert mean["w"].tolist() == [1.75, 1.0]  # (1 + 3*2)/4, (-2 + 3*2)/4
    assert mean["mean"].tolist() == [1.25]  # buffers are averaged like weights
    assert mean["seen"].tolist() == 7.0  # counters take the maximum, whatever the weight


def test_a_counter_may_fall_and_has_one_zero() -> None:
    falling = [update([0, 0], [0], -4.0), update([0, 0], [0], -2.0)]
    assert fold(reducer, falling, ONE.delta.layout, 1)["seen"] == -2.0
    zeros = [update([0, 0], [0], -0.0), update([0, 0], [0], 0.0)]
    for order in (zeros, zeros[::-1]):
        assert not np.signbit(fold(reducer, order, ONE.delta.layout, 1)["seen"])


def test_nothing_merged_with_nothing_and_then_something() -> None:
    """The sums of an empty accumulator are not written yet: nobody may take them for something."""
    whole, empty, one = (reducer.zero(ONE.delta.layout, 4, 2**20) for _ in range(3))
    for acc in (whole, empty):
        acc.sums[:] = 7
    with pytest.raises(BadUpdate):
        reducer.add(whole, Update(Params(ONE.delta.layout, np.full_like(ONE.delta.buffer, np.nan)), 1))
    reducer.merge(whole, empty)
    reducer.add(one, ONE)
    reducer.merge(whole, one)
    reducer.merge(whole, empty)
    assert reducer.finish(whole).buffer.tolist() == ONE.delta.buffer.tolist()


def test_merge_equals_adding() -> None:
    left, right, all_ = (reducer.zero(ONE.delta.layout, 4, 3) for _ in range(3))
    reducer.add(left, ONE)
    reducer.add(right, THREE, THREE)
    reducer.merge(left, right)
    reducer.add(all_, THREE, ONE, THREE)
    assert reducer.finish(left).buffer.tobytes() == reducer.finish(all_).buffer.tobytes()


def test_ties_round_to_even_in_both_directions() -> None:
    low = np.float32(1.0)
    high = np.nextafter(low, np.float32(2))
    higher = np.nextafter(high, np.float32(2))
    for sign in (1, -1):
        pairs = np.array([[low, high], [high, higher]], np.float32) * np.float32(sign)
        updates = [Update(Params.from_arrays({"w": pairs[:, i]}), 1) for i in (0, 1)]
        mean = fold(reducer, updates, updates[0].delta.layout, 1)
        assert mean.buffer.tolist() == [sign * low, sign * higher]


def test_models_larger_than_a_block_and_layouts_of_many_spans() -> None:
    rng = np.random.default_rng(3)
    arrays = {f"{i}.{name}": rng.standard_normal(n) for i in range(4) for name, n in (("w", 9000), ("v", 10), ("n", 1))}
    roles = {f"{i}.{name}": role for i in range(4) for name, role in (("v", Role.BUFFER), ("n", Role.COUNTER))}
    delta = Params.from_arrays(arrays, roles)
    mean = fold(reducer, [Update(delta, 2), Update(delta, 5)], delta.layout, 8)
    assert np.abs(mean.buffer - delta.buffer).max() <= 2.0**-32


def test_an_empty_model_and_an_empty_entry() -> None:
    for arrays in ({}, {"w": np.zeros((0, 3)), "x": np.ones(1)}):
        delta = Params.from_arrays(arrays)
        acc = reducer.zero(delta.layout, 1, 1)
        assert reducer.check(acc, Update(delta, 1)) is None
        reducer.add(acc, Update(delta, 1))
        assert reducer.finish(acc).buffer.tolist() == delta.buffer.tolist()


# -- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (update([1, np.nan], [0], 0), r"'w' holds nan at \[1\].*finite"),
        (update([0, 0], [-np.inf], 0), r"'mean' holds -inf at \[0\].*finite"),
        (update([0, 0], [0], np.inf), r"'seen' holds inf at \[\].*finite"),
        (update([0, 300.5], [0], 0), r"'w' holds 300.5 at \[1\].*at most 256"),
        (update([0, 0], [-256.5], 0), r"'mean' holds -256.5 at \[0\].*at most 256"),
        (update([0, 0], [0], 0, weight=0), r"weight .* from 1 to 1048576, came 0"),
        (update([0, 0], [0], 0, weight=2**20 + 1), r"weight .* from 1 to 1048576, came 1048577"),
        (update([0, 0], [0], 0, weight=1.5), r"weight .* whole number .* came 1.5"),  # type: ignore[arg-type]
        (update([0, 0], [0], 0, weight=True), r"weight .* came True"),
        (update([0, 0, 0], [0], 0), r"wrong layout: 'w' should be float64\[2\] .* came as float64\[3\]"),
    ],
)
def test_refusals_say_why_and_leave_no_trace(bad: Update, reason: str) -> None:
    acc = reducer.zero(ONE.delta.layout, 8, 2**20)
    assert reducer.check(acc, ONE) is None
    assert re.search(reason, reducer.check(acc, bad) or "")
    reducer.add(acc, THREE)
    for attempt in ([bad], [ONE, bad], [bad, ONE]):
        with pytest.raises(BadUpdate, match=reason):
            reducer.add(acc, *attempt)
    reducer.add(acc, ONE)
    expected = fold(reducer, [ONE, THREE], ONE.delta.layout, 2**20)
    assert reducer.finish(acc).buffer.tobytes() == expected.buffer.tobytes()


@pytest.mark.parametrize("before", [0, 1])
def test_a_bad_block_behind_good_ones_is_taken_back(before: int) -> None:
    values = np.full(60_000, 0.25, np.float32)
    acc = reducer.zero(Params.from_arrays({"w": values}).layout, 8, 10)
    broken = values.copy()
    broken[50_000] = np.nan
    good = Update(Params.from_arrays({"w": values}), 4)
    for _ in range(before):
        reducer.add(acc, good)
    with pytest.raises(BadUpdate, match=r"\[50000\]"):
        reducer.add(acc, good, Update(Params.from_arrays({"w": broken}), 3))
    assert (acc.count, acc.weight) == (before, 4 * before)
    reducer.add(acc, Update(Params.from_arrays({"w": 3 * values}), 4))
    assert np.unique(reducer.finish(acc).buffer).tolist() == [[0.75], [0.5]][before]


def test_values_at_the_limit_and_subnormals_are_fine() -> None:
    values = np.array([256, -256, 2.0**-149, -(2.0**-149), 0, -0.0])
    mean = fold(
        reducer, [Update(Params.from_arrays({"w": values}), 2**24)] * 3, Params.from_arrays({"w": values}).layout, 2**24
    )
    assert mean.buffer.tolist() == [256, -256, 0, 0, 0, 0]


def test_capacity_is_kept() -> None:
    acc = reducer.zero(ONE.delta.layout, 2, 3)
    reducer.add(acc, ONE, THREE)
    with pytest.raises(BadUpdate, match="at most 2 updates, came 3"):
        reducer.add(acc, ONE)
    other = reducer.zero(ONE.delta.layout, 2, 3)
    reducer.add(other, ONE)
    with pytest.raises(BadUpdate, match="at most 2 updates, came 3"):
        reducer.merge(acc, other)


def test_misuse_is_our_fault_not_theirs() -> None:
    acc = reducer.zero(ONE.delta.layout, 2, 3)
    with pytest.raises(ValueError, match="no updates"):
        reducer.finish(acc)
    with pytest.raises(ValueError, match="merged"):
        reducer.merge(acc, reducer.zero(ONE.delta.layout, 2, 2**20))
    with pytest.raises(ValueError, match="merged"):
        reducer.merge(acc, acc)
    reducer.add(acc, ONE)
    reducer.finish(acc)
    for use in (lambda: reducer.finish(acc), lambda: reducer.add(acc, ONE)):
        with pytest.raises(ValueError, match="finished"):
            use()


# -- the format --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("updates", "weight", "expected"),
    [
        (1, 1, FixedPoint(32, 2.0**19)),
        (50, 2**10, FixedPoint(32, 2.0**9)),
        (50, 2**20, FixedPoint(23, 256.0)),
        (4095, 2**24, FixedPoint(19, 256.0)),
        (65_535, 2**20, FixedPoint(19, 256.0)),
    ],
)
def test_formats(updates: int, weight: int, expected: FixedPoint) -> None:
    point = fixed_point(updates, weight)
    assert point == expected
    largest = point.limit * point.scale(weight)
    assert largest <= 2**51
    assert updates * int(largest) < 2**63


@pytest.mark.parametrize(
    ("updates", "weight", "reason"),
    [
        (4096, 2**24, "leave 18 bits .* 19 are needed; lower the largest weight by 2 times"),
        (10**6, 2**20, "lower the largest weight by 16 times"),
        (0, 1, "at least 1 update"),
        (1, 0, "from 1 to 16777216"),
        (1, 2**24 + 1, "came 1 updates and weight 16777217"),
    ],
)
def test_what_could_overflow_or_be_too_coarse_is_refused(updates: int, weight: int, reason: str) -> None:
    with pytest.raises(TooCoarse, match=reason):
        reducer.zero(ONE.delta.layout, updates, weight)


# -- the two implementations -------------------------------------------------------------------------


@pytest.mark.parametrize("anew", [False, True])
def test_kernel_and_numpy_agree(anew: bool) -> None:
    kernels = pytest.importorskip("tutti.core._kernels", reason="built without a C compiler")
    rng = np.random.default_rng(5)
    size = 50_001
    deltas = [(rng.standard_normal(size) * 10.0 ** rng.integers(-8, 3, size)).astype(np.float32) for _ in range(5)]
    deltas = [np.clip(delta, -256, 256) for delta in deltas]
    deltas[3][40_000] = np.nan
    scales = [float(w) * 2.0**23 for w in (1, 3, 1000, 17, 2**20)]
    blocks = blocks_of([slice(3, 20_000), slice(20_001, size)])
    results = []
    for accumulate, threads in ((accumulate_numpy, ()), (kernels.accumulate, (1,)), (kernels.accumulate, (3,))):
        sums = np.arange(size)
        clean = [accumulate(sums, deltas, scales, blocks, 256.0, anew, *threads)]
        clean.append(accumulate(sums, deltas[:3], scales[:3], blocks, 256.0, False, *threads))
        results.append((clean, sums.tobytes()))
    assert results[0] == results[1] == results[2]
    assert results[0][0] == [False, True]
    for delta in deltas:
        assert kernels.all_within(delta, blocks, 256.0) == all_within_numpy(delta, blocks, 256.0)
    near_ties = (rng.integers(2**24, 2**25, size) | 1) * 1000 * 2**20 + rng.integers(-2, 3, size)
    means = [near_ties * rng.choice([-1, 1], size)] * 2
    for at, divide in enumerate((kernels.divide, divide_numpy)):
        means[at] = means[at].copy()
        divide(means[at], 1000, 23)
    assert means[0].view(np.float32)[:size].tobytes() == means[1].view(np.float32)[:size].tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 256.5, -256.5])
def test_both_see_each_kind_of_fault(value: float) -> None:
    values = np.zeros(30_000, np.float32)
    blocks = blocks_of([slice(0, 30_000)])
    for all_within in (all_within_numpy, fixedpoint.all_within):
        assert all_within(values, blocks, 256.0)
    values[20_000] = value
    for all_within in (all_within_numpy, fixedpoint.all_within):
        assert not all_within(values, blocks, 256.0)


def test_kernel_refuses_what_does_not_fit() -> None:
    kernels = pytest.importorskip("tutti.core._kernels", reason="built without a C compiler")
    sums, delta, blocks = np.zeros(10, np.int64), np.zeros(10, np.float32), blocks_of([slice(0, 10)])
    read_only = sums.copy()
    read_only.flags.writeable = False
    bad: list[tuple[Callable[[], object], type[Exception]]] = [
        (lambda: kernels.accumulate(sums, [delta[:9]], [1.0], blocks, 1.0), ValueError),
        (lambda: kernels.accumulate(sums, [delta.astype(np.float64)], [1.0], blocks, 1.0), ValueError),
        (lambda: kernels.accumulate(sums, [delta[::2]], [1.0], blocks, 1.0), ValueError),
        (lambda: kernels.accumulate(sums, [delta], [], blocks, 1.0), IndexError),
        (lambda: kernels.accumulate(sums, [delta], [1.0], blocks + 1, 1.0), ValueError),
        (lambda: kernels.accumulate(sums, [delta], [1.0], blocks[:, ::-1].copy() * -1, 1.0), ValueError),
        (lambda: kernels.accumulate(read_only, [delta], [1.0], blocks, 1.0), ValueError),
        (lambda: kernels.all_within(delta[:5], blocks, 1.0), ValueError),
    ]
    for call, error in bad:
        with pytest.raises(error):
            call()
    assert not sums.any()


def test_without_the_kernel_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    updates = [Update(Params.from_arrays({"w": rng.standard_normal(20_000)}), int(w)) for w in rng.integers(1, 500, 7)]
    fast = fold(reducer, updates, updates[0].delta.layout, 500)
    monkeypatch.setattr("tutti.core.reduce.accumulate", accumulate_numpy)
    monkeypatch.setattr("tutti.core.reduce.all_within", all_within_numpy)
    slow = fold(reducer, updates, updates[0].delta.layout, 500)
    assert fast.buffer.tobytes() == slow.buffer.tobytes()


def test_the_mean_reuses_the_memory_of_the_sums() -> None:
    acc = reducer.zero(ONE.delta.layout, 1, 1)
    reducer.add(acc, ONE)
    assert np.shares_memory(reducer.finish(acc).buffer, acc.sums)
