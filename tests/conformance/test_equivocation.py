"""What nodes sign is what the contract checks: one hash, one address, and a proof that a node signed twice."""

from itertools import product

import pytest

from support.evm import Clock, embedded
from tutti.adapters.chain.deploy import Rules
from tutti.adapters.chain.sender import Reverted
from tutti.adapters.identities.secp256k1 import Secp256k1Key
from tutti.domain.signing import Domain, Signed, address_of, digest_of, session_of

NODE = Secp256k1Key(b"n" * 32)
MODEL = "ef" * 32


@pytest.fixture
async def chain(tmp_path):
    chain, _ = await embedded(tmp_path, Rules(), Clock())
    yield chain
    await chain.close()


def signed(chain, update, nonce=0):
    domain = Domain(chain.deployment.chain_id, chain.to("tracker").lower())
    bare = Signed(key=NODE.public, round=3, base=MODEL, samples=40, nonce=nonce, signature="", domain=domain)
    return NODE.sign(digest_of("digits", update, bare)), bare


def as_asked(update, its):
    return session_of("digits"), its.round, bytes.fromhex(its.base), bytes.fromhex(update), its.samples, its.nonce


async def test_the_contract_hashes_an_update_as_nodes_do(chain):
    _, its = signed(chain, "ab" * 32, nonce=7)
    assert await chain.view("tracker", "digest", as_asked("ab" * 32, its)) == digest_of("digits", "ab" * 32, its)


async def prove(chain, nonces, key="proof"):
    """Whoever has two signatures sends them; which of two keys each recovers to (v) is found out by trying."""
    made = [
        (update, *signed(chain, update, nonce)) for update, nonce in zip(("ab" * 32, "cd" * 32), nonces, strict=True)
    ]
    for ends in product((b"\x1b", b"\x1c"), repeat=2):
        proofs = [
            (as_asked(update, its), signature + end) for (update, signature, its), end in zip(made, ends, strict=True)
        ]

        async def call(proofs=proofs):
            return chain.call(
                chain.operator, "tracker", "proveEquivocation", *proofs[0], *proofs[1], address_of(NODE.public)
            )

        try:
            return await chain.send(f"{key}/{ends}", b"proof", call)
        except Reverted as refusal:
            if refusal.revert is None or refusal.revert.name not in ("NoEquivocation", "ECDSAInvalidSignature"):
                raise
    return None


async def test_two_updates_under_one_number_are_proved_by_anybody_and_two_numbers_are_none(chain):
    assert await prove(chain, (0, 1)) is None
    sent = await prove(chain, (0, 0))
    receipt = await chain.rpc.call("eth_getTransactionReceipt", sent.hash)
    (log,) = receipt["logs"]
    assert log["topics"][1] == "0x" + address_of(NODE.public)[2:].rjust(64, "0")
    with pytest.raises(Reverted, match="AlreadyProven"):
        await prove(chain, (0, 0), "again")
