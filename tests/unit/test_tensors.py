"""The wire form of parameters: the safetensors library reads ours, we read its, and nothing malformed gets through."""

import json
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from blake3 import blake3

from tutti.core.params import Entry, Layout, Params, Role
from tutti.core.strategy import ServerState
from tutti.wire import tensors
from tutti.wire.tensors import BadTensors, decode, decode_state, digest, encode, encode_state, metadata

PARAMS = Params.from_arrays(
    {
        "conv.weight": np.arange(12, dtype=np.float32).reshape(2, 3, 2),
        "bn.mean": np.array([0.5, -1.5], np.float32),
        "bn.seen": np.array(17, np.int64),
        "empty": np.zeros((0, 4), np.float32),
        "half é": np.array([0.25], np.float16),
    },
    {"bn.mean": Role.BUFFER, "bn.seen": Role.COUNTER},
)


def file(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def tensor(shape: Any, start: Any, stop: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


# -- round trips -------------------------------------------------------------------------------------


def test_round_trip_keeps_values_layout_and_roles() -> None:
    decoded = decode(encode(PARAMS))
    assert decoded.layout == PARAMS.layout
    assert decoded.buffer.tobytes() == PARAMS.buffer.tobytes()


def test_decoding_copies_nothing_and_the_body_is_aligned() -> None:
    data = encode(PARAMS)
    decoded = decode(data)
    assert np.shares_memory(decoded.buffer, np.frombuffer(data, np.uint8))
    assert (len(data) - decoded.buffer.nbytes) % 64 == 0
    assert not decode(bytes(data)).buffer.flags.writeable


def test_every_kind_of_memory(tmp_path: Path) -> None:
    data = encode(PARAMS)
    (tmp_path / "model").write_bytes(data)
    with (tmp_path / "model").open("rb") as handle:
        mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    unaligned = memoryview(b"x" + data)[1:]
    for form in (bytes(data), data, memoryview(data), mapped, unaligned):
        assert decode(form).buffer.tobytes() == PARAMS.buffer.tobytes()
        assert digest(form) == blake3(bytes(data)).hexdigest()
        assert metadata(form) == {}
        assert decode(form).buffer.flags.aligned


def test_equal_input_gives_equal_bytes() -> None:
    assert encode(PARAMS, {"b": "2", "a": "1"}) == encode(decode(encode(PARAMS)), {"a": "1", "b": "2"})
    assert encode(PARAMS) != encode(PARAMS, {"a": "1"})


def test_metadata_travel_along() -> None:
    notes = {"job": "digits", "round": "3", "ü": 'quote " and \\'}
    assert metadata(encode(PARAMS, notes)) == notes


def test_unusable_names_are_refused() -> None:
    with pytest.raises(BadTensors, match="reserved"):
        encode(PARAMS, {"tutti": "x"})
    for name in ("__metadata__", "twice"):
        layout = Layout((Entry(name, (1,)), Entry("twice", (1,))))
        with pytest.raises(BadTensors, match="taken twice, or reserved"):
            encode(Params.zeros(layout))


def test_a_header_that_nobody_could_read_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "MAX_HEADER", 300)
    with pytest.raises(BadTensors, match="may have 300 bytes"):
        encode(PARAMS)


def test_server_state_round_trip() -> None:
    slots = {name: np.full(PARAMS.layout.size, value, np.float32) for name, value in (("m", 0.5), ("v", 2.0))}
    state = ServerState(PARAMS, slots, 7)
    decoded = decode_state(encode_state(state))
    assert decoded.params.layout == PARAMS.layout
    assert decoded.params.buffer.tobytes() == PARAMS.buffer.tobytes()
    assert {name: slot.tobytes() for name, slot in decoded.slots.items()} == {n: s.tobytes() for n, s in slots.items()}
    assert decoded.steps == 7
    bare = decode_state(encode_state(ServerState(PARAMS)))
    assert (dict(bare.slots), bare.steps) == ({}, 0)


def test_parameters_are_no_server_state() -> None:
    with pytest.raises(BadTensors, match="came plain parameters"):
        decode_state(encode(PARAMS))
    note = {"tutti": '{"slots": ["m"], "steps": 1}'}
    for body in ({}, {"x": tensor([2], 0, 8)}, {"slot:m": tensor([1], 0, 4), "x": tensor([1], 4, 8)}):
        size = max((t["data_offsets"][1] for t in body.values()), default=0)
        with pytest.raises(BadTensors, match="then the slots"):
            decode_state(file({"__metadata__": note, **body}, bytes(size)))


# -- the safetensors library -------------------------------------------------------------------------


def test_the_library_reads_our_files(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(encode(PARAMS, {"job": "digits"}))
    theirs = safetensors.numpy.load_file(path)
    assert set(theirs) == {entry.name for entry in PARAMS.layout.entries}
    for entry, values in PARAMS.items():
        np.testing.assert_array_equal(theirs[entry.name], values, strict=True)
    with safetensors.safe_open(path, "np") as opened:
        assert opened.metadata()["job"] == "digits"


def test_we_read_the_library_s_files() -> None:
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in (("b", (3, 4)), ("a", ()), ("c", 0))
    }
    data = safetensors.numpy.save(arrays, {"from": "elsewhere"})
    decoded = decode(data)
    assert {entry.name for entry in decoded.layout.entries} == set(arrays)
    for entry, values in decoded.items():
        np.testing.assert_array_equal(values, arrays[entry.name], strict=True)
        assert (entry.role, entry.dtype) == (Role.WEIGHT, "float32")
    assert metadata(data) == {"from": "elsewhere"}


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int64])
def test_other_dtypes_are_refused_with_a_remedy(dtype: type) -> None:
    with pytest.raises(BadTensors, match=r"'w' should be F32, came as [FI]\d+: convert it to float32"):
        decode(safetensors.numpy.save({"w": np.zeros(2, dtype)}))


