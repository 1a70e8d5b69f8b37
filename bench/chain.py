"""Transactions and gas of a round on the chain for 10, 100 and 1,000 nodes, and orders a second that are carried out.

    python bench/chain.py

The chain is the one in this process (py-evm). A round is what a coordinator sends for it: the root of its
contributions, and the payments. The peer is what most systems do: one transaction a node, here a transfer of its
reward and nothing else, of which a few are sent and the rest are counted. A claim is each node's own affair.
"""

import argparse
import asyncio
import tempfile
import time
from hashlib import sha256
from pathlib import Path

from _common import show
from tutti.adapters.chain.connection import Chain
from tutti.adapters.chain.deploy import Rules, deploy
from tutti.adapters.chain.embedded import EmbeddedChain
from tutti.adapters.chain.wallets import Wallets
from tutti.adapters.ledgers.evm import EvmLedger
from tutti.adapters.notaries.evm import EvmNotary
from tutti.domain.contributions import Contribution, payments_of, root_of
from tutti.domain.ledger import Claim, Distribute, Escrow, Mint, Order, Transfer

ROUNDS = 3
PEERS = 5


async def open_chain(folder: Path) -> Chain:
    rpc, wallets = EmbeddedChain(folder / "chain.sqlite", time.time), Wallets(bytes(32))
    deployment = await deploy(rpc, "embedded", wallets, folder / "deploy.sqlite", Rules(veto=0))
    return Chain(deployment, rpc, wallets, folder / "sent.sqlite")


async def gas_of(chain: Chain, hash: str) -> int:
    return int((await chain.rpc.call("eth_getTransactionReceipt", hash))["gasUsed"], 16)


def contributions(nodes: int, number: int) -> list[Contribution]:
    standing = 10**9 // nodes
    names = [f"node-{i}" for i in range(nodes)]
    digests = [sha256(f"{name}/{number}".encode()).hexdigest() for name in names]
    return [
        Contribution(job="job", round=number, node=name, digest=digest, weight=100, gain=standing, standing=standing)
        for name, digest in zip(names, digests, strict=True)
    ]


async def measure(nodes: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        chain = await open_chain(Path(folder))
        ledger, notary = EvmLedger(chain), EvmNotary(chain)
        pool = 10 * nodes
        await ledger.post(Order("mint", Mint(to="sponsor", amount=10 * pool * ROUNDS)))
        await ledger.post(Order("fund", Escrow(escrow="p", payer="sponsor", amount=pool * ROUNDS, purpose="pool")))
        await notary.open_session("job", "00" * 32, "00" * 32, ROUNDS)
        before = int(await chain.rpc.call("eth_blockNumber"), 16)
        gas, started = 0, time.perf_counter()
        for number in range(1, ROUNDS + 1):
            made = contributions(nodes, number)
            root = root_of(made)
            await notary.record_round("job", number, root, nodes, sha256(root.encode()).hexdigest())
            payments = {f"node:{one.node}": paid for one, paid in zip(made, payments_of(made, pool), strict=True)}
            done = await ledger.post(Order(f"pay-{number}", Distribute(escrow="p", payments=payments, evidence=root)))
            recorded = chain.journal.done(0, -1)[-2]
            gas += await gas_of(chain, done.reference) + await gas_of(chain, recorded.hash)
        took = time.perf_counter() - started
        transactions = int(await chain.rpc.call("eth_blockNumber"), 16) - before
        claim = await ledger.post(Order("claim", Claim(account="node:node-0")))
        peer = 0
        for i in range(PEERS):
            paid = await ledger.post(Order(f"t{i}", Transfer(source="sponsor", to=f"peer-{i}", amount=7)))
            peer += await gas_of(chain, paid.reference)
        row = {
            "nodes": nodes,
            "transactions/round": transactions / ROUNDS,
            "gas/round": gas // ROUNDS,
            "gas/claim": await gas_of(chain, claim.reference),
            "ms/round": 1000 * took / ROUNDS,
            "gas a transaction a node": peer // PEERS * nodes,
            "a node each / ours": peer / PEERS * nodes / (gas / ROUNDS),
        }
        await ledger.close()
        return row


async def speed(orders: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        ledger = EvmLedger(await open_chain(Path(folder)))
        await ledger.post(Order("mint", Mint(to="a", amount=10 * orders)))
        started = time.perf_counter()
        for i in range(orders):
            await ledger.post(Order(f"k{i}", Transfer(source="a", to="b", amount=1)))
        took = time.perf_counter() - started
        await ledger.close()
        return orders / took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="only 10 nodes, few orders")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = [asyncio.run(measure(nodes)) for nodes in ((10,) if given.quick else (10, 100, 1000))]
    orders = asyncio.run(speed(10 if given.quick else 300))
    show(rows, as_json=given.json, notes={"orders/s, one after another": orders})


if __name__ == "__main__":
    main()
