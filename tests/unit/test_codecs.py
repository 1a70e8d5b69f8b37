"""Codecs: the fast path against the slow reference, to the bit; feedback; and bytes that no codec wrote."""

import tracemalloc

import numpy as np
import pytest
import zstandard

from tutti.apps.cli.catalog import described
from tutti.core import codec
from tutti.core.codec import AUTO, NONE, RESIDUAL, BadCode, chosen, codecs, compressed
from tutti.core.compress._reference import REFERENCES
from tutti.core.errors import UserError
from tutti.core.local import Handed
from tutti.core.params import Entry, Layout, Params, Role
from tutti.core.registry import BadOption, Choice, UnknownName
from tutti.domain.spec import check_composition, load_spec
from tutti.wire import tensors, updates
from tutti.wire.tensors import BadTensors

NAMES = list(codecs)
LOSSLESS = ["none", "shuffle"]


def drawn(size: int, scale: float = 1e-3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(size) * scale).astype(np.float32)


HARD = {
    "nothing": drawn(0),
    "one": drawn(1),
    "odd": drawn(577),
    "a block": drawn(256),
    "zeros": np.zeros(300, np.float32),
    "large": drawn(300, 1e37),
    "small": drawn(300, 1e-30),
    "subnormal": drawn(300, 1e-40),
    "largest": np.array([np.finfo(np.float32).max, -np.finfo(np.float32).max, 1, 0], np.float32),
    "uneven": np.concatenate([drawn(300, 1e-6), drawn(300, 1e6, 1)]),
    "ties": np.array([1, -1, 1, -1, 0.5] * 40, np.float32),
    "halves": np.array([127, 0.5, 1.5, 2.5, -0.5, -1.5], np.float32),
}


def test_every_codec_has_a_reference():
    assert set(NAMES) == set(REFERENCES)
    assert AUTO.name not in NAMES


@pytest.mark.parametrize("values", HARD.values(), ids=HARD.keys())
@pytest.mark.parametrize("name", NAMES)
def test_what_is_decoded_is_what_the_reference_says_bit_for_bit(name, values):
    its = codecs.build(Choice(name))
    code = its.encode(values)
    came = its.decode(code, len(values))
    assert came.dtype == np.float32
    with np.errstate(over="ignore"):  # the largest value that there is has no half next to it
        expected = np.array(REFERENCES[name](list(values)), np.float32)
    assert came.tobytes() == expected.tobytes()
    assert its.encode(values) == code


@pytest.mark.parametrize("name", NAMES)
def test_a_code_of_other_bytes_is_refused_and_takes_no_more_memory_than_the_values(name):
    its = codecs.build(Choice(name))
    bomb = zstandard.compress(b"\0" * (64 << 20))
    framed = len(bomb).to_bytes(4, "little") + bomb
    bad = (b"", b"\0", b"\xff" * 40, bomb, framed + bomb, b"\0\0" + bomb, its.encode(drawn(100))[:-1])
    tracemalloc.start()
    try:
        for code in bad:
            with pytest.raises(BadCode):
                its.decode(code, 100)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
    with pytest.raises(BadCode):
        its.decode(its.encode(drawn(100)), 5000)


def test_top_k_refuses_places_outside_or_twice():
    its = codecs.build(Choice.parse("topk:0.02"))
    frames = [codecs.build(Choice("topk", {"share": 1.0})).encode(np.ones(2, np.float32))]
    assert its.decode(frames[0], 100)[:2].tolist() == [1, 1]
    from tutti.core.compress._bytes import joined, squeezed

    for gaps in ([3, 0], [3, 97], [2**32 - 1, 2**32 - 1]):
        code = joined(squeezed(np.array(gaps, "<u4")), squeezed(np.ones(2, "<f4")))
        with pytest.raises(BadCode, match="different places among 100"):
            its.decode(code, 100)


@pytest.mark.parametrize(("name", "least"), [("fp16", 2.0), ("int8", 4.0), ("int4", 7.0), ("topk", 9.0)])
def test_an_update_becomes_as_small_as_the_codec_says(name, least):
    values = drawn(100_000)
    its = codecs.build(Choice(name))
    assert len(its.encode(values)) * least <= values.nbytes
    assert its.ratio <= least + 1


# -- updates -------------------------------------------------------------------------------------------

MIXED = Layout(
    (
        Entry("w", (30, 10)),
        Entry("mean", (10,), role=Role.BUFFER),
        Entry("seen", (), "int64", Role.COUNTER),
        Entry("b", (10,)),
    )
)


def handed(seed: int = 0) -> Handed:
    update = Params(MIXED, drawn(MIXED.size, seed=seed))
    update["seen"][...] = 16_777_215
    return Handed(update, {"c": drawn(MIXED.size, seed=seed + 1)}, {"steps": 3.0}, {"c_i": drawn(4)})


