"""The contracts as they were compiled (`contracts/`), and how to call them: ABI in, bytes out.

`contracts.json` is written by `npm --prefix contracts run build`; CI compiles again and compares. `system.json` says
how they are deployed: `contracts/scripts/system.js` reads it too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec
from eth_abi import decode, encode
from eth_utils import keccak


class System(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a deployment calls the contracts, in the order in which they are made; what each is made with (another
    contract, `deployer`, or a rule); which role (contract, role, whose) is granted; and the rules by default.
    """

    names: dict[str, str]
    arguments: dict[str, tuple[str, ...]]
    grants: tuple[tuple[str, str, str], ...]
    rules: dict[str, int]


SYSTEM = msgspec.json.decode(files("tutti.adapters.chain").joinpath("system.json").read_bytes(), type=System)
NAMES: Mapping[str, str] = SYSTEM.names
"""What a deployment's configuration calls the contracts."""


@dataclass(frozen=True, slots=True)
class Function:
    selector: bytes
    inputs: list[str]
    outputs: list[str]

    def encode(self, *arguments: Any) -> bytes:
        return self.selector + bytes(encode(self.inputs, arguments))

    def decode(self, data: bytes) -> Any:
        """The one result, or a tuple of several."""
        found = decode(self.outputs, data)
        return found[0] if len(found) == 1 else found


@dataclass(frozen=True, slots=True)
class Contract:
    """Functions by name; of two with one name only their full signatures.

    `runtime` is what lies on the chain, but for what the constructor writes at `immutables` (start and length).
    """

    functions: Mapping[str, Function]
    constructor: list[str]
    bytecode: bytes
    runtime: bytes
    immutables: Sequence[tuple[int, int]]

    def creation(self, *arguments: Any) -> bytes:
        """What to send to no address, to make one."""
        return self.bytecode + bytes(encode(self.constructor, arguments))

    def is_code(self, found: bytes) -> bool:
        """Whether this is the contract's runtime code, whatever its constructor was given."""
        if len(found) != len(self.runtime):
            return False
        masked = bytearray(found)
        for start, length in self.immutables:
            masked[start : start + length] = bytes(length)  # as the compiler leaves them
        return bytes(masked) == self.runtime


@dataclass(frozen=True, slots=True)
class Revert:
    """Why a contract refused: one of its errors, with what it says."""

    name: str
    arguments: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(_shown(value) for value in self.arguments)})"


@cache
def contract(name: str) -> Contract:
    """One of NAMES."""
    return _parse(_compiled()[NAMES[name]])


def explain(data: bytes | None) -> Revert | None:
    """The error of ours, or of OpenZeppelin's, that a contract reverted with; None for anything else."""
    if data is None or data[:4] not in _errors():
        return None
    name, types = _errors()[data[:4]]
    return Revert(name, tuple(decode(types, data[4:])))


@cache
def _compiled() -> dict[str, Any]:
    text = files("tutti.adapters.chain").joinpath("contracts.json").read_bytes()
    found: dict[str, Any] = msgspec.json.decode(text)
    return found


def _parse(compiled: Mapping[str, Any]) -> Contract:
    functions: dict[str, Function] = {}
    constructor: list[str] = []
    for part in compiled["abi"]:
        if part["type"] == "function":
            signature = _signature(part)
            function = Function(keccak(text=signature)[:4], _types(part["inputs"]), _types(part["outputs"]))
            functions[signature] = functions[part["name"]] = function
        elif part["type"] == "constructor":
            constructor = _types(part["inputs"])
    code, runtime = (bytes.fromhex(compiled[part][2:]) for part in ("bytecode", "runtime"))
    return Contract(functions, constructor, code, runtime, compiled["immutables"])


@cache
def _errors() -> dict[bytes, tuple[str, list[str]]]:
    parts = [part for compiled in _compiled().values() for part in compiled["abi"] if part["type"] == "error"]
    return {keccak(text=_signature(part))[:4]: (part["name"], _types(part["inputs"])) for part in parts}


def _signature(part: Mapping[str, Any]) -> str:
    return f"{part['name']}({','.join(_types(part['inputs']))})"


def _types(parts: list[dict[str, Any]]) -> list[str]:
    return [_type(part) for part in parts]


def _type(part: Mapping[str, Any]) -> str:
    """A struct is a tuple of its fields."""
    name: str = part["type"]
    return f"({','.join(_types(part['components']))}){name[5:]}" if name.startswith("tuple") else name


def _shown(value: Any) -> str:
    return f"0x{value.hex()}" if isinstance(value, bytes) else str(value)
