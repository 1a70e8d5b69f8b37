"""Nodes sign their updates: what they sign is in the log and in the records of a round, and forgeries are refused."""

import asyncio

import pytest
from msgspec.structs import replace

from support.worlds import DEADLINE, World, toy_spec
from tutti.adapters.fabrics.local import LocalLink
from tutti.adapters.identities.secp256k1 import Secp256k1Key, verify
from tutti.core.errors import Conflict
from tutti.domain.contributions import Contribution, check_signature
from tutti.domain.jobs import Job, Status
from tutti.ports import LinkRefused
from tutti.services.history import attempts_of
from tutti.services.proofs import CONNECTING, statement
from tutti.testing.fabrics import registration
from tutti.wire.messages import Refusal, Registered


def key(name: str) -> Secp256k1Key:
    return Secp256k1Key(name.encode() * 32)


class Forger:
    """Says that it has another's key."""

    public = key("a").public

    def sign(self, digest: bytes) -> bytes:
        return key("f").sign(digest)


class Silent:
    public = key("a").public

    def sign(self, digest: bytes) -> bytes:
        return b""


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path)
    await world.up()
    yield world
    await world.close()


async def who_signed(world: World, job: Job) -> dict[tuple[int, str], str]:
    """The key, by round and node, that has signed each update that counted, after a look at the signature."""
    found = {}
    for attempt in await attempts_of(world.core.journal, world.core.blobs, job, range(1, job.rounds_done + 1)):
        for update in attempt.round.accepted:
            fields = {name: getattr(update, name) for name in ("round", "node", "digest", "weight", "signed")}
            found[update.round, update.node] = check_signature(Contribution(job=job.id, **fields), verify)
    return found


@pytest.mark.parametrize(
    "fields", [{}, {"strategy": "fedbuff:buffer=2"}, {"codec": "int8"}, {"cohort": {"max_weight": 5}}]
)
async def test_every_update_is_signed_by_its_node(world, fields):
    for part, name in enumerate("ab"):
        await world.join(name, part, key=key(name))
    await world.join("c", 2)  # has no key
    job = await world.finished(await world.core.submit(toy_spec(3, **fields)))
    assert job.status is Status.COMPLETED
    signed = await who_signed(world, job)
    assert {node for _, node in signed} & set("ab")
    assert all(by == ("" if node == "c" else key(node).public) for (_, node), by in signed.items())
    assert world.core.register.keys == {name: key(name).public for name in "ab"}
    assert world.core.node_status("a").key == key("a").public


@pytest.mark.parametrize(("forger", "reason"), [(Forger(), "not one by the node's key"), (Silent(), "is not signed")])
async def test_what_its_key_has_not_signed_is_refused(world, forger, reason):
    for part, name in enumerate("bc"):
        await world.join(name, part, key=key(name))
    await world.join("a", 2, key=forger)
    spec = toy_spec(3, rounds=1, cohort={"quorum": 2}, evaluation={"nodes": False})
    job = await world.finished(await world.core.submit(spec))
    assert {node for _, node in await who_signed(world, job)} == {"b", "c"}
    (refusal,) = [one for attempt in job.past for one in attempt.round.refusals]
    assert (refusal.node, reason in refusal.reason) == ("a", True)


async def test_a_node_keeps_its_key_over_restarts_and_is_sent_away_with_another(world):
    await world.join("a", 0, key=key("a"))
    await world.join("b", 1, key=key("b"))
    job = await world.core.submit(toy_spec(2, rounds=2))
    await world.finished(job)
    await world.down()
    await world.up()
    for other in (key("x"), None):
        await world.kill("a")
        await world.join("a", 0, key=other)
        async with asyncio.timeout(DEADLINE):
            with pytest.raises(LinkRefused, match="another key before"):
                await world.task("a")
    await world.kill("a")
    await world.join("a", 0, key=key("a"))
    job = await world.finished(await world.core.submit(toy_spec(2, name="again")))
    assert job.status is Status.COMPLETED
    await world.core.remove_node("a")
    assert world.core.register.keys == {"b": key("b").public}


async def phone(world: World, number: int, named: str) -> str:
    """What a device hears that proves itself by key "p", and names this one; it joins at its first coming."""
    proofs, its = world.core.members.proofs, key("p")
    if not world.core.members.is_member("phone"):
        await world.core.members.admit(await world.core.members.invite(), "phone", f"secp256k1:{its.public}")
    time = proofs.now + number
    signature = its.sign(statement("phone", proofs.challenge, time, CONNECTING)).hex()
    shown = f"secp256k1:{its.public}:{proofs.challenge}:{time}:{signature}"
    messages = await LocalLink(world.fabric).connect(replace(registration("phone", shown), key=named))
    async with asyncio.timeout(DEADLINE):
        assert isinstance(await anext(messages), Registered)
        if named == its.public:
            return ""
        refusal = await anext(messages)
        assert isinstance(refusal, Refusal)
        assert refusal.fatal
    return refusal.detail


async def test_a_phone_signs_with_the_key_by_which_it_proves_itself_and_with_no_other(world):
    for number, other in enumerate((key("x").public, "")):
        assert "phone has signed with another key before" in await phone(world, number, other)
        assert world.core.register.keys == {"phone": key("p").public}
    assert await phone(world, 2, key("p").public) == ""


async def test_nobody_takes_a_phones_key_before_it_comes(world):
    await world.core.members.admit(await world.core.members.invite(), "phone", f"secp256k1:{key('p').public}")
    await world.join("thief", 0, key=key("p"))
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(LinkRefused, match="another node signs with the key of thief"):
            await world.task("thief")
    assert await phone(world, 0, key("p").public) == ""
    with pytest.raises(Conflict, match="another node signs with this key"):
        await world.core.members.admit(await world.core.members.invite(), "copy", f"secp256k1:{key('p').public}")
