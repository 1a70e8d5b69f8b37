"""Deploys the contracts, each role to its own key; then the deployer gives up its power."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eth_utils import keccak

from tutti.adapters.chain.connection import Chain, Deployment
from tutti.adapters.chain.contracts import NAMES, SYSTEM, contract
from tutti.adapters.chain.rpc import Rpc, RpcRefused, wait_for_receipt
from tutti.adapters.chain.sender import Call, Sender
from tutti.adapters.chain.wallets import Wallets
from tutti.core.errors import Conflict

ADMIN = bytes(32)
ENOUGH = 10**18
"""Wei for a deployment and for the gas of a long time after it, on a test chain that gives money away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """They never change. Seconds; tokens. `admin` keeps the power to grant roles, such as a timelock; else nobody.

    `guardian`: whose address it is that may veto and pause, if it is not to be the coordinator's own.
    """

    cap: int = SYSTEM.rules["cap"]
    unbonding: int = SYSTEM.rules["unbonding"]
    veto: int = SYSTEM.rules["veto"]
    penalty: int = SYSTEM.rules["penalty"]
    admin: str | None = None
    guardian: str | None = None


async def deploy(rpc: Rpc, url: str, wallets: Wallets, journal: Path, rules: Rules) -> Deployment:
    """Raises Unavailable, and Conflict if the deployer cannot pay for gas."""
    chain_id = int(await rpc.call("eth_chainId"), 16)
    deployer = wallets.role("deployer")
    await _give_gas_money(rpc, [str(deployer.address), str(wallets.role("operator").address)])
    sender = Sender(rpc, journal, chain_id, deployer)
    try:
        return await _Deploying(rpc, sender, wallets, rules).run(url, chain_id)
    finally:
        sender.close()


class _Deploying:
    def __init__(self, rpc: Rpc, sender: Sender, wallets: Wallets, rules: Rules) -> None:
        self._rpc, self._sender, self._wallets, self._rules = rpc, sender, wallets, rules
        self._deployer = wallets.role("deployer")
        self._at: dict[str, str] = {}
        self._steps = 0

    async def run(self, url: str, chain_id: int) -> Deployment:
        rules, boss = self._rules, str(self._deployer.address)
        values = {name: getattr(rules, name) for name in SYSTEM.rules} | {"deployer": boss}
        for name in NAMES:
            await self._make(name, *(self._at.get(each) or values[each] for each in SYSTEM.arguments[name]))
        for name, role, to in SYSTEM.grants:
            await self._do(name, "grantRole", keccak(text=role), self._address(to))
        for name in (name for name in NAMES if "deployer" in SYSTEM.arguments[name]):
            if rules.admin is not None:
                await self._do(name, "grantRole", ADMIN, rules.admin)
            await self._do(name, "renounceRole", ADMIN, boss)
        return Deployment(url, chain_id, self._at, rules.guardian)

    def _address(self, to: str) -> str:
        if to == "guardian" and self._rules.guardian is not None:
            return self._rules.guardian
        return self._at.get(to) or str(self._wallets.role(to).address)

    async def _make(self, name: str, *arguments: Any) -> None:
        receipt = await self._send(Call(self._deployer, None, contract(name).creation(*arguments)))
        self._at[name] = receipt["contractAddress"]

    async def _do(self, name: str, function: str, *arguments: Any) -> None:
        data = contract(name).functions[function].encode(*arguments)
        await self._send(Call(self._deployer, self._at[name], data))

    async def _send(self, call: Call) -> Mapping[str, Any]:
        self._steps += 1

        async def made() -> Call:
            return call

        sent = await self._sender.send(f"deploy/{self._steps}", b"", made)
        receipt = await wait_for_receipt(self._rpc, [sent.hash], 0)
        if receipt is None:
            raise Conflict("the chain took another branch while the contracts were being deployed: deploy again")
        return receipt


async def check_roles(chain: Chain) -> None:
    """Raises Conflict unless the contracts of a chain are this version's, and give this coordinator its roles."""
    if (there := int(await chain.rpc.call("eth_chainId"), 16)) != chain.deployment.chain_id:
        raise Conflict(f"the node is of chain {there}, but the contracts are on chain {chain.deployment.chain_id}")
    await chain.check_code()
    for name, role, to in SYSTEM.grants:
        if to in chain.deployment.contracts:
            continue
        address = chain.role(to)
        if not await chain.view(name, "hasRole", keccak(text=role), address):
            raise Conflict(
                f"{NAMES[name]} does not know {address} as {role}: deploy with TUTTI_{to.upper()}={address} "
                "(`tutti chain keys` prints all of them)"
            )


async def _give_gas_money(rpc: Rpc, addresses: list[str]) -> None:
    """A development node mints ether for whoever asks; any other refuses, and the addresses need some of their own."""
    for address in addresses:
        if int(await rpc.call("eth_getBalance", address, "latest"), 16) < ENOUGH:
            for method in ("hardhat_setBalance", "anvil_setBalance"):
                try:
                    await rpc.call(method, address, hex(100 * ENOUGH))
                    break
                except RpcRefused:
                    continue
