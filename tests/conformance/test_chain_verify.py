"""A coordinator's account of its transactions is checked against the chain, and every lie in it is found."""

import dataclasses
from pathlib import Path

import pytest
from msgspec.structs import replace

from support.evm import WALLETS, Clock, embedded
from tutti.adapters.chain.connection import Chain
from tutti.adapters.chain.deploy import Rules
from tutti.adapters.chain.embedded import EmbeddedChain
from tutti.adapters.chain.sender import DEPTH
from tutti.adapters.chain.verify import check, replayed
from tutti.adapters.ledgers.evm import EvmLedger
from tutti.core.errors import Unavailable
from tutti.domain import ledger as l
from tutti.domain.ledger import BadChain, Order
from tutti.services.views.chain import BlockView, ChainView, TransactionView
from tutti.testing.ledgers import post

OPERATIONS = (
    l.Mint(to="client", amount=1_000),
    l.Mint(to="node:a", amount=300),
    l.Transfer(source="client", to="sponsor", amount=400),
    l.Stake(account="node:a", amount=200),
    l.Unstake(account="node:a", amount=50),
    l.Escrow(escrow="job", payer="client", amount=60),
    l.Bond(escrow="job", account="node:a", amount=20),
    l.Penalise(escrow="job", reason="wrong", compensation=8),
    l.Bond(escrow="job", account="node:a", amount=10),
    l.Release(escrow="job"),
    l.Bond(escrow="job", account="node:a", amount=30),
    l.Reward(escrow="job", to="node:a"),
    l.Escrow(escrow="other", payer="client", amount=7),
    l.Refund(escrow="other"),
    l.Escrow(escrow="pool", payer="sponsor", amount=200, purpose="pool"),
    l.Distribute(escrow="pool", payments={"node:a": 30, "node:b": 4}, evidence="ab" * 32),
    l.Distribute(escrow="pool", payments={"node:b": 10}, evidence="cd" * 32),
    l.Claim(account="node:b"),
    l.Refund(escrow="pool"),
    l.Withdraw(account="node:a"),
)


@dataclasses.dataclass
class Told:
    chain: Chain
    said: ChainView
    transactions: list[TransactionView]
    blocks: list[BlockView]


@pytest.fixture
async def told(tmp_path):
    (tmp_path / "its").mkdir()
    clock = Clock()
    chain, rpc = await embedded(tmp_path / "its", Rules(unbonding=0, veto=0), clock)
    ledger = EvmLedger(chain)
    await post(ledger, *OPERATIONS)
    yield tell(ledger, rpc)
    await ledger.close()


def tell(ledger: EvmLedger, rpc: EmbeddedChain) -> Told:
    chain = ledger.chain
    said = ChainView(
        connected=True,
        node="embedded",
        chain_id=chain.deployment.chain_id,
        block=len(rpc.blocks(0, 1_000)),
        contracts=chain.deployment.contracts,
        roles={role: str(WALLETS.role(role).address) for role in ("operator", "arbiter", "guardian")},
    )
    transactions = [
        TransactionView(
            seq=sent.seq,
            key=sent.key,
            hash=sent.hash,
            raw=sent.raw.hex(),
            failed=failed,
            operation=operation,
            accounts={name: WALLETS.address(name) for name in l.accounts_of(operation)} if operation else {},
        )
        for sent, failed, operation in ledger.transactions(0, 1_000)
    ]
    blocks = [
        BlockView(number=number, time=time, transaction=hash, raw=raw.hex())
        for number, time, hash, raw in rpc.blocks(0, 1_000)
    ]
    return Told(chain, said, transactions, blocks)


async def checked(told: Told, folder: Path):
    """From what was told alone."""
    rpc = await replayed(folder / "chain.sqlite", told.blocks)
    try:
        return await check(rpc, told.said, told.transactions, folder)
    finally:
        await rpc.close()


async def test_an_honest_account_is_executed_again_and_found_in_order(told, tmp_path):
    found = await checked(told, tmp_path / "anew")
    assert found == await EvmLedger(told.chain).totals()
    assert (found.minted, found.burned) == (1_300, 12)


async def test_it_can_be_checked_on_a_node_too(told, tmp_path):
    assert (await check(told.chain.rpc, told.said, told.transactions, tmp_path)).minted == 1_300


LIES = [
    (l.Mint, {"amount": 1_001}, "is said to be Mint: it says 1000 where"),
    (l.Mint, {"to": "node:a"}, "is said to be Mint: it says '0x"),
    (l.Transfer, {"source": "node:a"}, "it is signed by"),
    (l.Stake, {"amount": 199}, "it says 200"),
    (l.Escrow, {"purpose": "pool"}, "it says '0x"),
    (l.Escrow, {"escrow": "another"}, "it says b"),
    (l.Bond, {"amount": 21}, "it says 20"),
    (l.Bond, {"account": "client"}, "it is signed by"),
    (l.Penalise, {"compensation": 9}, "it says 8"),
    (l.Release, {"escrow": "other"}, "it says b"),
    (l.Reward, {"to": "node:b"}, "it says '0x"),
    (l.Refund, {"escrow": "job"}, "it says b"),
    (l.Refund, {"escrow": "another"}, "no transaction pays in for 'another'"),
    (l.Distribute, {"evidence": "cd" * 32}, "it says b"),
    (l.Distribute, {"payments": {"node:a": 4, "node:b": 30}}, "roots of earnings"),
    (l.Claim, {"account": "node:a"}, "it says '0x"),
]


