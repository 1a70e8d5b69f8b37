"""Chains for tests: one in this process, and a Hardhat node of our own."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from support.browser import missing
from support.ports import free_port
from tutti.adapters.chain.connection import Chain, Deployment
from tutti.adapters.chain.deploy import Rules, deploy
from tutti.adapters.chain.embedded import EmbeddedChain
from tutti.adapters.chain.rpc import HttpRpc, Rpc
from tutti.adapters.chain.wallets import Wallets
from tutti.core.errors import TuttiError

CONTRACTS = Path(__file__).resolve().parents[2] / "contracts"
WALLETS = Wallets(b"t" * 32)


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    async def later(self, seconds: int) -> None:
        self.now += seconds


async def deployed(rpc: Rpc, url: str, folder: Path, rules: Rules, wallets: Wallets = WALLETS) -> Chain:
    deployment = await deploy(rpc, url, wallets, folder / "deploy.sqlite", rules)
    deployment.write(folder / "chain.json")
    return Chain(deployment, rpc, wallets, folder / "chain-sent.sqlite")


_templates: dict[Rules, tuple[bytes, Deployment]] = {}


async def embedded(folder: Path, rules: Rules, clock: Clock) -> tuple[Chain, EmbeddedChain]:
    """A chain with the contracts on it, which are deployed once for each set of rules and then copied."""
    file = folder / "chain.sqlite"
    if rules not in _templates:
        rpc = EmbeddedChain(file, clock)
        chain = await deployed(rpc, "embedded", folder, rules)
        await chain.close()
        _templates[rules] = file.read_bytes(), chain.deployment
    contents, deployment = _templates[rules]
    file.write_bytes(contents)
    rpc = EmbeddedChain(file, clock)
    return Chain(deployment, rpc, WALLETS, folder / "chain-sent.sqlite"), rpc


class Hardhat:
    """`npx hardhat node`, as anybody starts it."""

    def __init__(self, port: int, process: "subprocess.Popen[bytes]") -> None:
        self.url, self.process = f"http://127.0.0.1:{port}", process
        self.deployment: Deployment | None = None

    async def later(self, seconds: int) -> None:
        rpc = HttpRpc(self.url)
        await rpc.call("evm_increaseTime", seconds)
        await rpc.call("evm_mine")
        await rpc.close()


@contextlib.contextmanager
def hardhat(log: Path) -> Iterator[Hardhat]:
    """A node that answers; skipped where contracts/ is not installed, except in CI."""
    if shutil.which("npx") is None or not (CONTRACTS / "node_modules" / "hardhat").is_dir():
        missing("Hardhat (npm --prefix contracts ci)")
    port = free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["npx", "hardhat", "node", "--hostname", "127.0.0.1", "--port", str(port)],
            cwd=CONTRACTS,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "HARDHAT_DISABLE_TELEMETRY_PROMPT": "true"},
        )
    try:
        asyncio.run(_until_it_answers(f"http://127.0.0.1:{port}", process, log))
        yield Hardhat(port, process)
    finally:
        with contextlib.suppress(ProcessLookupError):  # the test may have killed it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def _until_it_answers(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    rpc, ending = HttpRpc(url), asyncio.get_running_loop().time() + 60
    while asyncio.get_running_loop().time() < ending and process.poll() is None:
        try:
            await rpc.call("eth_chainId")
        except TuttiError:
            await asyncio.sleep(0.1)
        else:
            await rpc.close()
            return
    raise AssertionError(f"Hardhat did not start: see {log}")


class Between(Rpc):
    """Stands before a chain and lets a test do what networks do."""

    def __init__(self, rpc: Rpc) -> None:
        self.rpc = rpc
        self.before: Callable[[str], Awaitable[None]] = _nothing
        self.after: Callable[[str], Awaitable[None]] = _nothing
        self.lies: dict[str, Callable[[Any], Any]] = {}
        """By method, what becomes of its answer."""

    async def call(self, method: str, *params: Any) -> Any:
        await self.before(method)
        answer = await self.rpc.call(method, *params)
        await self.after(method)
        return self.lies[method](answer) if method in self.lies else answer

    async def call_all(self, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        return [await self.call(method, *params) for method, *params in calls]

    async def close(self) -> None:
        await self.rpc.close()


async def _nothing(method: str) -> None:
    return None
