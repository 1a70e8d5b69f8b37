"""The ledger on a chain, against the suite: in this process, and on a Hardhat node. Then what goes wrong on chains."""

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from eth_abi import encode
from eth_account import Account as Wallet

from support.evm import WALLETS, Between, Clock, deployed, embedded, hardhat
from tutti.adapters.chain.connection import Chain, Deployment
from tutti.adapters.chain.deploy import Rules
from tutti.adapters.chain.rpc import HttpRpc
from tutti.adapters.chain.wallets import NotInCustody, Wallets
from tutti.adapters.ledgers.evm import TRANSFER_AND_CALL, EvmLedger, escrow_id
from tutti.core.errors import Conflict, NotFound, Unavailable, UserError
from tutti.domain import ledger as l
from tutti.domain.ledger import Account, Order
from tutti.ports.ledger import KeyReused
from tutti.testing.ledgers import CAP, UNBONDING, Bench, LedgerSuite, post

RULES = Rules(cap=CAP, unbonding=UNBONDING, veto=0)


class TestEmbeddedChain(LedgerSuite):
    @pytest.fixture
    async def bench(self, tmp_path):
        clock = Clock()
        chain, _ = await embedded(tmp_path, RULES, clock)
        ledger = EvmLedger(chain)
        yield Bench(ledger, clock.later)
        await ledger.close()


@pytest.fixture(scope="module")
def node():
    """A node on which the contracts are deployed, and where."""
    with tempfile.TemporaryDirectory() as folder, hardhat(Path(folder) / "log") as running:

        async def prepare() -> Deployment:
            chain = await deployed(HttpRpc(running.url), running.url, Path(folder), RULES)
            await chain.close()
            return chain.deployment

        running.deployment = asyncio.run(prepare())
        yield running


@pytest.mark.xdist_group("hardhat")
class TestHardhatNode(LedgerSuite):
    @pytest.fixture
    async def bench(self, node, tmp_path):
        rpc = HttpRpc(node.url)
        before = await rpc.call("evm_snapshot")
        ledger = EvmLedger(Chain(node.deployment, rpc, WALLETS, tmp_path / "chain-sent.sqlite"))
        yield Bench(ledger, node.later)
        await rpc.call("evm_revert", before)
        await ledger.close()


@pytest.fixture
async def clock():
    return Clock()


@pytest.fixture
async def world(tmp_path, clock):
    """A ledger with a trouble-maker between it and its chain; alice has 100."""
    chain, rpc = await embedded(tmp_path, RULES, clock)
    chain.sender.close()
    between = Between(rpc)
    ledger = EvmLedger(Chain(chain.deployment, between, WALLETS, tmp_path / "chain-sent.sqlite"))
    await post(ledger, l.Mint(to="alice", amount=100))
    yield ledger, between, rpc
    await ledger.close()


PAY = Order("pay", l.Transfer(source="alice", to="bob", amount=30))


def failing_at(method):
    async def fail(called):
        if called == method:
            raise Unavailable("the network is down")

    return fail


