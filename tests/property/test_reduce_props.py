"""The weighted mean equals its slow reference bit for bit, in every order, grouping and merge tree."""

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tutti.core import fixedpoint
from tutti.core.fixedpoint import fixed_point
from tutti.core.params import Params, Role
from tutti.core.reduce import Update, weighted_mean
from tutti.core.reference import nearest_float32
from tutti.core.reference import weighted_mean as by_hand

reducer = weighted_mean()
SIZE = 6
ROLES = {"buffer": Role.BUFFER, "counter": Role.COUNTER}

values = st.floats(-256, 256, width=32) | st.integers(-64, 64).map(float) | st.floats(-(2.0**-20), 2.0**-20, width=32)


@st.composite
def cohorts(draw: st.DrawFn) -> list[Update]:
    rows = draw(st.lists(hnp.arrays(np.float32, SIZE, elements=values), min_size=1, max_size=6))
    weights = st.integers(1, 2**24) | st.integers(1, 4)
    return [
        Update(
            Params.from_arrays({"weight": row[:3].reshape(1, 3), "counter": row[3:4], "buffer": row[4:]}, ROLES),
            draw(weights),
        )
        for row in rows
    ]


@given(cohorts(), st.integers(1, 4095), st.data())
def test_equals_the_reference_in_every_order_and_tree(cohort: list[Update], spare: int, data: st.DataObject) -> None:
    layout, room = cohort[0].delta.layout, max(spare, len(cohort))
    expected = by_hand(cohort, fixed_point(room, 2**24).fraction_bits).buffer.tobytes()
    groups = []
    left = data.draw(st.permutations(cohort))
    while left:
        n = data.draw(st.integers(1, len(left)))
        acc = reducer.zero(layout, room, 2**24)
        if data.draw(st.booleans()):
            reducer.add(acc, *left[:n])
        else:
            for update in left[:n]:
                reducer.add(acc, update)
        groups.append(acc)
        left = left[n:]
    while len(groups) > 1:
        into, taken = groups.pop(data.draw(st.integers(0, len(groups) - 1))), groups.pop()
        reducer.merge(into, taken)
        groups.insert(0, into)
    assert reducer.finish(groups[0]).buffer.tobytes() == expected


@given(cohorts())
def test_the_format_costs_less_than_half_a_step(cohort: list[Update]) -> None:
    point = fixed_point(len(cohort), 2**24)
    acc = reducer.zero(cohort[0].delta.layout, len(cohort), 2**24)
    reducer.add(acc, *cohort)
    mean = reducer.finish(acc)
    total = sum(update.weight for update in cohort)
    for i in (0, 1, 2, 4, 5):
        exact = sum(Fraction(float(u.delta.buffer[i])) * u.weight for u in cohort) / total
        slack = Fraction(len(cohort), total * 2 ** (point.fraction_bits + 1)) + abs(exact) / 2**24
        assert abs(Fraction(float(mean.buffer[i])) - exact) <= slack


@settings(max_examples=300)
@given(st.lists(st.integers(-(2**63) + 2**28, 2**63 - 2**28), min_size=1, max_size=20), st.integers(1, 2**36))
def test_division_is_correctly_rounded(sums: list[int], total: int) -> None:
    _divides_right(sums, total, 19)


@settings(max_examples=300)
@given(st.integers(2**24, 2**25 - 2), st.integers(0, 36), st.integers(1, 2**36), st.integers(-2, 2), st.booleans())
def test_division_next_to_ties(odd: int, power: int, total: int, nudge: int, negative: bool) -> None:
    """Sums that lie exactly on, or one unit beside, the middle of two float32 values."""
    exact = (odd | 1) * total * 2**power
    while exact >= 2**63 - 4:
        exact //= 2
    _divides_right([(-exact if negative else exact) + nudge], total, 23)


def _divides_right(sums: list[int], total: int, fraction_bits: int) -> None:
    expected = [nearest_float32(Fraction(value, total * 2**fraction_bits)) for value in sums]
    for divide in (fixedpoint.divide, fixedpoint.divide_numpy):
        got = np.array(sums, np.int64)
        divide(got, total, fraction_bits)
        means = got.view(np.float32)[: len(sums)]
        assert [value.tobytes() for value in means] == [(value + np.float32(0)).tobytes() for value in expected]
