"""Choices in their short form, and options checked against a factory's signature."""

from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from tutti.core.registry import BadOption, Choice, Registry, UnknownName


@pytest.fixture
def things() -> Registry[tuple]:
    registry: Registry[tuple] = Registry("thing", "tutti.core.strategies")

    @registry.register("widget")
    def widget(size: int, rate: Annotated[float, Meta(gt=0)] = 0.5, *, data: str = "") -> tuple:
        """A widget of some size.

        More about it.
        """
        return size, rate, data

    return registry


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("fedavg", Choice("fedavg")),
        ("fedadam:server_lr=0.1,beta1=0", Choice("fedadam", {"server_lr": 0.1, "beta1": 0})),
        ("dirichlet:0.5", Choice("dirichlet", {"": 0.5})),
        ("mlp:hidden=200x200", Choice("mlp", {"hidden": [200, 200]})),
        ("csv:path=/data/a=b.csv,header=true", Choice("csv", {"path": "/data/a=b.csv", "header": True})),
    ],
)
def test_the_short_form(text, choice):
    assert Choice.parse(text) == choice


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,8}", fullmatch=True),
        st.one_of(st.integers(), st.booleans(), st.lists(st.integers(0, 99), min_size=2, max_size=4)),
        max_size=4,
    )
)
def test_printing_and_parsing_are_inverse(options):
    choice = Choice("name", options)
    assert Choice.parse(str(choice)) == choice


def test_an_empty_name_is_refused():
    with pytest.raises(BadOption, match="expected a name"):
        Choice.parse(":x=1")


def test_options_are_converted_and_defaults_filled_in(things):
    assert things.build(Choice("widget", {"size": 3}), data="d") == (3, 0.5, "d")
    assert things.build(Choice("widget", {"": 4, "rate": 1})) == (4, 1.0, "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "missing required field `size`"),
        ({"size": "big"}, "Expected `int`, got `str`"),
        ({"size": 1, "rate": 0}, "Expected `float` > 0"),
        ({"size": 1, "colour": 2}, r"unknown field `colour` \(options: size, rate\)"),
        ({"size": 1, "data": "x"}, "unknown field `data`"),
    ],
)
def test_wrong_options_are_named(things, options, message):
    with pytest.raises(BadOption, match=message):
        things.build(Choice("widget", options))


def test_an_unknown_name_lists_the_known_ones(things):
    with pytest.raises(UnknownName, match="choose from: widget"):
        things.build(Choice("gadget"))


def test_the_signature_is_the_schema(things):
    schema = things.schema("widget")
    assert schema["required"] == ["size"]
    assert schema["properties"]["rate"] == {"type": "number", "exclusiveMinimum": 0, "default": 0.5}
    assert schema["description"] == "A widget of some size."