# -- malformed files ---------------------------------------------------------------------------------

MALFORMED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "came 0 bytes"),
    "seven bytes": (b"1234567", "came 7 bytes"),
    "a huge header": ((2**64 - 1).to_bytes(8, "little") + b"{}", "header should have 18446744073709551615 bytes"),
    "a header over the limit": ((2**23 + 1).to_bytes(8, "little") + bytes(2**23 + 1), "8388608 that are allowed"),
    "a header cut short": (file({"a": tensor([1], 0, 4)})[:-3], "cut short"),
    "no JSON": (file(b"{nonsense"), "not proper JSON"),
    "no UTF-8": (file(b'{"\xff": 1}'), "not proper JSON"),
    "half a surrogate": (file(b'{"\\ud800": {}}'), "not proper JSON"),
    "deep nesting": (file(b"[" * 100_000), "not proper JSON"),
    "deep nesting of objects": (file(b'{"a":' * 100_000), "not proper JSON"),
    "an endless number": (file(b'{"a":' + b"9" * 5000 + b"}"), "not proper JSON"),
    "a list": (file([1]), "should be a JSON object"),
    "a name twice": (file(b'{"a": {}, "a": {}}'), "'a' comes twice"),
    "a key twice": (file(b'{"a": {"dtype": "F32", "dtype": "F16"}}'), "'dtype' comes twice"),
    "no table": (file({"a": 3}), "not one of safetensors"),
    "no dtype": (file({"a": {"shape": [], "data_offsets": [0, 4]}}, bytes(4)), "missing required field `dtype`"),
    "a negative size": (file({"a": tensor([-1], 0, 4)}, bytes(4)), "not one of safetensors"),
    "a fractional size": (file({"a": tensor([1.5], 0, 4)}, bytes(4)), "not one of safetensors"),
    "a size that is true": (file({"a": tensor([True], 0, 4)}, bytes(4)), "not one of safetensors"),
    "a size beyond all memory": (file({"a": tensor([2**62], 0, 4)}, bytes(4)), "not one of safetensors"),
    "sizes that overflow": (file({"a": tensor([2**52] * 8, 0, 4)}, bytes(4)), "'a' should have .* bytes, has 4"),
    "too many axes": (file({"a": tensor([1] * 33, 0, 4)}, bytes(4)), "not one of safetensors"),
    "three offsets": (file({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}), "not one of safetensors"),
    "offsets backwards": (file({"a": tensor([1], 4, 0)}, bytes(4)), "'a' should start at byte 0"),
    "offsets crossed": (
        file({"a": tensor([1], 0, 4), "b": tensor([0], 4, 0)}, bytes(4)),
        "'b' should have 0 bytes, has -4",
    ),
    "a gap": (file({"a": tensor([1], 0, 4), "b": tensor([1], 8, 12)}, bytes(12)), "'b' should start at byte 4"),
    "an overlap": (file({"a": tensor([2], 0, 8), "b": tensor([1], 4, 8)}, bytes(8)), "'b' should start at byte 8"),
    "the same bytes twice": (file({"a": tensor([1], 0, 4), "b": tensor([1], 0, 4)}, bytes(4)), "overlap"),
    "a shape that does not fit": (file({"a": tensor([3], 0, 4)}, bytes(4)), "'a' should have 12 bytes, has 4"),
    "values cut short": (file({"a": tensor([2], 0, 8)}, bytes(7)), "bytes in the file, came"),
    "bytes left over": (file({"a": tensor([1], 0, 4)}, bytes(5)), "bytes in the file, came"),
    "metadata that are no text": (file({"__metadata__": {"a": 1}}), "not one of safetensors"),
    "our note is no JSON": (file({"__metadata__": {"tutti": "{"}}), "not proper JSON"),
    "an unknown role": (file({"__metadata__": {"tutti": '{"roles": {"a": "king"}}'}}), "not one of safetensors"),
    "a role for nobody": (file({"__metadata__": {"tutti": '{"roles": {"a": "buffer"}}'}}), "describe 'a'"),
    "an unknown note": (file({"__metadata__": {"tutti": '{"magic": 1}'}}), "not one of safetensors"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_refused_by_what_is_wrong(case: str) -> None:
    data, reason = MALFORMED[case]
    with pytest.raises(BadTensors, match=reason):
        decode(data)


def test_an_empty_model_is_no_mistake() -> None:
    assert decode(file({})).layout == Layout(())
    assert decode(encode(Params.zeros(Layout(())))).buffer.size == 0
