"""Orders are carried out once, whatever a node says or does not say: it lags, loses, lies by omission, or asks more."""

import asyncio
import random
import tempfile
from pathlib import Path

import pytest

from support.evm import WALLETS, Between, Clock, deployed, embedded, hardhat
from tutti.adapters.chain import sender
from tutti.adapters.chain.connection import Chain
from tutti.adapters.chain.deploy import Rules
from tutti.adapters.chain.rpc import HttpRpc
from tutti.adapters.chain.sender import DEPTH
from tutti.adapters.chain.wallets import Wallets
from tutti.adapters.ledgers.evm import EvmLedger
from tutti.core.errors import Unavailable
from tutti.domain import ledger as l
from tutti.domain.ledger import Account, Order
from tutti.testing.ledgers import post


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(sender, "PATIENCE_SECONDS", 0.05)


@pytest.fixture
async def world(tmp_path):
    """A ledger with a trouble-maker between it and its chain; alice has 100, of which 40 lie in a pool."""
    chain, rpc = await embedded(tmp_path, Rules(veto=0), Clock())
    chain.sender.close()
    between = Between(rpc)
    ledger = EvmLedger(Chain(chain.deployment, between, WALLETS, tmp_path / "chain-sent.sqlite"))
    pool = l.Escrow(escrow="pool", payer="alice", amount=40, purpose="pool")
    await post(ledger, l.Mint(to="alice", amount=100), pool)
    yield ledger, between, rpc
    await ledger.close()


def elsewhere(world, folder: Path) -> EvmLedger:
    """The same keys in another process."""
    ledger, _, rpc = world
    return EvmLedger(Chain(ledger.chain.deployment, rpc, WALLETS, folder / "elsewhere.sqlite"))


async def blocks_pass(ledger: EvmLedger, count: int = DEPTH) -> None:
    for number in range(count):
        await ledger.post(Order(f"block-{number}", l.Mint(to="nobody", amount=1)))


PAY = Order("pay", l.Transfer(source="alice", to="bob", amount=30))
ONCE = [
    (l.Mint(to="bob", amount=100), "bob", Account(free=100)),
    (l.Transfer(source="alice", to="bob", amount=30), "bob", Account(free=30)),
    (l.Stake(account="alice", amount=20), "alice", Account(free=40, staked=20)),
    (l.Distribute(escrow="pool", payments={"bob": 7}), "bob", Account(owed=7)),
    (l.Escrow(escrow="job", payer="alice", amount=60), "alice", Account()),
]


KINDS = [type(operation).__name__ for operation, _, _ in ONCE]


@pytest.mark.parametrize(("operation", "name", "holds"), ONCE, ids=KINDS)
async def test_a_node_whose_receipts_lag_behind_makes_nothing_twice(world, operation, name, holds):
    """A provider with several nodes: one says that the number is used, another knows no receipt yet."""
    ledger, between, _ = world
    order = Order("grant", operation)

    async def lag(method):
        if method == "eth_sendRawTransaction":
            between.lies["eth_getTransactionReceipt"] = lambda receipt: None

    between.before = lag
    with pytest.raises(Unavailable, match="repeat yours with its key"):
        await ledger.post(order)
    for _ in range(3):
        with pytest.raises(Unavailable, match="of which the node shows no receipt yet"):
            await ledger.post(order)
    between.before = between.after
    del between.lies["eth_getTransactionReceipt"]
    first = await ledger.post(order)
    assert await ledger.post(order) == first
    assert await ledger.account(name) == holds
    assert (await ledger.totals()).conserved


async def test_what_was_seen_already_is_not_made_again_by_a_node_that_lags(world):
    ledger, between, _ = world
    first = await ledger.post(PAY)
    between.lies["eth_getTransactionReceipt"] = lambda receipt: None
    for order in (PAY, Order("next", l.Mint(to="carol", amount=1))):
        with pytest.raises(Unavailable):
            await ledger.post(order)
    del between.lies["eth_getTransactionReceipt"]
    assert await ledger.post(PAY) == first
    assert (await ledger.account("bob")).free == 30


async def test_a_node_that_does_not_know_the_newest_number_of_ours_gives_no_number_twice(world):
    ledger, between, _ = world
    await ledger.post(PAY)
    between.lies["eth_getTransactionCount"] = lambda count: hex(int(count, 16) - 1)
    await ledger.post(Order("more", l.Transfer(source="alice", to="bob", amount=5)))
    assert (await ledger.account("bob")).free == 35


async def test_nothing_is_decided_on_what_a_node_says_that_is_blocks_behind(world):
    ledger, between, _ = world
    await ledger.post(PAY)
    between.lies["eth_blockNumber"] = lambda head: hex(int(head, 16) - 1)
    with pytest.raises(Unavailable, match="which has a transaction of ours"):
        await ledger.post(Order("more", l.Transfer(source="alice", to="bob", amount=5)))
    del between.lies["eth_blockNumber"]
    assert (await ledger.account("bob")).free == 30


@pytest.mark.parametrize("lie", [{"transactions": []}, None], ids=["a block without it", "no block"])
async def test_no_receipt_and_no_culprit_is_no_proof(world, lie):
    ledger, between, _ = world
    between.lies["eth_getTransactionReceipt"] = lambda receipt: None
    with pytest.raises(Unavailable):
        await ledger.post(PAY)
    between.lies["eth_getBlockByNumber"] = lambda block: block | lie if lie else None
    with pytest.raises(Unavailable, match="is used, and the node does not show by what"):
        await ledger.post(PAY)
    between.lies.clear()
    await ledger.post(PAY)
    assert (await ledger.account("bob")).free == 30