async def test_an_operation_that_is_not_what_was_done_is_found(told, tmp_path):
    for place, (kind, fields, said) in enumerate(LIES):
        lies = list(told.transactions)
        number = next(at for at, one in enumerate(lies) if isinstance(one.operation, kind))
        lies[number] = replace(lies[number], operation=replace(lies[number].operation, **fields))
        with pytest.raises(BadChain, match=said):
            await check(told.chain.rpc, told.said, lies, tmp_path / str(place))


async def test_what_is_missing_or_made_up_is_found(told, tmp_path):
    whole = list(told.transactions)
    paid = [one for one in whole if isinstance(one.operation, l.Distribute)]
    told.transactions = [one for one in whole if one is not paid[1]]  # a payment of which nothing is said
    with pytest.raises(BadChain, match=r"of which 1 are not told"):
        await check(told.chain.rpc, told.said, told.transactions, tmp_path)
    told.transactions, blocks = whole, told.blocks
    told.blocks = blocks[:-1]
    with pytest.raises(BadChain, match="was not carried out"):
        await checked(told, tmp_path / "b")
    told.blocks = [*blocks[:-1], replace(blocks[-1], raw=blocks[-2].raw)]
    with pytest.raises(Exception, match=r"nonce|does not hold"):
        await checked(told, tmp_path / "c")
    told.blocks, told.transactions = blocks, [replace(whole[0], raw=whole[1].raw), *whole[1:]]
    with pytest.raises(BadChain, match="its hash is not that of its bytes"):
        await check(told.chain.rpc, told.said, told.transactions, tmp_path / "d")
    told.transactions = [replace(whole[0], accounts={"client": "0x" + "11" * 20}), *whole[1:]]
    with pytest.raises(BadChain, match="and was"):
        await check(told.chain.rpc, told.said, told.transactions, tmp_path / "e")
    told.transactions, wrong = whole, dict(told.said.contracts)
    told.said = replace(told.said, contracts={**wrong, "token": wrong["rewards"]})
    with pytest.raises(BadChain, match="is not the TuttiToken of this version"):
        await checked(told, tmp_path / "f")


@pytest.mark.parametrize(
    "hidden",
    [l.Mint(to="friend", amount=1_000_000), l.Transfer(source="node:a", to="thief", amount=300)],
    ids=["new tokens", "a wallet is emptied"],
)
async def test_what_a_coordinator_has_done_and_does_not_tell_is_found(tmp_path, hidden):
    (tmp_path / "its").mkdir()
    chain, rpc = await embedded(tmp_path / "its", Rules(veto=0), Clock())
    ledger = EvmLedger(chain)
    await post(ledger, l.Mint(to="node:a", amount=300), hidden, l.Mint(to="client", amount=1))
    told = tell(ledger, rpc)
    assert (await checked(told, tmp_path / "whole")).conserved
    told.transactions = [one for one in told.transactions if one.operation != hidden]
    with pytest.raises(BadChain, match=r"has sent \d transactions, of which 1 are not told: number \d"):
        await checked(told, tmp_path / "anew")
    with pytest.raises(BadChain, match="of which 1 are not told"):
        await check(rpc, told.said, told.transactions, tmp_path / "node")
    await ledger.close()


async def test_what_came_after_the_account_was_given_is_no_fault(told, tmp_path):
    await post(EvmLedger(told.chain), l.Mint(to="later", amount=5), start=90)
    assert (await check(told.chain.rpc, told.said, told.transactions, tmp_path)).minted == 1_305


async def test_a_transaction_that_failed_is_told_and_is_no_fault(told, tmp_path):
    """Somebody else sent the claim a moment before."""
    ledger = EvmLedger(told.chain)
    due = await ledger.claimable("node:a")
    claim = (told.chain.operator.address, due.round, due.address, due.total, due.proof)
    rpc, quick = told.chain.rpc, Chain(told.chain.deployment, told.chain.rpc, WALLETS, tmp_path / "quick.sqlite")
    send = rpc.call

    async def call():
        return quick.call(WALLETS.account("eve"), "rewards", "claim", *claim)

    async def first(method, *params):
        if method == "eth_sendRawTransaction":
            rpc.call = send
            await quick.send("claim", b"", call)
        return await send(method, *params)

    rpc.call = first
    with pytest.raises(Unavailable, match="failed in block"):
        await ledger.post(Order("claim", l.Claim(account="node:a")))
    for number in range(DEPTH):
        await ledger.post(Order(f"block-{number}", l.Mint(to="client", amount=1)))
    with pytest.raises(l.InsufficientFunds):
        await ledger.post(Order("claim", l.Claim(account="node:a")))
    account = tell(ledger, rpc)
    assert [one.key for one in account.transactions if one.failed] == ["claim"]
    assert (await checked(account, tmp_path / "anew")).conserved
    account.transactions = [replace(one, failed=False) for one in account.transactions]
    with pytest.raises(BadChain, match="was not carried out"):
        await check(rpc, account.said, account.transactions, tmp_path / "lie")
    quick.sender.close()


async def test_a_round_that_was_vetoed_is_no_fault(tmp_path):
    (tmp_path / "its").mkdir()
    chain, rpc = await embedded(tmp_path / "its", Rules(unbonding=0, veto=500), Clock())
    ledger = EvmLedger(chain)
    pool = l.Escrow(escrow="p", payer="s", amount=90, purpose="pool")
    await post(ledger, l.Mint(to="s", amount=100), pool, l.Distribute(escrow="p", payments={"b": 10}))

    async def veto():
        return chain.call(WALLETS.role("guardian"), "rewards", "veto", chain.operator.address, 0)

    await chain.send("veto", b"veto", veto)
    await ledger.post(Order("right", l.Distribute(escrow="p", payments={"b": 2})))
    try:
        assert (await checked(tell(ledger, rpc), tmp_path / "anew")).owed == 2
    finally:
        await ledger.close()
