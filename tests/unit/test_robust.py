"""Every registered reducer keeps the same promises; each paper's rule is checked against numbers computed by hand."""

import re
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tutti.core.fixedpoint import blocks_of
from tutti.core.params import Layout, Params, Role
from tutti.core.reduce import BadUpdate, Reducer, TooFewUpdates, Update, fold, reducers
from tutti.core.registry import BadOption, Choice
from tutti.core.robust import _columns
from tutti.core.robust.fltrust import fltrust

ROLES = {"bn.mean": Role.BUFFER, "bn.seen": Role.COUNTER}
N = 11
ALL = [*reducers]
ROBUST = [name for name in ALL if name != "mean"]


def model(seed: int, scale: float = 1.0, rows: int = 70) -> Params:
    """More than a block of values, and a last piece that fills no vector register."""
    rng = np.random.default_rng(seed)
    arrays = {
        "conv": rng.standard_normal((3, 5)) * scale,
        "bn.mean": rng.standard_normal(5) * scale,
        "bn.seen": np.array(float(rng.integers(1, 9))),
        "dense": rng.standard_normal((rows, 131)) * scale,
    }
    return Params.from_arrays(arrays, ROLES)


LAYOUT = model(0).layout
UPDATES = [Update(model(seed), 1 + seed) for seed in range(N)]


def build(text: str, layout: Layout = LAYOUT) -> Reducer:
    if text == "fltrust":
        return fltrust(Params(layout, np.random.default_rng(99).standard_normal(layout.size, dtype=np.float32)))
    return reducers.build(Choice.parse(text))


def vectors(*rows: list[float]) -> list[Update]:
    return [Update(Params.from_arrays({"w": np.array(row, float)}), 1) for row in rows]


def reduced(text: str, *rows: list[float]) -> list[float]:
    updates = vectors(*rows)
    return fold(build(text), updates, updates[0].delta.layout, 1).buffer.tolist()


def test_the_reducers_of_this_package() -> None:
    expected = "mean median trimmed-mean krum multi-krum bulyan geometric-median centred-clipping norm-bounding"
    assert set(expected.split()) <= set(reducers)


# -- what every reducer promises ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
class TestEveryReducer:
    def test_order_and_grouping_leave_no_trace(self, name: str) -> None:
        reducer = build(name)
        expected = fold(reducer, UPDATES, LAYOUT, N).buffer.tobytes()
        for seed in range(3):
            order = np.random.default_rng(seed).permutation(N).tolist()
            left, right = reducer.zero(LAYOUT, N, N), reducer.zero(LAYOUT, N, N)
            reducer.add(left, *[UPDATES[k] for k in order[:4]])
            for k in order[4:]:
                reducer.add(right, UPDATES[k])
            reducer.merge(right, left)
            assert reducer.finish(right).buffer.tobytes() == expected

    def test_updates_are_neither_changed_nor_returned(self, name: str) -> None:
        updates = [Update(model(seed), 1) for seed in range(N)]
        for update in updates:
            update.delta.buffer.flags.writeable = False
        result = fold(build(name), updates, LAYOUT, 1).buffer
        assert result.flags.writeable
        assert not any(np.shares_memory(result, update.delta.buffer) for update in updates)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("entry", ["conv", "bn.mean", "bn.seen", "dense"])
    def test_values_that_are_not_finite_are_refused_by_name(self, name: str, value: float, entry: str) -> None:
        reducer, bad = build(name), model(1)
        bad[entry].reshape(-1)[-1] = value
        acc = reducer.zero(LAYOUT, N + 1, N)
        assert reducer.check(acc, UPDATES[0]) is None
        assert re.search(rf"'{entry}' holds {value} at .*must be finite", reducer.check(acc, Update(bad, 1)) or "")
        with pytest.raises(BadUpdate, match="finite"):
            reducer.add(acc, UPDATES[0], Update(bad, 1))
        reducer.add(acc, *UPDATES)
        expected = fold(reducer, UPDATES, LAYOUT, N).buffer.tobytes()
        if name != "mean":  # which had room for fewer updates, and so another precision
            assert reducer.finish(acc).buffer.tobytes() == expected

    @pytest.mark.parametrize("weight", [0, -1, N + 1, 1.5, True])
    def test_weights_out_of_range_are_refused(self, name: str, weight: int) -> None:
        reducer = build(name)
        acc = reducer.zero(LAYOUT, N, N)
        assert re.search(rf"from 1 to {N}, came {weight}", reducer.check(acc, Update(model(1), weight)) or "")

    def test_other_layouts_are_refused(self, name: str) -> None:
        reducer = build(name)
        with pytest.raises(BadUpdate, match=r"'dense' should be"):
            reducer.add(reducer.zero(LAYOUT, N, N), Update(model(1, rows=3), 1))

    def test_capacity_is_kept(self, name: str) -> None:
        reducer = build(name)
        acc, other = reducer.zero(LAYOUT, 2, N), reducer.zero(LAYOUT, 2, N)
        reducer.add(acc, *UPDATES[:2])
        reducer.add(other, UPDATES[2])
        with pytest.raises(BadUpdate, match="at most 2 updates, came 3"):
            reducer.add(acc, UPDATES[2])
        with pytest.raises(BadUpdate, match="at most 2 updates, came 3"):
            reducer.merge(acc, other)

    def test_misuse_is_our_fault_not_theirs(self, name: str) -> None:
        reducer = build(name)
        acc = reducer.zero(LAYOUT, N, N)
        with pytest.raises(ValueError, match="merged"):
            reducer.merge(acc, acc)
        with pytest.raises(ValueError, match="merged"):
            reducer.merge(acc, reducer.zero(Layout(()), N, N))
        reducer.add(acc, *UPDATES)
        reducer.finish(acc)
        for use in (lambda: reducer.finish(acc), lambda: reducer.add(acc, UPDATES[0])):
            with pytest.raises(ValueError, match="finished"):
                use()

    def test_an_empty_model(self, name: str) -> None:
        nothing = Params.zeros(Layout(()))
        assert fold(build(name, nothing.layout), [Update(nothing, 1)] * N, nothing.layout, 1).buffer.size == 0

    def test_every_option_has_a_default_and_the_schema_says_what_it_does(self, name: str) -> None:
        assert reducers.schema(name)["description"]
        assert not reducers.schema(name).get("required")

    def test_there_is_one_zero_only(self, name: str) -> None:
        zeros = [Update(Params.from_arrays({"w": np.array([0.0, -0.0, 0.0])}), 1)] * N
        result = fold(build(name, zeros[0].delta.layout), zeros, zeros[0].delta.layout, 1)
        assert not np.signbit(result.buffer).any()


