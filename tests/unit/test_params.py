"""Layouts, views and the words for their differences."""

import numpy as np
import pytest

from tutti.core.params import Entry, Layout, LayoutMismatch, Params, Role

ARRAYS = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "mean": np.array([7.0, 8.0], np.float64),
    "seen": np.array(9, np.int64),
}
ROLES = {"mean": Role.BUFFER, "seen": Role.COUNTER}


@pytest.fixture
def params() -> Params:
    return Params.from_arrays(ARRAYS, ROLES)


def test_everything_lies_in_one_buffer_in_order(params):
    assert params.buffer.tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9]
    assert params.layout.entries[1] == Entry("mean", (2,), "float64", Role.BUFFER)


def test_entries_are_views(params):
    params["w"][1, 2] = 50
    assert params.buffer[5] == 50


def test_spans_of_a_role_are_joined():
    layout = Layout((Entry("a", (2,)), Entry("b", (3,)), Entry("c", (1,), role=Role.BUFFER), Entry("d", (4,))))
    assert layout.spans_of(Role.WEIGHT) == (slice(0, 5), slice(6, 10))
    assert layout.spans_of(Role.COUNTER) == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: {k: v for k, v in a.items() if k != "w"}, "'w' is missing (1 of 3 entries)"),
        (lambda a: {**a, "z": np.zeros(1, np.float32)}, "'z' is not part of the model (1 extra entries)"),
        (
            lambda a: {**a, "w": np.zeros((3, 2), np.float32)},
            "'w' should be float32[2, 3] (weight), came as float32[3, 2]",
        ),
        (lambda a: dict(reversed(a.items())), "the entries come in another order"),
    ],
)
def test_differences_are_said_in_words(params, change, words):
    other = Params.from_arrays(change(ARRAYS), ROLES)
    difference = params.layout.difference(other.layout)
    assert difference is not None
    assert words in difference


def test_equal_layouts_have_no_difference(params):
    assert params.layout.difference(Params.from_arrays(ARRAYS, ROLES).layout) is None


def test_a_buffer_of_another_length_or_dtype_is_refused(params):
    with pytest.raises(LayoutMismatch, match=r"expected float32\[9\], came float32\[8\]"):
        Params(params.layout, np.zeros(8, np.float32))
    with pytest.raises(LayoutMismatch, match="came float64"):
        Params(params.layout, np.zeros(9))


def test_a_name_may_appear_once():
    with pytest.raises(LayoutMismatch, match="twice"):
        Layout((Entry("a", (1,)), Entry("a", (1,)))).spans  # noqa: B018  # the property computes and checks
