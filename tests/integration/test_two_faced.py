"""A node that signs two updates under one number has proved it itself: in the log, on the market and on the chain."""

import asyncio
import threading

import pytest
from msgspec.structs import replace

from support.evm import Clock, embedded
from support.worlds import DEADLINE, World, toy_spec
from tutti.adapters.chain.deploy import Rules
from tutti.adapters.identities.secp256k1 import Secp256k1Key
from tutti.adapters.ledgers.evm import EvmLedger
from tutti.adapters.notaries.evm import EvmNotary
from tutti.domain import events as e
from tutti.domain import ledger as l
from tutti.domain.ledger import Account
from tutti.domain.signing import Domain, address_of, digest_of
from tutti.services.notary import NotaryDesk
from tutti.testing.ledgers import post
from tutti.wire.messages import Submission

HONEST, MALLORY = Secp256k1Key(b"h" * 32), Secp256k1Key(b"m" * 32)
OTHER = "ab" * 32


@pytest.fixture
async def chain(tmp_path):
    chain, _ = await embedded(tmp_path, Rules(penalty=70), Clock())
    yield chain
    await chain.close()


@pytest.fixture
async def world(tmp_path, chain):
    world = World(tmp_path)
    world.domain = Domain(chain.deployment.chain_id, chain.to("tracker").lower())
    await world.up()
    yield world
    await world.close()


def another(first: e.UpdateAccepted, job: str, key: Secp256k1Key, nonce: int) -> Submission:
    """What a node signs besides what it has handed in."""
    its = replace(first.signed, nonce=nonce)
    signature = key.sign(digest_of(job, OTHER, its)).hex()
    given = {"round": first.round, "attempt": 0, "digest": OTHER, "weight": its.samples}
    return Submission(job=job, nonce=nonce, signature=signature, **given)


async def test_two_signatures_under_one_number_are_seen_recorded_and_proved(world, chain):
    ledger = EvmLedger(chain)
    await post(ledger, l.Mint(to="node:mallory", amount=100), l.Stake(account="node:mallory", amount=100))
    desk = NotaryDesk(world.core.journal, EvmNotary(chain))
    recording, gate = asyncio.create_task(desk.run()), threading.Event()
    await world.join("ada", 0, gate=gate, key=HONEST)
    await world.join("mallory", 1, key=MALLORY)
    job = await world.core.submit(toy_spec(2, rounds=1, evaluation={"nodes": False}))
    await world.until(lambda job: job.round is not None and job.round.came == 1, job)
    first = world.core.job(job.id).round.members["mallory"].update
    for key, nonce in ((MALLORY, 1), (HONEST, 0), (MALLORY, 0), (MALLORY, 0)):  # the first two prove nothing
        await world.links["mallory"].send(another(first, job.id, key, nonce))
    found = await until_accused(world)
    assert (found.node, found.digests) == ("mallory", (first.digest, OTHER))
    assert world.market.market.forgeries["mallory"] == 1
    gate.set()
    done = await world.finished(job)
    assert set(done.contributions) == {"ada", "mallory"}  # what it signed first is an update like any other
    assert world.core.register.drained == {"mallory"}
    async with asyncio.timeout(DEADLINE):
        while desk.waiting:
            await chain.sender.settle()  # behind what is being sent
    recording.cancel()
    sent = await chain.sender.sent(f"notary/equivocation/{job.id}/1/{OTHER[:16]}")
    (log,) = (await chain.rpc.call("eth_getTransactionReceipt", sent.hash))["logs"]
    assert log["topics"][1] == "0x" + address_of(MALLORY.public)[2:].rjust(64, "0")
    assert await ledger.account("node:mallory") == Account(staked=30)  # what it had staked for work answers for it
    accused = [r.event for r in await world.core.log.read() if isinstance(r.event, e.NodeEquivocated)]
    assert accused == [found]


async def until_accused(world: World) -> e.NodeEquivocated:
    async with asyncio.timeout(DEADLINE):
        async for batch in world.core.log.follow(0):
            if any(isinstance(recorded.event, e.NodeDrained) for recorded in batch):
                break
    return next(r.event for r in await world.core.log.read() if isinstance(r.event, e.NodeEquivocated))
