"""A coordinator's chain: set up by `tutti chain`, used by `tutti up`. Part of the composition root (`bootstrap`)."""

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutti.apps.bootstrap import data_folder
from tutti.core.errors import Conflict, UserError
from tutti.domain.signing import Domain

if TYPE_CHECKING:
    from tutti.adapters.chain.connection import Deployment
    from tutti.apps.api.chain import OnChain
    from tutti.services.coordinator import Coordinator

CHAIN_FILE = "chain.json"
ADDRESS, NOBODY = re.compile(r"0x[0-9a-fA-F]{40}"), "0x" + "00" * 20
PAUSED = ("staking", "escrow", "rewards")


def chain_domain(folder: Path) -> Domain:
    """Where nodes' signatures are to hold: on the chain of the data directory, if it has one."""
    if not (folder / CHAIN_FILE).exists():
        return Domain()
    with _extra():
        from tutti.adapters.chain.connection import Deployment

    deployment = Deployment.read(folder / CHAIN_FILE)
    return Domain(deployment.chain_id, deployment.contracts["tracker"].lower())


def open_chain(folder: Path, core: "Coordinator") -> "OnChain | None":
    """What records on the chain of the data directory, if it has one."""
    if not (folder / CHAIN_FILE).exists():
        return None
    with _extra():
        from tutti.adapters.chain.connection import Chain
        from tutti.adapters.ledgers.evm import EvmLedger
        from tutti.adapters.notaries.evm import EvmNotary
    from tutti.apps.api.chain import OnChain
    from tutti.services.notary import NotaryDesk

    chain = Chain.at(folder, core.clock)
    notary = EvmNotary(chain)
    return OnChain(NotaryDesk(core.journal, notary), notary, EvmLedger(chain))


async def deploy_chain(data_dir: Path, rpc: str, rules: Mapping[str, Any]) -> "Deployment":
    """Deploy the contracts for a coordinator that does not run, and write where they are to its data directory.

    Raises UserError for what is no address, Conflict if it has a chain or a ledger that is in use, Unavailable if no
    node answers.
    """
    with _extra():
        from tutti.adapters.chain.connection import check_rpc, open_rpc
        from tutti.adapters.chain.deploy import Rules, deploy
        from tutti.adapters.chain.wallets import Wallets

    check_rpc(rpc)
    folder = data_folder(data_dir)
    _no_other_ledger(folder)
    for name in ("admin", "guardian"):
        _check_address(name, rules.get(name) or NOBODY)
    node = open_rpc(rpc, folder)
    try:
        with tempfile.TemporaryDirectory() as journal:
            wallets = Wallets.at(folder / "chain.key")
            deployment = await deploy(node, rpc, wallets, Path(journal) / "sent.sqlite", Rules(**rules))
    finally:
        await node.close()
    deployment.write(folder / CHAIN_FILE)
    return deployment


async def connect_chain(data_dir: Path, file: Path) -> None:
    """Take contracts that are there, if this coordinator has its role in them; raises Conflict if it has not."""
    with _extra():
        from tutti.adapters.chain.connection import Chain, Deployment, open_rpc
        from tutti.adapters.chain.deploy import check_roles
        from tutti.adapters.chain.wallets import Wallets

    folder = data_folder(data_dir)
    _no_other_ledger(folder)
    deployment, wallets = Deployment.read(file), Wallets.at(folder / "chain.key")
    chain = Chain(deployment, open_rpc(deployment.rpc, folder), wallets, folder / "chain-sent.sqlite")
    try:
        await check_roles(chain)
    finally:
        await chain.close()
    deployment.write(folder / CHAIN_FILE)


def _check_address(name: str, address: str) -> None:
    if not ADDRESS.fullmatch(address):
        raise UserError(f"the {name} is named by an address, 0x and 40 hex digits; came {address!r}")


async def guard(data_dir: Path, order: str, coordinator: str | None = None, round: int = 0) -> list[str]:
    """As the guardian of the data directory's chain: `pause` or `unpause` what comes in, or `veto` a round of payments
    and all after it. Gives the hashes of the transactions; raises Conflict if the contract refuses.
    """
    with _extra():
        from tutti.adapters.chain.connection import Chain, Deployment, open_rpc
        from tutti.adapters.chain.sender import Call, Sender
        from tutti.adapters.chain.wallets import Wallets

    _check_address("coordinator", coordinator or NOBODY)
    folder = data_folder(data_dir)
    deployment, wallets = Deployment.read(folder / CHAIN_FILE), Wallets.at(folder / "chain.key")
    key, done = wallets.role("guardian"), list[str]()
    if deployment.guardian not in (None, str(key.address)):
        raise Conflict(f"the guardian is {deployment.guardian}, whose key is not in {folder / 'chain.key'}")
    with tempfile.TemporaryDirectory() as journal:
        chain = Chain(deployment, open_rpc(deployment.rpc, folder), wallets, Path(journal) / "sent.sqlite")
        sender = Sender(chain.rpc, Path(journal) / "guardian.sqlite", deployment.chain_id, key)
        try:
            await chain.check_code()
            contracts: dict[str, tuple[Any, ...]] = {"rewards": ("veto", coordinator or chain.role("operator"), round)}
            if order != "veto":
                contracts = dict.fromkeys(PAUSED, (order,))
            for name, (function, *arguments) in contracts.items():
                if order != "veto" and await chain.view(name, "paused") == (order == "pause"):
                    continue

                async def call(name: str = name, function: str = function, arguments: Any = arguments) -> Call:
                    return chain.call(key, name, function, *arguments)

                done.append((await sender.send(f"{order}/{name}", b"", call)).hash)
        finally:
            sender.close()
            await chain.close()
    return done


def chain_roles(data_dir: Path) -> dict[str, str]:
    """The addresses of a coordinator's roles, by role; its key is made if there is none."""
    with _extra():
        from tutti.adapters.chain.wallets import ROLES, Wallets

    wallets = Wallets.at(data_folder(data_dir) / "chain.key")
    return {role: str(wallets.role(role).address) for role in ROLES}


def _no_other_ledger(folder: Path) -> None:
    """Balances do not move by themselves from one ledger to another, so nobody may lose sight of any."""
    from tutti.adapters.ledgers.sqlite import holds_tokens

    if (folder / CHAIN_FILE).exists():
        raise Conflict(f"{folder} has a chain already, with what is on it ({CHAIN_FILE}): use another --data-dir")
    if holds_tokens(folder / "ledger.sqlite"):
        raise Conflict(f"{folder} has a ledger with tokens in it: use another --data-dir, or remove ledger.sqlite")


@contextmanager
def _extra() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise UserError(f"the chain needs {error.name or error}: pip install '.[chain]' in Tutti's sources") from None