@pytest.mark.parametrize("name", [name for name in reducers if name != "fltrust"])  # it takes the length from its root
def test_nodes_that_agree_count_as_one(name: str) -> None:
    agreed = model(1, 2.0**-8)
    result = fold(build(name), [Update(agreed, 1)] * N, LAYOUT, 1)
    np.testing.assert_allclose(result.buffer, agreed.buffer, rtol=1e-6, atol=2.0**-32)


@pytest.mark.parametrize("name", ROBUST)
class TestEveryRobustReducer:
    def test_weights_are_claims_and_do_not_count(self, name: str) -> None:
        claims = [Update(update.delta, N + 1 - update.weight) for update in UPDATES]
        results = [fold(build(name), updates, LAYOUT, N).buffer.tobytes() for updates in (UPDATES, claims)]
        assert results[0] == results[1]
        assert not build(name).linear

    def test_counters_take_the_upper_median(self, name: str) -> None:
        updates = [
            Update(Params.from_arrays({"w": np.ones(2) * k, "n": np.array(seen)}, {"n": Role.COUNTER}), 1)
            for k, seen in enumerate([3.0, 5.0, 4.0, 3e38, 6.0, 2.0, 7.0, 3.0])
        ]
        layout = updates[0].delta.layout
        assert fold(build(name, layout), updates, layout, 1)["n"] == 5.0

    def test_too_few_updates_are_refused(self, name: str) -> None:
        reducer = build(name)
        acc = reducer.zero(LAYOUT, N, N)
        reducer.add(acc, *UPDATES[: reducer.min_updates - 1])
        with pytest.raises(TooFewUpdates, match=f"needs at least {reducer.min_updates} updates, came"):
            reducer.finish(acc)

    def test_shares_say_how_much_of_whom_was_taken(self, name: str) -> None:
        """By name, whatever the order; one that is far off gets next to nothing."""
        reducer = build(name)
        sent = [replace(update, node=f"node-{k:02}") for k, update in enumerate(UPDATES[:-1])]
        sent.append(Update(model(99, 1000.0), 1, "node-99"))
        found = []
        for order in (sent, sent[::-1]):
            acc = reducer.zero(LAYOUT, N, N)
            reducer.add(acc, *order)
            reducer.finish(acc)
            found.append(reducer.shares(acc))
        assert found[0] == found[1]
        if name in ("median", "trimmed-mean"):
            assert found[0] == {}
            return
        assert sorted(found[0]) == sorted(update.node for update in sent)
        assert sum(found[0].values()) == pytest.approx(1.0)
        assert found[0]["node-99"] < 0.01

    def test_no_copies_are_made_of_all_updates(self, name: str) -> None:
        """Less than two models, for thirty updates; what the compiled loops take for themselves is a cache full."""
        size = 200_000
        layout = Params.from_arrays({"w": np.zeros(size)}).layout
        rng = np.random.default_rng(0)
        updates = [Update(Params(layout, rng.standard_normal(size, dtype=np.float32)), 1) for _ in range(30)]
        reducer = build(name, layout)
        acc = reducer.zero(layout, 30, 1)
        tracemalloc.start()
        try:
            reducer.add(acc, *updates)
            reducer.finish(acc)
            assert tracemalloc.get_traced_memory()[1] < 2 * 4 * size
        finally:
            tracemalloc.stop()

    def test_without_the_kernel_the_result_is_the_same(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        fast = fold(build(name), UPDATES, LAYOUT, N).buffer
        monkeypatch.setattr(_columns, "_gram", _columns.gram_numpy)
        monkeypatch.setattr(_columns, "_combine", _columns.combine_numpy)
        monkeypatch.setattr(_columns, "_window_mean", _columns.window_mean_numpy)
        slow = fold(build(name), UPDATES, LAYOUT, N).buffer
        np.testing.assert_allclose(slow, fast, rtol=1e-6, atol=1e-9)
        if name in ("median", "trimmed-mean", "krum", "multi-krum", "bulyan"):
            assert slow.tobytes() == fast.tobytes()


# -- hand-computed numbers ---------------------------------------------------------------------------


def test_median() -> None:
    assert reduced("median", [1, 9], [5, -3], [2, 4]) == [2, 4]
    assert reduced("median", [1, 9], [5, -3], [2, 4], [1e30, -1e30]) == [3.5, 0.5]  # (2 + 5)/2, (-3 + 4)/2


def test_trimmed_mean() -> None:
    # of five, a fifth is one: without 1 and 100, (2 + 3 + 7)/3
    assert reduced("trimmed-mean:beta=0.2", [7], [1], [100], [3], [2]) == [4]
    # 0.29 of 100 are 29, though not in binary floating point: the squares of 29 ... 70 are left
    assert reduced("trimmed-mean:beta=0.29", *([float(k * k)] for k in range(100))) == pytest.approx([109081 / 42])


# On a line at 0, 1, 3, 7, 20, with f = 1: sums of squares of the two nearest others.
#   0: 1 + 9 = 10    1: 1 + 4 = 5    3: 4 + 9 = 13    7: 16 + 36 = 52    20: 169 + 289 = 458
LINE = ([20.0], [3.0], [0.0], [7.0], [1.0])


def test_krum() -> None:
    assert reduced("krum:f=1", *LINE) == [1]


def test_multi_krum() -> None:
    assert reduced("multi-krum:f=1,m=2", *LINE) == [0.5]  # of 1 and 0
    assert reduced("multi-krum:f=1,m=3", *LINE) == pytest.approx([4 / 3])
    assert reduced("multi-krum:f=1", *LINE) == [2.75]  # n - f = 4 of them, all but 20


def test_bulyan() -> None:
    # n = 7, f = 1: Krum takes theta = 5 by turns, with 4, 3, 2, 1 and then 1 neighbours
    #   4 neighbours: 0: 1+9+16+25 = 51, 1: 1+4+9+16 = 30, 3: 9+4+1+4 = 18, 4: 9+1+1+16 = 27, 5: 16+4+1+25 = 46
    #   without 3, 3 neighbours: 0: 1+16+25 = 42, 1: 1+9+16 = 26, 4: 1+9+16 = 26, 5: 1+16+25 = 42: a tie, 1 sorts first
    #   without 1, 2 neighbours: 0: 16+25 = 41, 4: 1+16 = 17, 5: 1+25 = 26, 50: 45^2+46^2
    #   without 4, 1 neighbour: 0: 25, 5: 25 (a tie, 0 sorts first), 50: 45^2 = 2025, 100: 50^2 = 2500
    #   without 0, 1 neighbour: 5: 45^2, 50: 45^2, a tie: 5 or 50 by their bytes
    # Chosen 0, 1, 3, 4 and 5 or 50: the median is 3, its beta = 3 nearest 3, 4 and 1 or 5, of which 1 is the smaller
    assert reduced("bulyan:f=1", [0], [1], [3], [4], [5], [50], [100]) == pytest.approx([8 / 3])


def test_geometric_median() -> None:
    # on a line it is the median; of a square with its centre, the centre
    assert reduced("geometric-median", [0], [1], [10]) == pytest.approx([1], abs=1e-3)
    square = reduced("geometric-median", [1, 1], [-1, 1], [1, -1], [-1, -1], [0, 0])
    assert square == pytest.approx([0, 0], abs=1e-6)
    # an equilateral triangle's Fermat point is its centre of mass
    triangle = reduced("geometric-median", [0, 0], [2, 0], [1, 3**0.5])
    assert triangle == pytest.approx([1, 3**-0.5], abs=1e-5)


def test_centred_clipping() -> None:
    # from 0 with tau = 2: 1 stays, 10 and -4 become 2 and -2: v = 1/3; then 1 + 1/3 - 2/3 ... by hand: distances
    # 2/3, 29/3, 13/3: steps 2/3, 2, -2: v = 1/3 + 2/9 = 5/9
    assert reduced("centred-clipping:tau=2,iterations=1", [1], [10], [-4]) == pytest.approx([1 / 3])
    assert reduced("centred-clipping:tau=2,iterations=2", [1], [10], [-4]) == pytest.approx([5 / 9])
    # without tau the median distance from 0, which is 4: (1 + 4 - 4)/3
    assert reduced("centred-clipping:iterations=1", [1], [10], [-4]) == pytest.approx([1 / 3])


def test_norm_bounding() -> None:
    # |(3, 4)| = 5 is cut to 2.5, |(0, 1)| stays
    assert reduced("norm-bounding:bound=2.5", [3, 4], [0, 1]) == pytest.approx([0.75, 1.5])
    # without a bound the median norm, 2: 8 becomes 2
    assert reduced("norm-bounding", [8], [-1], [2]) == pytest.approx([1])


def test_fltrust() -> None:
    # root (2, 0): (3, 4) is alike by 3/5 and becomes (6/5, 8/5), (1, 0) by 1 and becomes (2, 0), (-9, 0) does not count
    updates = vectors([3, 4], [1, 0], [-9, 0])
    root = Params.from_arrays({"w": np.array([2.0, 0.0])})
    result = fold(fltrust(root), updates, root.layout, 1).buffer
    assert result.tolist() == pytest.approx([(0.6 * 1.2 + 2) / 1.6, 0.6 * 1.6 / 1.6])


@pytest.mark.parametrize("root", [[0.0, 0.0], [0.0, 1.0]])
def test_fltrust_changes_nothing_if_nobody_is_trusted(root: list[float]) -> None:
    layout_root = Params.from_arrays({"w": np.array(root)})
    updates = vectors([1, -2], [0, 0], [0, -1])
    assert fold(fltrust(layout_root), updates, layout_root.layout, 1).buffer.tolist() == [0, 0]


# -- options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("mean", 1),
        ("median", 3),
        ("trimmed-mean:0.2", 5),
        ("trimmed-mean:0.4", 3),
        ("trimmed-mean:0.1", 10),
        ("krum:f=2", 7),
        ("multi-krum:f=1,m=6", 7),
        ("bulyan:f=2", 11),
        ("norm-bounding:bound=1", 1),
        ("norm-bounding", 3),
    ],
)
def test_how_many_updates_it_takes(text: str, needed: int) -> None:
    assert build(text).min_updates == needed