async def test_an_order_whose_number_another_transaction_took_is_decided_anew_once_that_is_final(world, tmp_path):
    ledger, between, _ = world

    async def down(method):
        if method == "eth_sendRawTransaction":
            raise Unavailable("the network is down")

    between.before = down
    with pytest.raises(Unavailable):
        await ledger.post(PAY)
    between.before = between.after
    other = elsewhere(world, tmp_path)
    await other.post(Order("x", l.Transfer(source="alice", to="dave", amount=50)))
    with pytest.raises(Unavailable, match=r"its number was used by 0x.* not final yet"):
        await ledger.post(PAY)
    await blocks_pass(ledger)  # other orders go on
    with pytest.raises(l.InsufficientFunds):  # decided anew, on what is left
        await ledger.post(PAY)
    assert (await ledger.account("alice")).free == 10
    other.chain.sender.close()


async def test_an_order_that_failed_in_a_block_may_come_again_once_that_is_final(world, tmp_path):
    """Anybody may send a claim: who is quicker than the coordinator makes its own fail."""
    ledger, between, _ = world
    await ledger.post(Order("round", l.Distribute(escrow="pool", payments={"bob": 7})))
    quicker = elsewhere(world, tmp_path)
    due = await ledger.claimable("bob")
    claim = (ledger.chain.operator.address, due.round, due.address, due.total, due.proof)

    async def call():
        return quicker.chain.call(WALLETS.account("eve"), "rewards", "claim", *claim)

    async def first(method):
        if method == "eth_sendRawTransaction":
            between.before = between.after
            await quicker.chain.send("claim", b"", call)

    between.before = first
    order = Order("claim", l.Claim(account="bob"))
    for _ in range(2):
        with pytest.raises(Unavailable, match="failed in block"):
            await ledger.post(order)
    await blocks_pass(ledger)
    with pytest.raises(l.InsufficientFunds, match="has been claimed"):
        await ledger.post(order)
    assert await ledger.account("bob") == Account(free=7)
    quicker.chain.sender.close()


@pytest.fixture
def node():
    with tempfile.TemporaryDirectory() as folder, hardhat(Path(folder) / "log") as running:
        yield running


@pytest.mark.xdist_group("hardhat")
async def test_a_transaction_that_is_too_cheap_is_sent_dearer_and_is_carried_out_once(node, tmp_path):
    """Blocks ask fifteen times as much; the process ends meanwhile, and its successor holds no key of the sender."""
    rpc = HttpRpc(node.url)
    chain = await deployed(rpc, node.url, tmp_path, Rules(veto=0), Wallets(b"f" * 32))
    ledger = EvmLedger(chain)
    await ledger.post(Order("grant", l.Mint(to="alice", amount=100)))
    await ledger.post(Order("gas", l.Transfer(source="alice", to="carol", amount=1)))
    await rpc.call("evm_setAutomine", False)
    with pytest.raises(Unavailable):
        await ledger.post(PAY)
    asked = 15 * int(await rpc.call("eth_gasPrice"), 16)

    async def mine() -> None:
        await rpc.call("hardhat_setNextBlockBaseFeePerGas", hex(asked))
        await rpc.call("evm_mine")

    for _ in range(3):
        await mine()
    await ledger.close()
    rpc = HttpRpc(node.url)
    ledger = EvmLedger(
        Chain(chain.deployment, rpc, Wallets(b"another secret".ljust(32)), tmp_path / "chain-sent.sqlite")
    )
    said = []
    for _ in range(10):
        try:
            await ledger.chain.sender.settle()
            break
        except Unavailable as waits:
            said.append(str(waits))
            await mine()
    assert any("instead of" in waits for waits in said), said
    ledger = EvmLedger(Chain(chain.deployment, rpc, Wallets(b"f" * 32), tmp_path / "chain-sent.sqlite"))
    first = await ledger.post(PAY)
    assert await ledger.post(PAY) == first
    assert (await ledger.account("bob")).free == 30
    paid = await rpc.call("eth_getTransactionReceipt", first.reference)
    assert int(paid["effectiveGasPrice"], 16) >= asked
    await ledger.close()


@pytest.mark.xdist_group("hardhat")
async def test_who_is_left_without_gas_money_on_another_branch_is_given_some(node, tmp_path):
    """By the account that has sent more since: the numbers of a sender come in turn, so that must be there first."""
    rpc = HttpRpc(node.url)
    ledger = EvmLedger(await deployed(rpc, node.url, tmp_path, Rules(veto=0)))
    await ledger.post(Order("grant", l.Mint(to="alice", amount=100)))
    await ledger.post(Order("gas", l.Transfer(source="alice", to="carol", amount=1)))
    before = await rpc.call("evm_snapshot")
    await ledger.post(PAY)
    await ledger.post(Order("more", l.Mint(to="alice", amount=5)))
    await rpc.call("evm_revert", before)
    await rpc.call("hardhat_setBalance", WALLETS.address("alice"), "0x0")
    await ledger.chain.sender.settle()
    assert await ledger.account("alice") == Account(free=74)
    await ledger.close()


async def test_orders_at_once_with_a_node_that_loses_answers(world):
    ledger, between, _ = world
    chance = random.Random(7)

    async def lose(method):
        if chance.random() < 0.15:
            raise Unavailable("the network is down")

    between.after = lose
    orders = [Order(f"t{i}", l.Transfer(source="alice", to="bob", amount=1)) for i in range(6)]

    async def insist(order: Order):
        async with asyncio.timeout(60):
            while True:
                try:
                    return await ledger.post(order)
                except Unavailable:
                    continue

    await asyncio.gather(*map(insist, orders))
    between.after = between.before
    assert (await ledger.account("bob")).free == 6
