"""The market over the other ledger: stakes, escrows, rewards and penalties by contracts, on a chain in this process."""

import asyncio

import pytest

from support.evm import Clock, embedded
from support.market import ADMIN, Marketplace
from tutti.adapters.chain.deploy import Rules
from tutti.adapters.ledgers.evm import EvmLedger
from tutti.domain.ledger import InsufficientFunds, Order, StillUnbonding, Unstake
from tutti.domain.market.jobs import Status
from tutti.domain.market.money import worker_account
from tutti.testing import cheats
from tutti.testing.cheats import Silent


class OnChain(Marketplace):
    async def open_ledger(self) -> EvmLedger:
        (self.folder / "chain").mkdir()
        self.time = Clock()
        chain, _ = await embedded(self.folder / "chain", Rules(), self.time)
        return EvmLedger(chain)


@pytest.fixture
async def place(tmp_path):
    place = OnChain(tmp_path)
    await place.open()
    yield place
    await place.close()


async def test_a_job_is_paid_and_a_cheat_pays_by_contract(place):
    await place.hire("mallory", 150, solve=cheats.random)
    job = await place.submit("linear_regression", 10)
    await place.until_market(
        lambda: place.market.job(job.id).attempts and place.market.job(job.id).attempt(1).holds is False
    )
    await place.hire("ada", 150)
    chain = place.ledger.chain
    (job,) = await place.settled(job)
    assert job.status is Status.VERIFIED
    ada, mallory = await place.worker_holds("ada"), await place.worker_holds("mallory")
    assert (ada.free, ada.staked) == (10, 150)
    assert mallory.free + mallory.staked == 140
    assert await place.client_holds() == 9_995  # it paid 10, and got half of what mallory lost
    assert (await place.balanced()).escrowed == 0
    for name in ("ada", "mallory"):
        address = chain.wallets.address(worker_account(name))
        assert (await chain.view("staking", "positions", address))[3] == 0  # nothing is locked any more


async def test_the_contract_itself_keeps_a_bond_from_being_taken_back(place):
    await place.hire("ada", 150, worker=Silent)
    job = await place.submit("linear_regression", 120)
    await place.until_market(lambda: place.market.job(job.id).attempts)
    bond, address = place.market.job(job.id).attempt(1).bond, place.ledger.chain.wallets.address("node:ada")
    async with asyncio.timeout(30):
        while (await place.ledger.chain.view("staking", "positions", address))[3] != bond:
            await place.ledger.chain.sender.settle()  # waits for its turn behind the order
    with pytest.raises(InsufficientFunds, match="InsufficientStake"):
        await place.ledger.post(Order("past-the-desk", Unstake(account="node:ada", amount=150 - bond + 1)))
    place.later = 31.0  # no sign of its work for a whole lease
    place.floor.poke(job.id)
    await place.until_market(lambda: place.market.job(job.id).attempt(1).over)
    async with asyncio.timeout(30):
        while (await place.ledger.chain.view("staking", "positions", address))[3]:
            await place.ledger.chain.sender.settle()
    await place.ledger.post(Order("free-again", Unstake(account="node:ada", amount=150)))


async def test_stake_is_withdrawn_once_it_has_unbonded(place):
    await place.hire("ada", 150)
    assert await place.market.unstake("ada", 50, "u", ADMIN) == 100
    ada = await place.worker_holds("ada")
    assert (ada.free, ada.staked, ada.unbonding) == (0, 100, 50)
    with pytest.raises(StillUnbonding):
        await place.market.withdraw("ada", "w", ADMIN)
    await place.time.later(Rules().unbonding + 1)
    for _ in range(2):  # the same key again takes nothing more
        ada = await place.market.withdraw("ada", "w", ADMIN)
        assert (ada.free, ada.staked, ada.unbonding) == (50, 100, 0)
    await place.balanced()
