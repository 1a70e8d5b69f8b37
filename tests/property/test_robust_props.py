"""The rules equal their slow references, and up to f nodes that send anything move the result by a bounded amount."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tutti.core.params import Params
from tutti.core.reduce import Update, fold, reducers
from tutti.core.registry import Choice
from tutti.core.robust import reference
from tutti.core.robust.fltrust import fltrust

Rows = NDArray[np.float64]


def reduced(text: str, rows: Rows) -> Rows:
    updates = [Update(Params.from_arrays({"w": row}), 1) for row in rows]
    return fold(reducers.build(Choice.parse(text)), updates, updates[0].delta.layout, 1).buffer.astype(np.float64)


@st.composite
def cohorts(draw: st.DrawFn, least: int = 3) -> Rows:
    n, size = draw(st.integers(least, 16)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scales = 10.0 ** rng.uniform(-2, 2, (n, 1)) if draw(st.booleans()) else 1.0
    return (rng.standard_normal((n, size)) * scales).astype(np.float32).astype(np.float64)


def ordered(rows: Rows) -> Rows:
    """As the fast rules sort them: two rows that are each other's only neighbour have the same score."""
    return np.array(sorted(rows, key=lambda row: row.astype(np.float32).tobytes()))


def close(fast: Rows, slow: Rows, rows: Rows) -> None:
    np.testing.assert_allclose(fast, slow, rtol=1e-5, atol=1e-6 * np.abs(rows).max())


@given(cohorts())
def test_median(rows: Rows) -> None:
    close(reduced("median", rows), reference.median(rows), rows)


@given(cohorts(least=5), st.sampled_from([0.2, 0.25, 0.4, 0.49]))
def test_trimmed_mean(rows: Rows, beta: float) -> None:
    close(reduced(f"trimmed-mean:{beta}", rows), reference.trimmed_mean(rows, int(beta * len(rows) + 1e-9)), rows)


@given(cohorts(), st.data())
def test_krum_and_multi_krum(rows: Rows, data: st.DataObject) -> None:
    f = data.draw(st.integers(0, (len(rows) - 3) // 2))
    m = data.draw(st.integers(1, len(rows) - f))
    assert reduced(f"krum:f={f}", rows).tolist() == reference.multi_krum(ordered(rows), f, 1).tolist()
    close(reduced(f"multi-krum:f={f},m={m}", rows), reference.multi_krum(ordered(rows), f, m), rows)


@given(cohorts(), st.data())
def test_bulyan(rows: Rows, data: st.DataObject) -> None:
    f = data.draw(st.integers(0, (len(rows) - 3) // 4))
    close(reduced(f"bulyan:f={f}", rows), reference.bulyan(ordered(rows), f), rows)


@settings(deadline=None)
@given(cohorts())
def test_the_geometric_median_is_near_the_best_of_many(rows: Rows) -> None:
    """No row, no mean of some rows and no small step from the result is cheaper."""
    found = reduced("geometric-median:iterations=2000", rows)
    cost = reference.geometric_median_cost(rows, found)
    rng = np.random.default_rng(0)
    steps = found + rng.standard_normal((20, len(found))) * np.abs(rows).max() * 10.0 ** rng.uniform(-3, 0, (20, 1))
    for other in (*rows, rows.mean(axis=0), np.median(rows, axis=0), *steps):
        assert cost <= reference.geometric_median_cost(rows, other) * (1 + 1e-4)


@given(cohorts(), st.sampled_from([None, 0.1, 3.0]), st.integers(1, 6))
def test_centred_clipping(rows: Rows, tau: float | None, iterations: int) -> None:
    text = f"centred-clipping:iterations={iterations}" + ("" if tau is None else f",tau={tau}")
    close(reduced(text, rows), reference.centred_clipping(rows, tau, iterations), rows)


@given(cohorts(), st.sampled_from([None, 0.1, 3.0]))
def test_norm_bounding(rows: Rows, bound: float | None) -> None:
    text = "norm-bounding" if bound is None else f"norm-bounding:bound={bound}"
    close(reduced(text, rows), reference.norm_bounding(rows, bound), rows)


@given(cohorts())
def test_fltrust(rows: Rows) -> None:
    updates = [Update(Params.from_arrays({"w": row}), 1) for row in rows[1:]]
    root = Params.from_arrays({"w": rows[0] * 0.9 + rows[1] * 0.1})  # so that one is trusted at least
    result = fold(fltrust(root), updates, root.layout, 1).buffer
    if (rows[1:] @ root.buffer > 0).any():
        np.testing.assert_allclose(result, reference.fltrust(rows[1:], root.buffer), rtol=1e-4, atol=1e-5)
    assert np.linalg.norm(result) <= np.linalg.norm(root.buffer) * (1 + 1e-5)


# -- breakdown ---------------------------------------------------------------------------------------

anything = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from([3e38, -3e38, 1e20, 0.0])
FAR = 3.0
"""How many times the reach of the honest updates the result may be off; without a bound it would be up to 1e38."""


@settings(max_examples=200)
@given(st.data())
@pytest.mark.parametrize(
    ("text", "needed", "reach"),
    [
        ("median", lambda f: 2 * f + 1, 1.0),
        ("trimmed-mean:{share}", lambda f: 2 * f + 1, 1.0),
        ("krum:f={f}", lambda f: 2 * f + 3, FAR),
        ("multi-krum:f={f}", lambda f: 2 * f + 3, FAR),
        ("bulyan:f={f}", lambda f: 4 * f + 3, 1.0),
        ("geometric-median", lambda f: 2 * f + 1, 10 * FAR),
        ("centred-clipping", lambda f: 2 * f + 1, 10 * FAR),
        ("norm-bounding", lambda f: 2 * f + 1, 1.0),
    ],
)
def test_bad_nodes_move_the_result_by_a_bounded_amount(text, needed, reach, data: st.DataObject) -> None:
    f, size = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))
    n = max(needed(f), 3) + data.draw(st.integers(0, 3))
    honest = data.draw(hnp.arrays(np.float32, (n - f, size), elements=st.floats(-1, 1, width=32)))
    bad = data.draw(hnp.arrays(np.float32, (f, size), elements=anything))
    if data.draw(st.booleans()):
        bad[:] = bad[0]  # they may agree
    share = min(0.499, (f + 1e-6) / n)
    result = reduced(text.format(f=f, share=f"{share:.9f}"), np.concatenate([bad, honest]).astype(np.float64))
    if text.startswith(("median", "trimmed", "bulyan")):
        assert (result >= honest.min(axis=0) - 1e-6).all()
        assert (result <= honest.max(axis=0) + 1e-6).all()
    assert np.abs(result).max() <= reach * np.sqrt(size) * (1 + 1e-5)
