"""The contracts as they were compiled (`contracts/`), and how to call them: ABI in, bytes out.

`contracts.json` is written by `npm --prefix contracts run build`; CI compiles again and compares.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec
from eth_abi import decode, encode
from eth_utils import keccak

NAMES: Mapping[str, str] = {
    "token": "TuttiToken",
    "staking": "Staking",
    "escrow": "JobEscrow",
    "rewards": "RewardDistributor",
    "registry": "TrainingRegistry",
    "tracker": "ContributionTracker",
}
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
    """By name; of two functions with one name only their full signatures."""

    functions: Mapping[str, Function]
    constructor: list[str]
    bytecode: bytes

    def creation(self, *arguments: Any) -> bytes:
        """What to send to no address, to make one."""
        return self.bytecode + bytes(encode(self.constructor, arguments))


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
    return Contract(functions, constructor, bytes.fromhex(compiled["bytecode"][2:]))


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
