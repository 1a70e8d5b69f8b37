"""Apache Thrift's binary protocol, strict: bytes from and to structs, one message in one frame.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-binary-protocol.md, section "Strict"; a frame is four
bytes of length before the message. A struct is any class with `thrift_spec`, {field id: (type, name, inner, required)};
`inner` is the element type of a container or the class of a struct, and is left out of other fields.

Bytes come from strangers. So every announced length is checked against the bytes that are left before anything is
made of it: a frame costs no more memory than a small multiple of itself, whatever it claims.
"""

from dataclasses import dataclass
from enum import IntEnum
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


_NUMBERS = {
    Type.BOOL: Struct("!?"),
    Type.BYTE: Struct("!b"),
    Type.DOUBLE: Struct("!d"),
    Type.I16: Struct("!h"),
    Type.I32: Struct("!i"),
    Type.I64: Struct("!q"),
}
_LEAST = {kind: packed.size for kind, packed in _NUMBERS.items()} | {
    Type.STRING: 4,
    Type.STRUCT: 1,
    Type.MAP: 6,
    Type.SET: 5,
    Type.LIST: 5,
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
    head = reader.number(Type.I32) & 0xFFFFFFFF
    if head & 0xFFFF0000 != _VERSION or head & 0xFF not in iter(Kind):
        raise BadFrame(f"expected a framed message of Thrift's strict binary protocol, came {bytes(frame[:4]).hex()!r}")
    name = reader.text()
    return Message(name, Kind(head & 0xFF), reader.number(Type.I32), frame, reader.at)


def encode(name: str, kind: Kind, seqid: int, value: Any) -> list[Buffer]:
    """A whole frame, its length included, in pieces: large values are not copied."""
    out = _Writer()
    out.small += (_VERSION | kind).to_bytes(4)
    out.value(Type.STRING, None, name)
    out.value(Type.I32, None, seqid)
    out.struct(value)
    pieces = out.pieces()
    return [sum(map(len, pieces)).to_bytes(LENGTH) + pieces[0], *pieces[1:]]


class _Reader:
    def __init__(self, data: bytes | memoryview, at: int) -> None:
        self.data, self.at = data, at

    def number(self, kind: Type) -> Any:
        packed = _NUMBERS[kind]
        try:
            (value,) = packed.unpack_from(self.data, self.at)
        except error:
            raise BadFrame(f"the frame ends in the middle of a number at byte {self.at}") from None
        self.at += packed.size
        return value

    def bytes(self) -> bytes | memoryview:
        size = self.number(Type.I32)
        if not 0 <= size <= len(self.data) - self.at:
            raise BadFrame(f"a string claims {size} bytes, {len(self.data) - self.at} are left")
        self.at += size
        return self.data[self.at - size : self.at]

    def text(self) -> str:
        try:
            return str(self.bytes(), "utf-8")
        except UnicodeDecodeError:
            raise BadFrame("a text is not UTF-8") from None

    def count(self, *kinds: Type) -> int:
        """How many elements follow, each of these types; never more than there are bytes for."""
        count = self.number(Type.I32)
        least = sum(_LEAST.get(kind, len(self.data)) for kind in kinds)  # of "nothing" there can be none
        if not 0 <= count * least <= len(self.data) - self.at:
            raise BadFrame(f"a container claims {count} elements, {len(self.data) - self.at} bytes are left")
        return int(count)

    def kind(self) -> Type:
        code = self.number(Type.BYTE)
        if code not in _LEAST and code != Type.STOP:
            raise BadFrame(f"there is no type {code} (byte {self.at - 1})")
        return Type(code)

    def struct(self, cls: type, depth: int) -> Any:
        value, spec = cls(), cls.thrift_spec  # type: ignore[attr-defined]
        while (kind := self.kind()) is not Type.STOP:
            field = spec.get(self.number(Type.I16))
            if field is None or _on_wire(field[0]) is not kind:
                self.skip(kind, depth - 1)
            else:
                setattr(value, field[1], self.value(field[0], field[2], depth - 1))
        for _, name, *_, required in spec.values():
            if required and getattr(value, name) is None:
                raise BadFrame(f"{cls.__name__} lacks its field {name!r}")
        return value

    def value(self, declared: int, inner: Any, depth: int) -> Any:
        self.check(depth)
        kind = Type(declared)
        match kind:
            case Type.BINARY:
                return self.bytes()
            case Type.STRING:
                return self.text()
            case Type.STRUCT:
                return self.struct(inner, depth)
            case Type.LIST | Type.SET:
                element, below = inner if isinstance(inner, tuple) else (inner, None)
                found = self.kind()
                count = self.count(found)
                if count and found is not _on_wire(element):
                    raise BadFrame(f"expected a list of {Type(element).name.lower()}, came {found.name.lower()}")
                return [self.value(element, below, depth - 1) for _ in range(count)]
            case _:
                return self.number(kind)

    def skip(self, kind: Type, depth: int) -> None:
        """Pass over a value of a field that is not known here: newer peers may send more."""
        self.check(depth)
        match kind:
            case Type.STRING:
                self.bytes()
            case Type.STRUCT:
                while (field := self.kind()) is not Type.STOP:
                    self.number(Type.I16)
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
                self.number(kind)

    def check(self, depth: int) -> None:
        if depth < 0:
            raise BadFrame(f"values are nested deeper than {MAX_DEPTH}")


def _on_wire(declared: int) -> Type:
    return Type.STRING if declared == Type.BINARY else Type(declared)


class _Writer:
    """`small` is what follows the pieces that are complete."""

    def __init__(self) -> None:
        self._before: list[Buffer] = []
        self.small = bytearray()

    def pieces(self) -> list[Buffer]:
        return [*self._before, self.small] if self.small else self._before

    def struct(self, value: Any) -> None:
        for number, (kind, name, *inner, required) in value.thrift_spec.items():
            field = getattr(value, name)
            if field is None:
                if required:
                    raise ValueError(f"{type(value).__name__}.{name} is not set")
                continue
            self.small.append(_on_wire(kind))
            self.small += number.to_bytes(2, signed=True)
            self.value(kind, inner[0] if inner else None, field)
        self.small.append(Type.STOP)

    def value(self, declared: int, inner: Any, value: Any) -> None:
        kind = Type(declared)
        match kind:
            case Type.STRING | Type.BINARY:
                self.data(value.encode() if isinstance(value, str) else value)
            case Type.STRUCT:
                self.struct(value)
            case Type.LIST | Type.SET:
                element, below = inner if isinstance(inner, tuple) else (inner, None)
                self.small.append(_on_wire(element))
                self.small += len(value).to_bytes(4)
                for each in value:
                    self.value(element, below, each)
            case Type.MAP:
                raise NotImplementedError("the protocol has no maps")
            case _:
                self.small += _NUMBERS[kind].pack(value)

    def data(self, data: Buffer) -> None:
        self.small += len(data).to_bytes(4)
        if len(data) < LARGE:
            self.small += data
        else:
            self._before += (self.small, data)
            self.small = bytearray()
