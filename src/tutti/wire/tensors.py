"""Params as safetensors files: https://github.com/huggingface/safetensors#format.

8 bytes little-endian header length, a JSON header, then the values: here always float32, so that the body *is* the
parameter buffer and reading copies nothing. The header is padded until the body starts at a multiple of 64 bytes.
What safetensors has no word for (roles, dtypes at home) lies in its `__metadata__` under the key "tutti".
Equal parameters and metadata give equal bytes, hence equal digests.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from mmap import mmap
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec
import numpy as np
from blake3 import blake3
from msgspec import Meta

from tutti.core.errors import UserError
from tutti.core.params import Entry, Layout, Params, Role, Vector
from tutti.core.strategy import ServerState

Data: TypeAlias = bytes | bytearray | memoryview | mmap

MAX_HEADER = 8 * 2**20
"""Bytes of header that are read at most: room for some 50,000 tensors."""

REMEMBERED, MAX_REMEMBERED = 64, 64 * 1024
"""Headers that are kept once they were understood, and how many bytes one of them may have."""

MANY_THREADS = 1 << 26
"""Bytes from which on hashing in several threads gains more than it takes from others."""

_OURS = "tutti"
_LENGTH = 8
_ALIGNMENT = 64
_SLOT = "slot:"


class BadTensors(UserError):
    """Bytes that are not a safetensors file of float32 values, or not one of ours where that is needed."""


_T = TypeVar("_T")
_Count = Annotated[int, Meta(ge=0, le=2**53)]


class _Tensor(msgspec.Struct, frozen=True):
    dtype: Annotated[str, Meta(max_length=32)]
    shape: Annotated[tuple[_Count, ...], Meta(max_length=32)]
    data_offsets: tuple[_Count, _Count]


class _Extra(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is not plain: entries that are no weights, or not float32 at home; and a server state's slots."""

    roles: dict[str, Role] = {}
    dtypes: dict[str, Annotated[str, Meta(min_length=1, max_length=32)]] = {}
    slots: list[str] | None = None
    steps: Annotated[int, Meta(ge=0)] = 0
    scalars: dict[str, float] = {}


@dataclass(frozen=True, slots=True)
class _Header:
    layout: Layout
    extra: _Extra
    metadata: Mapping[str, str]
    start: int  # of the body
    stop: int


# -- writing -----------------------------------------------------------------------------------------


def encode(params: Params, metadata: Mapping[str, str] = {}) -> memoryview:
    """The whole file. `metadata` travels along; its key "tutti" is reserved. Raises BadTensors for unusable names."""
    return _assemble(params.layout.entries, [params.buffer], metadata, _Extra())


def encode_layout(layout: Layout) -> bytes:
    """A file of that layout up to where its values begin."""
    header = _header(layout.entries, {}, _Extra())
    return len(header).to_bytes(_LENGTH, "little") + header


def encode_state(state: ServerState) -> memoryview:
    """A server state as one file: the model's entries, then one vector for each slot."""
    slots = tuple(Entry(_SLOT + name, slot.shape) for name, slot in state.slots.items())
    extra = _Extra(slots=list(state.slots), steps=state.steps, scalars=dict(state.scalars))
    return _assemble(state.params.layout.entries + slots, [state.params.buffer, *state.slots.values()], {}, extra)


def _assemble(
    entries: Sequence[Entry], pieces: Iterable[Vector], metadata: Mapping[str, str], extra: _Extra
) -> memoryview:
    header = _header(entries, metadata, extra)
    start = _LENGTH + len(header)
    file = np.empty(start + 4 * sum(entry.size for entry in entries), np.uint8).data  # a bytearray is zeros first
    file[:_LENGTH] = len(header).to_bytes(_LENGTH, "little")
    file[_LENGTH:start] = header
    body = np.frombuffer(file, np.float32, offset=start)
    at = 0
    for piece in pieces:
        body[at : at + piece.size] = piece
        at += piece.size
    return file


def _header(entries: Sequence[Entry], metadata: Mapping[str, str], extra: _Extra) -> bytes:
    if _OURS in metadata:
        raise BadTensors(f"the metadata key {_OURS!r} is reserved; choose another")
    extra = msgspec.structs.replace(
        extra,
        roles={entry.name: entry.role for entry in entries if entry.role is not Role.WEIGHT},
        dtypes={entry.name: entry.dtype for entry in entries if entry.dtype != "float32"},
    )
    notes = {**metadata, _OURS: msgspec.json.encode(extra, order="deterministic").decode()}
    header: dict[str, Any] = {"__metadata__": dict(sorted(notes.items()))}
    start = 0
    for entry in entries:
        if entry.name in header:
            raise BadTensors(f"the name {entry.name!r} is taken twice, or reserved; rename the entry")
        stop = start + 4 * entry.size
        header[entry.name] = {"dtype": "F32", "shape": entry.shape, "data_offsets": (start, stop)}
        start = stop
    text = msgspec.json.encode(header)
    text += b" " * (-(_LENGTH + len(text)) % _ALIGNMENT)
    if len(text) > MAX_HEADER:
        raise BadTensors(f"the header may have {MAX_HEADER} bytes, this one would have {len(text)}: use fewer entries")
    return text


# -- reading -----------------------------------------------------------------------------------------


def decode(data: Data) -> Params:
    """The parameters in a file, as a view of it: read-only if `data` is; copied only if its memory is unaligned.

    Raises BadTensors for whatever is malformed, and for values that are not float32.
    """
    view = _bytes(data)
    header = _read_header(view)
    return Params(header.layout, _vector(view, header.start))