@pytest.mark.parametrize("method", ["eth_estimateGas", "eth_sendRawTransaction", "eth_getTransactionReceipt"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_when_the_chain_goes_away_mid_write_the_same_order_is_carried_out_once(world, method, when):
    ledger, between, _ = world
    setattr(between, when, failing_at(method))
    with pytest.raises(Unavailable):
        await ledger.post(PAY)
    between.before = between.after = failing_at("none")
    first = await ledger.post(PAY)
    assert await ledger.post(PAY) == first
    assert (await ledger.account("alice")).free == 70
    assert (await ledger.totals()).conserved


async def test_an_order_that_was_lost_is_carried_out_before_the_next_is_decided(world):
    ledger, between, _ = world
    between.before = failing_at("eth_sendRawTransaction")
    with pytest.raises(Unavailable):
        await ledger.post(PAY)
    between.before = failing_at("none")
    with pytest.raises(l.InsufficientFunds):  # 30 of the 100 are spoken for
        await ledger.post(Order("more", l.Transfer(source="alice", to="carol", amount=80)))
    assert (await ledger.account("bob")).free == 30


@pytest.mark.parametrize("depth", range(1, 6))
async def test_what_another_branch_has_lost_is_sent_again(world, depth):
    ledger, _, rpc = world
    await post(
        ledger,
        l.Escrow(escrow="pool", payer="alice", amount=50, purpose="pool"),
        l.Distribute(escrow="pool", payments={"bob": 20, "carol": 5}),
        l.Distribute(escrow="pool", payments={"bob": 3}),
        l.Claim(account="bob"),
        start=1,
    )
    receipt = await ledger.post(PAY)
    before = [await ledger.account(name) for name in ("alice", "bob", "carol")]
    rpc.rewind(depth)
    assert (await ledger.account("alice")).free == (50 if depth < 5 else 100)  # the chain has forgotten that she paid
    assert await ledger.post(PAY) == receipt
    assert [await ledger.account(name) for name in ("alice", "bob", "carol")] == before
    await post(ledger, l.Claim(account="carol"), start=9)
    assert (await ledger.totals()).conserved


async def test_another_branch_in_the_middle_of_a_write(world):
    ledger, between, rpc = world
    done = []

    async def rewind(method):
        if method == "eth_sendRawTransaction" and not done:
            done.append(method)
            rpc.rewind(1)

    between.after = rewind
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tutti.adapters.chain.sender.PATIENCE_SECONDS", 0.05)
        with pytest.raises(Unavailable, match="repeat yours with its key"):
            await ledger.post(PAY)
    await ledger.post(PAY)
    assert (await ledger.account("alice")).free == 70


async def test_it_goes_on_after_a_restart_and_keys_still_count(world, tmp_path):
    ledger, _, rpc = world
    first = await ledger.post(PAY)
    await post(ledger, l.Escrow(escrow="p", payer="alice", amount=50, purpose="pool"), start=1)
    await ledger.post(Order("d", l.Distribute(escrow="p", payments={"bob": 7})))
    ledger.chain.sender.close()
    again = EvmLedger(Chain(ledger.chain.deployment, rpc, WALLETS, tmp_path / "chain-sent.sqlite"))
    assert await again.post(PAY) == first
    with pytest.raises(KeyReused):
        await again.post(Order("pay", l.Transfer(source="alice", to="bob", amount=31)))
    assert await again.account("bob") == Account(free=30, owed=7)
    await post(again, l.Claim(account="bob"), start=5)
    assert await again.account("bob") == Account(free=37)


async def test_an_address_is_paid_but_not_spent_from(world):
    ledger, _, _ = world
    hers = WALLETS.address("somebody")  # any address
    await ledger.post(Order("to-her", l.Transfer(source="alice", to=hers, amount=40)))
    assert (await ledger.account(hers)).free == 40
    for name in (hers, hers.lower()):
        with pytest.raises(NotInCustody, match="from its wallet"):
            await ledger.post(Order(f"from-{name[:4]}", l.Transfer(source=name, to="alice", amount=1)))


async def test_rounds_that_the_guardian_vetoed_are_not_owed(tmp_path, clock):
    chain, _ = await embedded(tmp_path, Rules(cap=CAP, unbonding=UNBONDING, veto=500), clock)
    ledger = EvmLedger(chain)
    await post(
        ledger,
        l.Mint(to="s", amount=100),
        l.Escrow(escrow="p", payer="s", amount=90, purpose="pool"),
        l.Distribute(escrow="p", payments={"bob": 10}),
    )
    with pytest.raises(l.InsufficientFunds, match=r"^10 tokens .* 'bob' from 20..-..-..T..:..:..\+00:00 on"):
        await ledger.post(Order("early", l.Claim(account="bob")))
    with pytest.raises(l.InsufficientFunds, match="nothing is owed to 'eve'"):
        await ledger.post(Order("never", l.Claim(account="eve")))
    await clock.later(501)
    await ledger.post(Order("wrong", l.Distribute(escrow="p", payments={"bob": 50, "eve": 5})))

    async def veto():
        return chain.call(WALLETS.role("guardian"), "rewards", "veto", chain.operator.address, 1)

    await chain.send("veto", b"veto", veto)
    await ledger.post(Order("right", l.Distribute(escrow="p", payments={"bob": 2})))
    await clock.later(501)
    await ledger.post(Order("claim", l.Claim(account="bob")))
    assert await ledger.account("bob") == Account(free=12)
    assert await ledger.account("eve") == Account()
    assert (await ledger.totals()).escrowed == 78
    await ledger.close()


async def test_names_that_strangers_use_and_tokens_that_go_astray_change_nothing(world):
    """Anybody may pay in under any name, and send tokens to a contract."""
    ledger, _, _ = world
    eve, chain = Wallet.from_key(b"e" * 32), ledger.chain
    await ledger.post(Order("to-eve", l.Transfer(source="alice", to=eve.address, amount=9)))
    terms = encode(["bytes32", "address", "uint64"], [escrow_id("job"), chain.operator.address, await chain.now() + 99])
    for number, (function, *arguments) in enumerate(
        [
            (TRANSFER_AND_CALL, chain.to("escrow"), 1, terms),
            (TRANSFER_AND_CALL, chain.to("rewards"), 1, terms),
            *(("transfer", chain.to(name), 2) for name in ("staking", "escrow", "rewards")),
        ]
    ):

        async def call(function=function, arguments=arguments):
            return chain.call(eve, "token", function, *arguments)

        await chain.send(f"eve-{number}", b"", call)
    await post(
        ledger,
        l.Escrow(escrow="job", payer="alice", amount=50),
        l.Reward(escrow="job", to="bob"),
        start=1,
    )
    assert (await ledger.account("bob")).free == 50
    with pytest.raises(l.EscrowOver):
        await ledger.post(Order("again", l.Escrow(escrow="job", payer="bob", amount=5)))
    totals = await ledger.totals()
    assert (totals.stray, totals.escrowed, totals.conserved) == (6, 2, True)


async def test_contracts_of_another_version_are_refused(world, tmp_path):
    ledger, _, rpc = world
    right = ledger.chain.deployment.contracts
    for wrong, said in (
        ({"escrow": right["rewards"]}, "is not the JobEscrow of this version"),
        ({"token": "0x" + "11" * 20}, "there is no TuttiToken at 0x1111"),
    ):
        chain = Chain(Deployment("embedded", 31337, right | wrong), rpc, WALLETS, tmp_path / "wrong.sqlite")
        with pytest.raises(Conflict, match=said):
            await EvmLedger(chain).post(PAY)
        chain.sender.close()
    other = await deployed(rpc, "embedded", tmp_path / "other", RULES, Wallets(b"v" * 32))
    mixed = right | {"token": other.to("token")}
    chain = Chain(Deployment("embedded", 31337, mixed), rpc, WALLETS, tmp_path / "mixed.sqlite")
    with pytest.raises(Conflict, match=r"the Staking at 0x.* uses a TuttiToken at 0x"):
        await chain.check_code()
    for one in (chain, other):
        one.sender.close()


async def test_contracts_that_are_not_there_are_named(world, tmp_path):
    ledger, _, rpc = world
    nowhere = Deployment("embedded", 31337, dict.fromkeys(ledger.chain.deployment.contracts, "0x" + "11" * 20))
    lost = EvmLedger(Chain(nowhere, rpc, WALLETS, tmp_path / "lost.sqlite"))
    with pytest.raises(Conflict, match="no TuttiToken at 0x1111"):
        await lost.totals()
    lost.chain.sender.close()


async def test_a_chain_that_is_down_is_said_to_be(tmp_path, world):
    ledger, _, _ = world
    chain = Chain(ledger.chain.deployment, HttpRpc("http://127.0.0.1:9"), WALLETS, tmp_path / "down.sqlite")
    with pytest.raises(Unavailable, match=r"no chain answers at http://127\.0\.0\.1:9"):
        await EvmLedger(chain).post(PAY)
    await chain.close()


def test_a_configuration_that_is_none_is_refused(tmp_path):
    with pytest.raises(NotFound, match="tutti chain deploy"):
        Deployment.read(tmp_path / "chain.json")
    (tmp_path / "chain.json").write_text('{"rpc": "x", "chain_id": 1, "contracts": {"token": "0x12"}}')
    with pytest.raises(UserError, match="chain deploy"):
        Deployment.read(tmp_path / "chain.json")
    (tmp_path / "chain.json").write_text('{"rpc": "x", "chain_id": 1, "contracts": {}}')
    with pytest.raises(UserError, match="escrow, registry"):
        Deployment.read(tmp_path / "chain.json")


def test_keys_come_from_one_secret():
    again = Wallets(b"t" * 32)
    assert again.address("alice") == WALLETS.address("alice") != WALLETS.address("bob")
    assert Wallets(b"u" * 32).address("alice") != WALLETS.address("alice")
    assert len({again.role(role).address for role in ("operator", "arbiter", "guardian", "deployer")}) == 4


@pytest.mark.xdist_group("hardhat")
async def test_both_chains_give_the_same_answers_and_the_same_gas(node, tmp_path):
    """The same orders on py-evm and on Hardhat: same addresses apart, same refusals, balances and gas."""
    operations = [
        l.Mint(to="a", amount=500),
        l.Stake(account="a", amount=100),
        l.Escrow(escrow="job", payer="a", amount=60),
        l.Reward(escrow="job", to="b"),
        l.Escrow(escrow="pool", payer="a", amount=90, purpose="pool"),
        l.Distribute(escrow="pool", payments={"b": 30, "c": 4}, evidence="ab" * 32),
        l.Claim(account="c"),
        l.Unstake(account="a", amount=60),
        l.Refund(escrow="pool"),
    ]
    gas = []
    for name in ("embedded", "hardhat"):
        (tmp_path / name).mkdir()
        if name == "embedded":
            chain, _ = await embedded(tmp_path / name, RULES, Clock())
        else:
            chain = await deployed(HttpRpc(node.url), node.url, tmp_path / name, RULES, Wallets(b"x" * 32))
        ledger = EvmLedger(chain)
        receipts = await post(ledger, *operations)
        found = [await chain.rpc.call("eth_getTransactionReceipt", receipt.reference) for receipt in receipts]
        gas.append([int(each["gasUsed"], 16) for each in found])
        assert all(int(each["status"], 16) == 1 for each in found)
        await ledger.close()
    differences = [abs(ours - theirs) for ours, theirs in zip(*gas, strict=True)]
    assert max(differences) < 200, gas  # addresses have zero bytes in different places, which are cheaper


@pytest.mark.parametrize("modules", ["chain.embedded", "chain.wallets", "ledgers.evm, tutti.adapters.chain.embedded"])
def test_what_strangers_send_is_still_read_with_care(modules):
    """py-evm and py_ecc raise the limit of recursion for the whole process: nested JSON would then end it."""
    code = f"import sys, tutti.adapters.{modules}; sys.exit(sys.getrecursionlimit() != 1000)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
