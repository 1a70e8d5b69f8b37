"""A coordinator's chain: which one, where its contracts lie, and the keys to use them, all from its data directory.

`chain.json` names the node and the addresses (`tutti chain deploy` writes it), `chain.key` holds the secret,
`chain-sent.sqlite` is the journal of transactions, and `chain.sqlite` the embedded chain, where that is used.
"""

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from tutti.adapters.addresses import shown
from tutti.adapters.chain.contracts import NAMES, SYSTEM, Function, contract, explain
from tutti.adapters.chain.journal import Sent
from tutti.adapters.chain.rpc import HttpRpc, Rpc, RpcRefused
from tutti.adapters.chain.sender import Call, Reverted, Sender
from tutti.adapters.chain.wallets import Wallets
from tutti.core.errors import Conflict, NotFound, StorageError, UserError

EMBEDDED = "embedded"

Address = Annotated[str, Meta(pattern=r"^0x[0-9a-fA-F]{40}$")]


class Deployment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `chain.json` says. `rpc`: a node's URL, or `embedded`; `guardian`: if it is not the coordinator itself."""

    rpc: str
    chain_id: int
    contracts: dict[str, Address]
    guardian: Address | None = None

    @classmethod
    def read(cls, file: Path) -> "Deployment":
        """Raises NotFound, UserError for what is no deployment, StorageError."""
        try:
            found = msgspec.json.decode(file.read_bytes(), type=cls)
        except FileNotFoundError:
            raise NotFound(f"there is no {file}: `tutti chain deploy` writes it") from None
        except OSError as error:
            raise StorageError(f"cannot read {file}: {error.strerror or error}") from None
        except msgspec.MsgspecError as error:
            raise UserError(f"{file} is not what `tutti chain deploy` writes: {error}") from None
        if missing := NAMES.keys() - found.contracts.keys():
            raise UserError(f"{file} names no address for: {', '.join(sorted(missing))}")
        return found

    def write(self, file: Path) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")
        except OSError as error:
            raise StorageError(f"cannot write {file}: {error.strerror or error}") from None


class Chain:
    """Read by `view`, written by `send`."""

    def __init__(self, deployment: Deployment, rpc: Rpc, wallets: Wallets, journal: Path) -> None:
        self.deployment, self.rpc, self.wallets = deployment, rpc, wallets
        self.operator = wallets.role("operator")
        self.sender = Sender(rpc, journal, deployment.chain_id, self.operator)
        self.journal = self.sender.journal
        self._checked = False

    @classmethod
    def at(cls, folder: Path, clock: Callable[[], float] = time.time) -> "Chain":
        """The chain of a data directory; does not speak to it yet."""
        deployment = Deployment.read(folder / "chain.json")
        rpc = open_rpc(deployment.rpc, folder, clock)
        return cls(deployment, rpc, Wallets.at(folder / "chain.key"), folder / "chain-sent.sqlite")

    async def close(self) -> None:
        self.sender.close()
        await self.rpc.close()

    def to(self, name: str) -> str:
        """The address of one of NAMES."""
        return self.deployment.contracts[name]

    def role(self, name: str) -> str:
        """The address of one of the roles in the contracts."""
        if name == "guardian" and self.deployment.guardian is not None:
            return self.deployment.guardian
        return str(self.wallets.role(name).address)

    async def check_code(self) -> None:
        """Raises Conflict unless this version's contracts lie where they are said to, joined as they are to be."""
        codes = await self.rpc.call_all([("eth_getCode", self.to(name), "latest") for name in NAMES])
        for name, code in zip(NAMES, codes, strict=True):
            if not (found := bytes.fromhex(code[2:])):
                raise Conflict(self._missing(name))
            if not contract(name).is_code(found):
                raise Conflict(
                    f"what lies at {self.to(name)} is not the {NAMES[name]} of this version ({len(found)} bytes of "
                    f"code, expected {len(contract(name).runtime)}): use contracts that this version deployed, or the "
                    "version that deployed these"
                )
        joints = [(name, part) for name in NAMES for part in SYSTEM.arguments[name] if part in NAMES]
        for (name, part), found in zip(joints, await self._ask(*joints), strict=True):
            if found.lower() != self.to(part).lower():
                raise Conflict(
                    f"the {NAMES[name]} at {self.to(name)} uses a {NAMES[part]} at {found}, not {self.to(part)}"
                )
        self._checked = True

    def _missing(self, name: str) -> str:
        return (
            f"there is no {NAMES[name]} at {self.to(name)} on chain {self.deployment.chain_id}: "
            "mend chain.json, or, if that chain is gone with its tokens, begin anew elsewhere "
            "(`tutti chain deploy --data-dir OTHER`)"
        )

    async def view(self, name: str, function: str, *arguments: Any) -> Any:
        """Ask a contract; raises Reverted, Unavailable, Conflict if there is no such contract."""
        return (await self.views((name, function, *arguments)))[0]

    async def views(self, *questions: tuple[Any, ...]) -> list[Any]:
        """Several at once: (name, function, arguments…) each."""
        if not self._checked:
            await self.check_code()
        return await self._ask(*questions)

    async def _ask(self, *questions: tuple[Any, ...]) -> list[Any]:
        called = [contract(name).functions[function] for name, function, *_ in questions]
        calls = [
            ("eth_call", {"to": self.to(name), "data": "0x" + function.encode(*arguments).hex()}, "latest")
            for function, (name, _, *arguments) in zip(called, questions, strict=True)
        ]
        try:
            answers = await self.rpc.call_all(calls)
        except RpcRefused as refusal:
            revert = explain(refusal.data)
            raise Reverted(f"the contract refuses: {revert or refusal}", revert) from None
        found = zip(questions, called, answers, strict=True)
        return [self._decoded(name, function, bytes.fromhex(answer[2:])) for (name, *_), function, answer in found]

    def _decoded(self, name: str, function: Function, answer: bytes) -> Any:
        if not answer and function.outputs:
            raise Conflict(self._missing(name))
        return function.decode(answer)

    def call(self, key: Any, name: str, function: str, *arguments: Any) -> Call:
        """A transaction that calls a contract, signed by `key`."""
        return Call(key, self.to(name), contract(name).functions[function].encode(*arguments))

    async def send(self, key: str, what: bytes, make: Callable[[], Awaitable[Call]]) -> Sent:
        """See `Sender.send`."""
        if not self._checked:
            await self.check_code()
        return await self.sender.send(key, what, make)

    async def now(self) -> int:
        """The time that the next block will have, in seconds since the epoch."""
        return int((await self.rpc.call("eth_getBlockByNumber", "pending", False))["timestamp"], 16)


def check_rpc(rpc: str) -> None:
    """Raise UserError for what is neither a node's address nor the word for the embedded chain."""
    try:
        parts = urlsplit(rpc)
        known = rpc == EMBEDDED or (parts.scheme in ("http", "https") and bool(parts.hostname))
        parts.port  # noqa: B018  # raises for what is no number
    except ValueError:
        known = False
    if not known:
        raise UserError(f"expected a node's address such as http://127.0.0.1:8545 or {EMBEDDED!r}, came {shown(rpc)!r}")


def open_rpc(rpc: str, folder: Path, clock: Callable[[], float] = time.time) -> Rpc:
    """The node at a URL, or the embedded chain of a data directory; raises UserError for what is neither."""
    check_rpc(rpc)
    if rpc != EMBEDDED:
        return HttpRpc(rpc)
    from tutti.adapters.chain.embedded import EmbeddedChain

    return EmbeddedChain(folder / "chain.sqlite", clock)
