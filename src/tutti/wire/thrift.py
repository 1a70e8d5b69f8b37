"""Apache Thrift's binary protocol, strict: bytes from and to structs, one message in one frame.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-binary-protocol.md, section "Strict"; a frame is four
bytes of length before the message. A struct is any class with `thrift_spec`, {field id: (type, name, inner, required)};
`inner` is the element type of a container or the class of a struct, and is left out of other fields.

How the fields of a struct are read and written is worked out once for each class: small calls spend their time here.

Bytes come from strangers. So every announced length is checked against the bytes that are left before anything is
made of it: a frame costs no more memory than a small multiple of itself, whatever it claims.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from struct import Struct, error
from typing import Any, TypeAlias

from tutti.core.errors import UserError

MAX_FRAME = 2 * 1024 * 1024
LENGTH = 4
"""Bytes that say how long a frame is."""

LARGE = 1 << 14
"""Bytes of a value from which on it is a piece of its own."""

MAX_DEPTH = 16
_VERSION = 0x80010000

Spec: TypeAlias = dict[int, tuple[Any, ...]]
Buffer: TypeAlias = bytes | bytearray | memoryview


class BadFrame(UserError):
    """Bytes that are no Thrift message of this protocol."""


class Type(IntEnum):
    STOP = 0
    BOOL = 2
    BYTE = 3
    DOUBLE = 4
    I16 = 6
    I32 = 8
    I64 = 10
    STRING = 11
    STRUCT = 12
    MAP = 13
    SET = 14
    LIST = 15
    BINARY = 18  # a string on the wire


class Kind(IntEnum):
    """What a message is."""

    CALL = 1
    REPLY = 2
    EXCEPTION = 3
    ONEWAY = 4


_KINDS = {int(kind): kind for kind in Kind}
_BOOL, _BYTE, _DOUBLE, _I16, _I32, _I64 = map(Struct, ("!?", "!b", "!d", "!h", "!i", "!q"))
_NUMBERS = {
    int(Type.BOOL): _BOOL,
    int(Type.BYTE): _BYTE,
    int(Type.DOUBLE): _DOUBLE,
    int(Type.I16): _I16,
    int(Type.I32): _I32,
    int(Type.I64): _I64,
}
_LEAST = {kind: packed.size for kind, packed in _NUMBERS.items()} | {
    int(Type.STRING): 4,
    int(Type.STRUCT): 1,
    int(Type.MAP): 6,
    int(Type.SET): 5,
    int(Type.LIST): 5,
}
"""The fewest bytes that a value can have: an announced count is checked with it."""


@dataclass(frozen=True, slots=True)
class Message:
    """A call or an answer; `body` is where its struct begins in the frame."""

    name: str
    kind: Kind
    seqid: int
    frame: bytes | memoryview
    body: int

    def struct(self, cls: type) -> Any:
        """The struct of this message, whose binary fields are views of the frame if that is one; raises BadFrame."""
        reader = _Reader(self.frame, self.body)
        value = reader.struct(cls, MAX_DEPTH)
        if reader.at != len(self.frame):
            raise BadFrame(f"{len(self.frame) - reader.at} bytes follow the end of {self.name!r}")
        return value


def decode(frame: bytes | memoryview) -> Message:
    """The head of a message, which begins after the frame's length; raises BadFrame."""
    reader = _Reader(frame, 0)
    head = reader.number(_I32) & 0xFFFFFFFF
    kind = _KINDS.get(head & 0xFF)
    if head & 0xFFFF0000 != _VERSION or kind is None:
        raise BadFrame(f"expected a framed message of Thrift's strict binary protocol, came {bytes(frame[:4]).hex()!r}")
    name = reader.text()
    return Message(name, kind, reader.number(_I32), frame, reader.at)


def encode(name: str, kind: Kind, seqid: int, value: Any) -> list[Buffer]:
    """A whole frame, its length included, in pieces: large values are not copied."""
    out = _Writer()
    out.small += _I32.pack((_VERSION | kind) - (1 << 32))
    out.data(name.encode())
    out.small += _I32.pack(seqid)
    out.struct(value)
    pieces = out.pieces()
    return [sum(map(len, pieces)).to_bytes(LENGTH) + pieces[0], *pieces[1:]]


def _on_wire(declared: int) -> int:
    return int(Type.STRING) if declared == Type.BINARY else int(declared)


def _nested(inner: Any) -> tuple[int, Any]:
    """The type of a container's elements, and what is inside those."""
    return inner if isinstance(inner, tuple) else (inner, None)


# -- reading -------------------------------------------------------------------------------------------------


