"""The guardian's commands: what comes in is paused, and payments are taken back while nobody can have claimed them."""

import pytest

from support.commands import tutti
from tutti.adapters.chain.connection import Chain
from tutti.adapters.chain.wallets import Wallets
from tutti.adapters.ledgers.evm import EvmLedger
from tutti.apps.chain import deploy_chain, guard
from tutti.apps.cli.exits import Exit
from tutti.core.errors import Conflict, UserError
from tutti.domain import ledger as l
from tutti.domain.ledger import Account, Order
from tutti.testing.ledgers import post

FUND = (
    l.Mint(to="sponsor", amount=100),
    l.Escrow(escrow="pool", payer="sponsor", amount=90, purpose="pool"),
    l.Distribute(escrow="pool", payments={"bob": 30}),
)


async def test_a_round_is_taken_back_by_a_command(tmp_path):
    folder = tmp_path / "tutti-data"
    await deploy_chain(folder, "embedded", {})
    ledger = EvmLedger(Chain.at(folder))
    await post(ledger, *FUND)
    assert await ledger.account("bob") == Account(owed=30)
    with pytest.raises(l.InsufficientFunds, match=r"30 tokens can be claimed .* on: until then"):
        await ledger.post(Order("early", l.Claim(account="bob")))
    done = tutti("chain", "veto", 0, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert await ledger.account("bob") == Account()
    assert (await ledger.totals()).escrowed == 90
    other = tutti("chain", "veto", 0, "--coordinator", "0x1", cwd=tmp_path)
    assert (other.returncode, "by an address, 0x and 40 hex digits; came '0x1'" in other.stderr) == (Exit.USAGE, True)
    again = tutti("chain", "veto", 0, cwd=tmp_path)
    assert again.returncode == Exit.CONFLICT
    assert "NoSuchRound" in again.stderr
    await ledger.close()


async def test_a_pause_stops_what_comes_in_and_nothing_that_goes_out(tmp_path):
    folder = tmp_path / "tutti-data"
    await deploy_chain(folder, "embedded", {})
    ledger = EvmLedger(Chain.at(folder))
    await post(ledger, *FUND)
    for _ in range(2):  # what is paused already is left alone
        assert tutti("chain", "pause", cwd=tmp_path).returncode == 0
    with pytest.raises(Conflict, match="EnforcedPause"):
        await ledger.post(Order("stake", l.Stake(account="sponsor", amount=5)))
    await ledger.post(Order("back", l.Refund(escrow="pool")))
    assert tutti("chain", "unpause", cwd=tmp_path).returncode == 0
    await ledger.post(Order("stake", l.Stake(account="sponsor", amount=5)))
    assert await ledger.account("sponsor") == Account(free=65, staked=5)
    await ledger.close()


async def test_a_guardian_of_its_own_has_its_own_key(tmp_path):
    """It has the coordinator's chain.json, and a chain.key that the coordinator does not know."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    hers = str(Wallets.at(theirs / "chain.key").role("guardian").address)
    with pytest.raises(UserError, match="the guardian is named by an address"):
        await deploy_chain(ours, "embedded", {"guardian": "somebody"})
    deployment = await deploy_chain(ours, "embedded", {"guardian": hers})
    assert deployment.guardian == hers
    with pytest.raises(Conflict, match=f"the guardian is {hers}, whose key is not in"):
        await guard(ours, "pause")
    for name in ("chain.json", "chain.sqlite"):
        (theirs / name).write_bytes((ours / name).read_bytes())
    assert len(await guard(theirs, "pause")) == 3