@pytest.mark.parametrize(
    "text",
    ["krum:f=-1", "multi-krum:m=0", "trimmed-mean:0.5", "trimmed-mean:0", "median:f=1", "norm-bounding:bound=-1"],
)
def test_options_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(BadOption):
        build(text)


# -- the two implementations -------------------------------------------------------------------------


def test_kernel_and_numpy_agree_whatever_the_number_of_threads() -> None:
    kernels = pytest.importorskip("tutti.core.robust._kernels", reason="built without a C compiler")
    rng = np.random.default_rng(5)
    size, blocks = 20_003, blocks_of([slice(3, 9_000), slice(9_001, 20_003)])
    for n in (1, 2, 5, 12, 33):
        columns = [(rng.standard_normal(size) * 10.0 ** rng.integers(-30, 30)).astype(np.float32) for _ in range(n)]
        pairs = _columns.network(n, 0, n)
        for low, width, slide in ((0, n, 0), (n // 3, n - 2 * (n // 3), 0), (0, (n + 1) // 2, n // 2)):
            expected = np.zeros(size, np.float32)
            _columns.window_mean_numpy(expected, columns, pairs, low, width, slide, blocks)
            for threads in (1, 3):
                out = np.zeros(size, np.float32)
                kernels.window_mean(out, columns, pairs, low, width, slide, blocks, threads)
                assert out.tobytes() == expected.tobytes()
        coefficients = rng.standard_normal(n).tolist()
        sums, products = np.zeros((2, size), np.float32), np.zeros((3, n, n))
        _columns.combine_numpy(sums[0], columns, coefficients, blocks)
        kernels.combine(sums[1], columns, coefficients, blocks, 3)
        assert sums[0].tobytes() == sums[1].tobytes()
        _columns.gram_numpy(products[0], columns, size, blocks)
        kernels.gram(products[1], columns, size, blocks, 1)
        kernels.gram(products[2], columns, size, blocks, 3)
        assert products[1].tobytes() == products[2].tobytes()
        scale = np.sqrt(np.outer(np.diag(products[0]), np.diag(products[0])))
        assert (np.abs(products[0] - products[1]) <= 1e-13 * scale).all()


def test_kernel_refuses_what_does_not_fit() -> None:
    kernels = pytest.importorskip("tutti.core.robust._kernels", reason="built without a C compiler")
    out, blocks, pairs = np.zeros(10, np.float32), blocks_of([slice(0, 10)]), _columns.network(3, 0, 3)
    columns, read_only = [np.ones(10, np.float32)] * 3, np.zeros(10, np.float32)
    read_only.flags.writeable = False
    bad: list[tuple[Callable[[], object], type[Exception]]] = [
        (lambda: kernels.window_mean(out, columns, pairs, 1, 3, 0, blocks), ValueError),
        (lambda: kernels.window_mean(out, columns, pairs, -1, 1, 0, blocks), ValueError),
        (lambda: kernels.window_mean(out, columns, pairs, 0, 2, 2, blocks), ValueError),
        (lambda: kernels.window_mean(out, columns, pairs, 0, 0, 1, blocks), ValueError),
        (lambda: kernels.window_mean(out, columns, pairs, 0, 2**62, 2**62, blocks), ValueError),
        (lambda: kernels.window_mean(out, columns[:2], pairs, 0, 2, 0, blocks), ValueError),
        (lambda: kernels.window_mean(out, columns, pairs[:, ::-1].copy(), 0, 3, 0, blocks), ValueError),
        (lambda: kernels.window_mean(out, columns, pairs.astype(np.int64), 0, 3, 0, blocks), ValueError),
        (lambda: kernels.window_mean(out, [], pairs[:0], 0, 1, 0, blocks), ValueError),
        (lambda: kernels.window_mean(read_only, columns, pairs, 0, 3, 0, blocks), ValueError),
        (lambda: kernels.combine(out, columns, [1.0, 2.0], blocks), IndexError),
        (lambda: kernels.combine(out, [columns[0][:9]], [1.0], blocks), ValueError),
        (lambda: kernels.combine(out, columns, [1.0] * 3, blocks + 1), ValueError),
        (lambda: kernels.gram(np.zeros((2, 2)), columns, 10, blocks), ValueError),
        (lambda: kernels.gram(np.zeros((3, 3)), columns, 11, blocks), ValueError),
        (lambda: kernels.gram(np.zeros((3, 3), np.float32), columns, 10, blocks), ValueError),
    ]
    for call, error in bad:
        with pytest.raises(error):
            call()
    assert not out.any()


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 23])
def test_the_network_sorts_every_sequence_of_zeros_and_ones(n: int) -> None:
    """By the 0-1 principle it then sorts everything; beyond 2**12 sequences a sample is looked at."""
    numbers = np.arange(2**n) if n <= 12 else np.random.default_rng(n).integers(0, 2**n, 4096)
    rows = [(numbers >> k & 1).astype(np.float32) for k in range(n)]
    ordered = np.sort(rows, axis=0)
    for start, stop in ((0, n), (n // 2, n // 2 + 1), (n // 3, n - n // 3)):
        sorted_rows = list(rows)
        for a, b in _columns.network(n, start, stop).tolist():
            pair = sorted_rows[a], sorted_rows[b]
            sorted_rows[a], sorted_rows[b] = np.minimum(*pair), np.maximum(*pair)
        np.testing.assert_array_equal(sorted_rows[start:stop], ordered[start:stop])