class _Reader:
    __slots__ = ("at", "data")

    def __init__(self, data: bytes | memoryview, at: int) -> None:
        self.data, self.at = data, at

    def number(self, packed: Struct) -> Any:
        try:
            (value,) = packed.unpack_from(self.data, self.at)
        except error:
            raise BadFrame(f"the frame ends in the middle of a number at byte {self.at}") from None
        self.at += packed.size
        return value

    def bytes(self) -> bytes | memoryview:
        size = self.number(_I32)
        if not 0 <= size <= len(self.data) - self.at:
            raise BadFrame(f"a string claims {size} bytes, {len(self.data) - self.at} are left")
        self.at += size
        return self.data[self.at - size : self.at]

    def text(self) -> str:
        try:
            return str(self.bytes(), "utf-8")
        except UnicodeDecodeError:
            raise BadFrame("a text is not UTF-8") from None

    def count(self, *kinds: int) -> int:
        """How many elements follow, each of these types; never more than there are bytes for."""
        count = self.number(_I32)
        least = sum(_LEAST.get(kind, len(self.data)) for kind in kinds)  # of "nothing" there can be none
        if not 0 <= count * least <= len(self.data) - self.at:
            raise BadFrame(f"a container claims {count} elements, {len(self.data) - self.at} bytes are left")
        return int(count)

    def kind(self) -> int:
        code = self.number(_BYTE)
        if code and code not in _LEAST:
            raise BadFrame(f"there is no type {code} (byte {self.at - 1})")
        return int(code)

    def struct(self, cls: type, depth: int) -> Any:
        value, (fields, required) = cls(), _fields(cls)
        while kind := self.kind():
            field = fields.get(self.number(_I16))
            if field is None or field[0] != kind:
                self.skip(kind, depth - 1)
            else:
                self.check(depth - 1)
                setattr(value, field[1], field[2](self, depth - 1))
        for name in required:
            if getattr(value, name) is None:
                raise BadFrame(f"{cls.__name__} lacks its field {name!r}")
        return value

    def skip(self, kind: int, depth: int) -> None:
        """Pass over a value of a field that is not known here: newer peers may send more."""
        self.check(depth)
        match kind:
            case Type.STRING:
                self.bytes()
            case Type.STRUCT:
                while field := self.kind():
                    self.number(_I16)
                    self.skip(field, depth - 1)
            case Type.LIST | Type.SET:
                element = self.kind()
                for _ in range(self.count(element)):
                    self.skip(element, depth - 1)
            case Type.MAP:
                key, value = self.kind(), self.kind()
                for _ in range(self.count(key, value)):
                    self.skip(key, depth - 1)
                    self.skip(value, depth - 1)
            case _:
                self.number(_NUMBERS[kind])

    def check(self, depth: int) -> None:
        if depth < 0:
            raise BadFrame(f"values are nested deeper than {MAX_DEPTH}")


_Read: TypeAlias = Callable[[_Reader, int], Any]


@cache
def _fields(cls: type) -> tuple[dict[int, tuple[int, str, _Read]], tuple[str, ...]]:
    """By field id: type on the wire, name and how to read it; and which must be there."""
    spec: Spec = cls.thrift_spec  # type: ignore[attr-defined]
    fields = {
        number: (_on_wire(kind), name, _reading(kind, inner[0] if inner else None))
        for number, (kind, name, *inner, _) in spec.items()
    }
    return fields, tuple(name for _, name, *_, required in spec.values() if required)


def _reading(declared: int, inner: Any) -> _Read:
    match Type(declared):
        case Type.BINARY:
            return lambda reader, depth: reader.bytes()
        case Type.STRING:
            return lambda reader, depth: reader.text()
        case Type.STRUCT:
            return lambda reader, depth: reader.struct(inner, depth)
        case Type.LIST | Type.SET:
            return _reading_list(*_nested(inner))
    packed = _NUMBERS[int(declared)]
    return lambda reader, depth: reader.number(packed)


def _reading_list(element: int, inner: Any) -> _Read:
    expected, read = _on_wire(element), _reading(element, inner)

    def elements(reader: _Reader, depth: int) -> list[Any]:
        found = reader.kind()
        count = reader.count(found)
        if count and found != expected:
            raise BadFrame(f"expected a list of {Type(element).name.lower()}, came {Type(found).name.lower()}")
        if count:
            reader.check(depth - 1)
        return [read(reader, depth - 1) for _ in range(count)]

    return elements


# -- writing -------------------------------------------------------------------------------------------------


class _Writer:
    """`small` is what follows the pieces that are complete."""

    __slots__ = ("_before", "small")

    def __init__(self) -> None:
        self._before: list[Buffer] = []
        self.small = bytearray()

    def pieces(self) -> list[Buffer]:
        return [*self._before, self.small] if self.small else self._before

    def struct(self, value: Any) -> None:
        for head, name, required, write in _writes(value.__class__):
            field = getattr(value, name)
            if field is not None:
                self.small += head
                write(self, field)
            elif required:
                raise ValueError(f"{type(value).__name__}.{name} is not set")
        self.small.append(0)

    def data(self, data: Buffer) -> None:
        self.small += len(data).to_bytes(4)
        if len(data) < LARGE:
            self.small += data
        else:
            self._before += (self.small, data)
            self.small = bytearray()


_Write: TypeAlias = Callable[[_Writer, Any], None]


@cache
def _writes(cls: type) -> tuple[tuple[bytes, str, bool, _Write], ...]:
    """Of each field: the bytes before it, its name, whether it must be there, and how to write it."""
    spec: Spec = cls.thrift_spec  # type: ignore[attr-defined]
    return tuple(
        (_BYTE.pack(_on_wire(kind)) + _I16.pack(number), name, required, _writing(kind, inner[0] if inner else None))
        for number, (kind, name, *inner, required) in spec.items()
    )


def _writing(declared: int, inner: Any) -> _Write:
    match Type(declared):
        case Type.STRING | Type.BINARY:
            return lambda out, value: out.data(value.encode() if isinstance(value, str) else value)
        case Type.STRUCT:
            return lambda out, value: out.struct(value)
        case Type.LIST | Type.SET:
            return _writing_list(*_nested(inner))
        case Type.MAP:
            raise NotImplementedError("the protocol has no maps")
    packed = _NUMBERS[int(declared)]

    def number(out: _Writer, value: Any) -> None:
        out.small += packed.pack(value)

    return number


def _writing_list(element: int, inner: Any) -> _Write:
    head, write = _BYTE.pack(_on_wire(element)), _writing(element, inner)

    def elements(out: _Writer, value: Any) -> None:
        out.small += head + len(value).to_bytes(4)
        for each in value:
            write(out, each)

    return elements