@pytest.mark.parametrize("name", NAMES)
def test_a_file_holds_what_will_be_summed_and_what_is_no_weight_to_the_bit(name):
    given = handed()
    came = compressed(Choice(name), given, {})
    file = updates.encode(came, Choice(name))
    read = updates.decode(file, MIXED.with_vectors(["c"]))
    assert read.layout == MIXED.with_vectors(["c"])
    assert read.buffer.tobytes() == came.joined().buffer.tobytes()
    for kept in ("mean", "seen"):
        assert came.delta[kept].tobytes() == given.delta[kept].tobytes()
    assert came.facts == given.facts
    assert came.memory["c_i"] is given.memory["c_i"]
    assert (name in LOSSLESS) == (read.buffer.tobytes() == given.joined().buffer.tobytes())


def test_without_a_codec_the_file_is_a_plain_one():
    given = handed()
    assert updates.encode(compressed(NONE, given, {}), NONE) == tensors.encode(given.joined())


@pytest.mark.parametrize("name", ["int4", "topk"])
def test_what_a_codec_leaves_out_is_sent_later(name):
    """The sum of all that is decoded is the sum of all updates but for the last residual."""
    kept, sent, meant = {}, np.zeros(MIXED.size * 2, np.float64), np.zeros(MIXED.size * 2, np.float64)
    for round in range(30):
        given = handed(round)
        came = compressed(Choice(name), given, kept)
        kept = came.memory
        sent += came.joined().buffer
        meant += given.joined().buffer
    weights = came.joined().layout.spans_of(Role.WEIGHT)
    for span in weights:
        np.testing.assert_allclose(sent[span] + kept[RESIDUAL][span], meant[span], atol=1e-7)
    assert codec.without_residual(kept).keys() == {"c_i"}


def test_what_a_codec_left_out_is_sent_by_a_milder_one():
    first = compressed(Choice("topk"), handed(), {})
    second = compressed(NONE, handed(1), first.memory)
    expected = handed(1).joined().buffer + first.memory[RESIDUAL]
    assert second.joined().buffer.tobytes() == expected.tobytes()
    assert RESIDUAL not in second.memory
    assert updates.decode(updates.encode(second, NONE)).buffer.tobytes() == expected.tobytes()


def test_an_update_of_another_layout_is_refused_before_it_is_decoded():
    """The layout of a hostile update may promise a billion values."""
    layout = Layout((Entry("w", (2**40,)),))
    file = updates.MAGIC + (4).to_bytes(2, "little") + b"int8" + tensors.encode_layout(layout) + b"\0" * 20
    with pytest.raises(BadTensors, match=r"missing|should be"):
        updates.decode(file, MIXED)


@pytest.mark.parametrize("name", ["zip", "auto", "topk:7", "int8:a=1", "", "x" * 300])
def test_an_update_by_a_codec_that_there_is_not_is_refused(name):
    whole = updates.encode(compressed(Choice("int8"), handed(), {}), Choice("int8"))
    rest = bytes(whole[len(updates.MAGIC) + 2 + 4 :])
    file = updates.MAGIC + len(name).to_bytes(2, "little") + name.encode() + rest
    with pytest.raises(UserError):
        updates.decode(file, MIXED.with_vectors(["c"]))


def test_no_prefix_of_an_update_passes():
    whole = bytes(updates.encode(compressed(Choice("int8"), handed(), {}), Choice("int8")))
    for length in range(0, len(whole), 7):
        with pytest.raises(UserError):
            updates.decode(whole[:length], MIXED.with_vectors(["c"]))


# -- who chooses ---------------------------------------------------------------------------------------


def test_a_node_takes_the_mildest_codec_by_which_its_update_is_through_in_time():
    megabyte = 1_000_000
    rates = {None: "none", 2e6: "none", 6e5: "fp16", 3e5: "int8", 1.5e5: "int4", 10.0: "int4"}
    assert {rate: chosen(megabyte, rate).name for rate in rates} == rates


@pytest.mark.parametrize(
    ("name", "error"), [("zip", UnknownName), ("topk:0", BadOption), ("auto:1", UnknownName), ("int8:9", BadOption)]
)
def test_a_job_names_a_codec_that_there_is(name, error):
    with pytest.raises(error):
        check_composition(load_spec({"dataset": "digits", "model": "linear", "codec": name}))
    check_composition(load_spec({"dataset": "digits", "model": "linear", "codec": "auto"}))


def test_the_catalog_lists_all_that_a_job_can_name() -> None:
    listed = described("codecs")
    assert listed.keys() == {AUTO.name, *NAMES}
    assert "mildest" in listed[AUTO.name]["description"]
    for name in listed:
        codec.check(Choice(name))
