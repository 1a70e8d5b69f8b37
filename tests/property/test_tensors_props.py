"""Any parameters survive the wire; any damaged file is refused or read, never anything else."""

import json
from contextlib import suppress

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from tutti.core.params import Entry, Layout, Params, Role
from tutti.wire.tensors import BadTensors, decode, decode_state, encode, metadata

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__")
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
entries = st.builds(Entry, names, shapes, st.sampled_from(["float32", "int64", "float16"]), st.sampled_from(Role))
layouts = st.lists(entries, max_size=5, unique_by=lambda entry: entry.name).map(lambda found: Layout(tuple(found)))


@st.composite
def params(draw: st.DrawFn) -> Params:
    layout = draw(layouts)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return Params(layout, rng.integers(-(2**31), 2**31, layout.size).astype(np.int32).view(np.float32))


@given(params(), st.dictionaries(names.filter(lambda name: name != "tutti"), names))
def test_any_parameters_survive(given_params: Params, notes: dict[str, str]) -> None:
    data = encode(given_params, notes)
    decoded = decode(data)
    assert decoded.layout == given_params.layout
    assert decoded.buffer.tobytes() == given_params.buffer.tobytes()  # NaN and infinities too
    assert metadata(data) == notes
    assert {name: array.tobytes() for name, array in safetensors.numpy.load(bytes(data)).items()} == {
        entry.name: array.tobytes() for entry, array in given_params.items()
    }


def refused_or_read(data: bytes) -> None:
    for read in (decode, decode_state, metadata):
        with suppress(BadTensors):
            read(data)


@settings(max_examples=200)
@given(params(), st.data())
def test_damaged_files_are_refused_or_read(given_params: Params, data: st.DataObject) -> None:
    damaged = bytearray(encode(given_params))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    refused_or_read(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
    refused_or_read(bytes(damaged))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
tensor_like = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16"]) | json_values,
        "shape": st.lists(st.integers(-1, 4) | st.integers(0, 2**70), max_size=3) | json_values,
        "data_offsets": st.tuples(st.integers(0, 16), st.integers(0, 16)) | json_values,
    }
)


@settings(max_examples=200)
@given(
    st.dictionaries(st.text(max_size=5) | st.just("__metadata__"), tensor_like | json_values, max_size=3), st.binary()
)
def test_made_up_headers_are_refused_or_read(header: dict[str, object], body: bytes) -> None:
    text = json.dumps(header).encode()
    refused_or_read(len(text).to_bytes(8, "little") + text + body)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=3), st.integers(0, 16))
def test_what_the_library_refuses_is_refused(places: list[tuple[int, int]], size: int) -> None:
    table = {
        str(i): {"dtype": "F32", "shape": [abs(b - a)], "data_offsets": [4 * a, 4 * b]}
        for i, (a, b) in enumerate(places)
    }
    text = json.dumps(table).encode()
    data = len(text).to_bytes(8, "little") + text + bytes(size)
    try:
        theirs = safetensors.numpy.load(data)
    except safetensors.SafetensorError:
        with pytest.raises(BadTensors):
            decode(data)
    else:
        assert {entry.name for entry in decode(data).layout.entries} == set(theirs)