def decode_layout(data: Data) -> Layout:
    """The inverse of encode_layout. Raises BadTensors."""
    return _header_in(_bytes(data)).layout


def decode_state(data: Data) -> ServerState:
    """The inverse of encode_state; the vectors are views of `data`. Raises BadTensors."""
    whole = decode(data)
    extra = _read_header(_bytes(data)).extra
    if extra.slots is None:
        raise BadTensors("expected a server state, came plain parameters")
    entries = whole.layout.entries
    first = len(entries) - len(extra.slots)
    model = Layout(entries[: max(first, 0)])
    expected = tuple(Entry(_SLOT + name, (model.size,)) for name in extra.slots)
    if entries[max(first, 0) :] != expected:
        raise BadTensors(f"expected the model and then the slots {extra.slots}, each as long as the model")
    slots = {name: whole.buffer[whole.layout.spans[_SLOT + name]] for name in extra.slots}
    return ServerState(Params(model, whole.buffer[: model.size]), slots, extra.steps, extra.scalars)


def decode_model(data: Data) -> tuple[Params, dict[str, Vector]]:
    """What a node is sent: a model, or a server state whose slots it shares; as views of `data`. Raises BadTensors."""
    if _read_header(_bytes(data)).extra.slots is None:
        return decode(data), {}
    state = decode_state(data)
    return state.params, dict(state.slots)


def metadata(data: Data) -> dict[str, str]:
    """The metadata given to `encode`. Raises BadTensors."""
    return {key: value for key, value in _read_header(_bytes(data)).metadata.items() if key != _OURS}


def digest(data: Data) -> str:
    """BLAKE3 of all bytes, in hexadecimal: the name of the blob."""
    threads = blake3.AUTO if len(data) > MANY_THREADS else 1
    return str(blake3(data, max_threads=threads).hexdigest())


def _bytes(data: Data) -> memoryview:
    return memoryview(data).cast("B")


def _header_in(view: memoryview) -> _Header:
    if len(view) < _LENGTH:
        raise BadTensors(f"expected a safetensors file, came {len(view)} bytes")
    length = int.from_bytes(view[:_LENGTH], "little")
    if length > min(MAX_HEADER, len(view) - _LENGTH):
        raise BadTensors(
            f"the header should have {length} bytes, of {len(view) - _LENGTH} that follow and {MAX_HEADER} "
            "that are allowed: the file is cut short, or no safetensors file"
        )
    text = bytes(view[_LENGTH : _LENGTH + length])
    return _understood(text) if length > MAX_REMEMBERED else _remembered(text)


def _read_header(view: memoryview) -> _Header:
    header = _header_in(view)
    if header.stop != len(view):
        raise BadTensors(f"expected {header.stop} bytes in the file, came {len(view)}")
    return header


def _understood(text: bytes) -> _Header:
    raw = _parse(text)
    notes = _convert(raw.pop("__metadata__", {}), dict[str, str])
    extra = _convert(_parse(notes.get(_OURS, "{}").encode()), _Extra)
    layout = Layout(tuple(_entry(name, tensor, extra) for name, tensor in _in_order(_convert(raw, dict[str, _Tensor]))))
    known = {entry.name for entry in layout.entries}
    if strangers := sorted((extra.roles.keys() | extra.dtypes.keys()) - known):
        raise BadTensors(f"the metadata describe {strangers[0]!r}, which the file does not hold")
    start = _LENGTH + len(text)
    return _Header(layout, extra, notes, start, start + 4 * layout.size)


_remembered = lru_cache(REMEMBERED)(_understood)
"""The models and updates of a job all have the same header."""


def _parse(text: bytes) -> dict[str, Any]:
    try:
        raw = json.loads(text.decode(), object_pairs_hook=_without_twins)
        json.dumps(raw, ensure_ascii=False).encode()  # refuses half surrogates, which no name may hold
    except (ValueError, RecursionError) as error:
        raise BadTensors(f"the header is not proper JSON: {error}") from None
    if not isinstance(raw, dict):
        raise BadTensors("the header should be a JSON object")
    return raw


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"{key!r} comes twice")
        table[key] = value
    return table


def _convert(raw: Any, kind: type[_T]) -> _T:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise BadTensors(f"the header is not one of safetensors: {error}") from None


def _in_order(tensors: Mapping[str, _Tensor]) -> list[tuple[str, _Tensor]]:
    """Tensors as they lie in the body, after checking that they fill it without gap or overlap."""
    ordered = sorted(tensors.items(), key=lambda item: item[1].data_offsets)
    at = 0
    for name, tensor in ordered:
        start, stop = tensor.data_offsets
        if tensor.dtype != "F32":
            raise BadTensors(f"{name!r} should be F32, came as {tensor.dtype}: convert it to float32 before sending")
        if start != at:
            raise BadTensors(f"{name!r} should start at byte {at}, starts at {start}: values overlap or leave a gap")
        if stop - start != 4 * prod(tensor.shape):
            raise BadTensors(f"{name!r} should have {4 * prod(tensor.shape)} bytes, has {stop - start}")
        at = stop
    return ordered


def _entry(name: str, tensor: _Tensor, extra: _Extra) -> Entry:
    return Entry(name, tensor.shape, extra.dtypes.get(name, "float32"), extra.roles.get(name, Role.WEIGHT))


def _vector(view: memoryview, start: int) -> Vector:
    vector = np.frombuffer(view, np.float32, offset=start) if len(view) > start else np.zeros(0, np.float32)
    return vector if vector.flags.aligned else vector.copy()
