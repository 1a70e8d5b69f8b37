"""A member's chain: on disk, as a log, and its votes, for nothing that it has not computed itself."""

import asyncio
import threading
import time
from contextlib import asynccontextmanager

import msgspec
import numpy as np
import pytest

from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.adapters.blobs.held import HeldBlobs
from tutti.adapters.chains.sqlite import SqliteChain
from tutti.adapters.datasets import parts
from tutti.adapters.fabrics.ring import RingFabric, node_of
from tutti.adapters.identities.secp256k1 import Secp256k1Key, verify
from tutti.adapters.logs.chain import Agreed, ChainLog
from tutti.adapters.thrift.client import Channel
from tutti.adapters.thrift.idl import PROTOCOL, compute_node, peer_struct, training_node
from tutti.adapters.thrift.node import ThriftPeers, peer_at
from tutti.adapters.thrift.server import Server
from tutti.adapters.thrift.training import TrainingNode
from tutti.apps.ring_check import check
from tutti.core.errors import Forbidden, StorageError, UserError
from tutti.core.params import Params
from tutti.core.reduce import Update
from tutti.core.registry import Choice
from tutti.core.strategy import compose
from tutti.domain import commands as c
from tutti.domain import events as e
from tutti.domain import jobs
from tutti.domain.contributions import BadProof
from tutti.domain.signing import Signed, address_of, digest_of
from tutti.domain.spec import DataSchema, load_spec
from tutti.ports import LinkLost
from tutti.ports.log import VersionConflict
from tutti.ports.training import Data, Examples
from tutti.ring.consensus import Ballot, Commit, Durable, Fetch, Records, Vote
from tutti.ring.record import LARGEST, Seat, after, first
from tutti.services.chain import BadRecord, ChainMember, LostLead
from tutti.services.verify import Verifier, enough_without
from tutti.testing.logs import LogSuite
from tutti.wire import tensors
from tutti.wire.messages import BadMessage

SCHEMA = DataSchema("classification", (2,), 2)
SPEC = load_spec({"name": "toy", "dataset": "toy", "model": "linear", "rounds": 2, "evaluation": {"nodes": False}})


# -- the chain on disk --------------------------------------------------------------------------------------


def test_a_chain_and_what_was_promised_are_kept(tmp_path):
    store = SqliteChain(tmp_path / "chain.sqlite")
    begin = first(Seat("a:1"))
    second = after(begin, "a:1", [Seat("a:1"), Seat("b:1", 2)], b"body")
    durable = Durable(0, Ballot(1, "b:1"), Vote(Ballot(1, "b:1"), second))
    store.save([begin], durable)
    store.close()
    store = SqliteChain(tmp_path / "chain.sqlite")
    assert store.load() == ([begin], durable)
    store.save([second], Durable(1))
    assert store.load() == ([begin, second], Durable(1))
    other = after(begin, "a:1", [Seat("a:1")], b"other")
    with pytest.raises(StorageError, match="cannot write the ring's chain"):
        store.save([other, other], Durable(7))  # nothing of this is kept
    assert store.load() == ([begin, second], Durable(1))
    store.save([other], Durable(1, since=3))  # in place of all from its height on
    assert store.load() == ([begin, other], Durable(1, since=3))
    store.save([first(Seat("b:1"))], Durable(0))
    assert store.load() == ([first(Seat("b:1"))], Durable(0))
    store.close()


def test_a_damaged_chain_is_said(tmp_path):
    (tmp_path / "chain.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(StorageError, match="the ring's chain"):
        SqliteChain(tmp_path / "chain.sqlite").load()


# -- a ring of one, and its log -----------------------------------------------------------------------------


class Silence:
    async def agree(self, address, message):
        raise AssertionError("there is nobody")


@asynccontextmanager
async def alone(folder, verify=None):
    store = SqliteChain(folder / "chain.sqlite")
    seat = Seat("127.0.0.1:1")
    chain = ChainMember(seat, store, Silence(), verify=verify, roster=lambda: (seat,), clock=time.monotonic)
    agreed = Agreed(chain)
    running = asyncio.create_task(chain.run(founds=True))
    async with asyncio.timeout(30):
        await chain.until(lambda chain: chain.leading)
        yield chain, agreed
    running.cancel()
    await asyncio.wait([running])
    store.close()


async def test_a_chain_that_nobody_has_used_is_let_go_where_there_is_a_ring_to_join(tmp_path):
    async with alone(tmp_path) as (chain, agreed):
        assert (chain.height, chain.origin) == (0, "")
    store = SqliteChain(tmp_path / "chain.sqlite")
    member = ChainMember(Seat("127.0.0.1:1"), store, Silence(), verify=None, roster=tuple, clock=time.monotonic)
    await member.load()
    member.let_go()
    assert (member.records, member.leader) == ((), "")
    async with alone(tmp_path) as (chain, agreed):
        await ChainLog(chain, agreed).append("job:toy-1", 0, [submitted()])
    await member.load()
    member.let_go()  # this one has been used
    assert member.origin == member.records[0].digest
    store.close()


def submitted(at=1.0):
    return jobs.submit("toy-1", SPEC, SCHEMA, now=at)


async def test_what_ends_something_is_agreed_on_with_all_that_came_before(tmp_path):
    note = e.CoordinatorStarted(at=0.5, version="1")
    async with alone(tmp_path) as (chain, agreed):
        log = ChainLog(chain, agreed)
        (noted,) = await log.append("nodes", 0, [note])
        assert (noted.offset, chain.height) == (1, 0)  # it waits
        await log.append("job:toy-1", 0, [submitted()])
        assert chain.height == 1
        assert [r.event for r in await log.read()] == [note, submitted()]
        await log.append("nodes", 1, [note])
        assert [r.offset for r in await log.read(stream="nodes")] == [1, 3]
        assert [r.offset for r in await log.read(2)] == [3]
        with pytest.raises(VersionConflict):
            await log.append("nodes", 1, [note])
        log.give_up(LostLead("another leads"))
        with pytest.raises(LostLead):
            await log.append("job:toy-1", 1, [e.JobPaused(at=2.0)])
    async with alone(tmp_path) as (chain, agreed):  # what waited is forgotten
        log = ChainLog(chain, agreed)
        assert [(r.stream, r.version) for r in await log.read()] == [("nodes", 1), ("job:toy-1", 1)]
        assert list(agreed.jobs) == ["toy-1"]


async def test_what_has_no_room_in_a_record_is_refused_or_agreed_on_before(tmp_path):
    async with alone(tmp_path) as (chain, agreed):
        log = ChainLog(chain, agreed)
        half = e.CoordinatorStarted(at=0.5, version="1" * (LARGEST // 2))
        await log.append("nodes", 0, [half])
        assert chain.height == 0
        await log.append("nodes", 1, [half])
        assert chain.height == 1
        with pytest.raises(UserError, match="may have 1048576 bytes, this has"):
            await log.append("nodes", 2, [half, half])
        await log.append("job:toy-1", 0, [submitted()])
        assert [r.version for r in await log.read()] == [1, 2, 1]
        assert all(len(record.body) <= LARGEST for record in chain.records)
        with pytest.raises(StorageError, match="a record may have"):
            await chain.propose(bytes(LARGEST + 1))


SEATS = (Seat("a:1"), Seat("b:1"), Seat("c:1"))
BEGIN = first(SEATS[0])
SECOND = after(BEGIN, "a:1", SEATS, b"")


def commit(record):
    return Commit(sender=record.leader, generation=0, height=record.height, tip=record.digest, record=record)


@asynccontextmanager
async def follower(store, voices):
    """b:1, which has the first two records of three members."""
    store.save([BEGIN, SECOND], Durable(1))
    member = ChainMember(SEATS[1], store, voices, verify=None, roster=lambda: SEATS, clock=time.monotonic)
    agreed = Agreed(member)
    running = asyncio.create_task(member.run())
    try:
        async with asyncio.timeout(30):
            await member.until(lambda member: member.height == 1)
            yield member, agreed, running
    finally:
        running.cancel()
        await asyncio.wait([running])


class Lost:
    """A network that loses everything."""

    async def agree(self, address, message):
        pass


async def test_an_event_is_carried_out_though_its_caller_is_cancelled(tmp_path):
    """A caller's connection that breaks cancels its calls: disk and memory must stay one all the same."""
    saving, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    class Slow(SqliteChain):
        def save(self, records, durable):
            if records and records[0].height > 1:
                loop.call_soon_threadsafe(saving.set)
                go_on.wait(30)
            super().save(records, durable)

    store = Slow(tmp_path / "chain.sqlite")
    third = after(SECOND, "a:1", SEATS, b"")
    fourth = after(third, "a:1", SEATS, b"")
    async with follower(store, Lost()) as (member, _, running):
        call = asyncio.create_task(member.heard(commit(third)))
        await saving.wait()
        call.cancel()
        next_one = asyncio.create_task(member.heard(commit(fourth)))
        go_on.set()
        await asyncio.wait([call])
        assert call.cancelled()
        assert member.records[:3] == (BEGIN, SECOND, third)
        await next_one
        assert [record.height for record in store.load()[0]] == [0, 1, 2, 3]
        assert member.height == 3
        assert not running.done()
    store.close()


async def test_a_record_that_cannot_be_read_is_not_taken(tmp_path):
    store = SqliteChain(tmp_path / "chain.sqlite")
    noise = after(SECOND, "a:1", SEATS, b"\xc1")
    stopped = msgspec.msgpack.encode((("job:nowhere", e.JobStopped(at=1.0, reason="asked")),))
    disorder = after(SECOND, "a:1", SEATS, stopped)
    async with follower(store, Lost()) as (member, agreed, running):
        for bad, why in ((noise, "is damaged"), (disorder, "contradicts those before: KeyError")):
            with pytest.raises(BadRecord, match=f"record 2 of a:1 {why}"):
                await member.heard(commit(bad))
        assert member.height == 1
        good = after(SECOND, "a:1", SEATS, msgspec.msgpack.encode((("job:toy-1", submitted()),)))
        await member.heard(commit(good))
        assert list(agreed.jobs) == ["toy-1"]
        assert not running.done()
    assert store.load()[0] == [BEGIN, SECOND, good]
    store.save([after(good, "a:1", SEATS, b"\xc1")], Durable(3))
    member = ChainMember(SEATS[1], store, Lost(), verify=None, roster=lambda: SEATS, clock=time.monotonic)
    Agreed(member)
    with pytest.raises(StorageError, match="record 3 of a:1 is damaged"):
        await member.run()
    store.close()


async def test_what_cannot_be_sent_is_lost_and_nothing_else(tmp_path):
    sent = asyncio.Queue()

    class Narrow:
        async def agree(self, address, message):
            sent.put_nowait(message)
            if len(msgspec.msgpack.encode(message)) > LARGEST // 2:
                raise UserError("a call may have fewer bytes")

    store = SqliteChain(tmp_path / "chain.sqlite")
    async with follower(store, Narrow()) as (member, _, running):
        records = [SECOND]
        notes = [("nodes", e.CoordinatorStarted(at=0.5, version="1" * 200_000))]
        while len(records) < 20:
            records.append(after(records[-1], "a:1", SEATS, msgspec.msgpack.encode(notes)))
            await member.heard(commit(records[-1]))
        await member.heard(Fetch(sender="c:1", generation=0, height=-1, tip=""))
        while not isinstance(message := await sent.get(), Records):
            pass
        assert list(message.records) == [BEGIN, *records][: len(message.records)]
        assert LARGEST // 2 < len(msgspec.msgpack.encode(message.records)) <= LARGEST
        await member.heard(Fetch(sender="c:1", generation=0, height=-1, tip=""))
        assert isinstance(await sent.get(), Records)
        assert not running.done()
    store.close()


async def test_who_does_not_lead_records_nothing(tmp_path):
    async with alone(tmp_path) as (chain, _):
        chain.leading = False
        with pytest.raises(LostLead):
            await chain.propose(b"")


class TestChainLog(LogSuite):
    """The log of whoever leads, which here is everybody."""

    @pytest.fixture
    async def log(self, tmp_path):
        async with alone(tmp_path) as (chain, agreed):
            log = ChainLog(chain, agreed)
            yield log
            await log.close()


# -- votes ----------------------------------------------------------------------------------------------------


def model(*values):
    return tensors.encode(Params.from_arrays({"w": np.array(values, np.float32)}))


class FullDisk(DirectoryBlobs):
    async def put(self, data, *, digest=None, sync=True):
        raise StorageError("cannot store a blob: No space left on device")


async def enough(updates, asked_for):
    return True


async def too_few(updates, asked_for):
    return False


KEYS = {node: Secp256k1Key(node.encode() * 32) for node in "abx"}


def signed(key, digest, weight, base, number=1):
    """A signature under an update of round `number` of toy-1."""
    its = Signed(key=key.public, round=number, base=base, samples=weight, nonce=0, signature="")
    return msgspec.structs.replace(its, signature=key.sign(digest_of("toy-1", digest, its)).hex())


def verifier_of(blobs, before, here, others=enough, obtain=None):
    """Of member c, which knows the keys of a and b; `here` tells which blobs it has."""
    keys = {node: KEYS[node].public for node in "ab"}
    own = ("c", KEYS["x"].public)
    return Verifier(
        blobs, obtain or blobs.read, here, lambda: before, others, keys=lambda: keys, own=own, verify=verify
    )


async def test_a_member_votes_only_for_the_model_that_it_computes_itself(tmp_path):
    blobs = DirectoryBlobs(tmp_path)
    base = await blobs.put(model(1.0, 2.0))
    updates = {"a": (model(1.0, 0.0), 1), "b": (model(0.0, 4.0), 3)}
    job = jobs.begin(submitted())
    news: list[tuple[str, object]] = []

    def happens(*events):
        nonlocal job
        for event in events:
            news.append(("job:toy-1", event))
            job = jobs.evolve(job, event)

    happens(*jobs.decide(job, c.Initialise(model=base, state=base, parameters=2), now=1.0))
    before = {job.id: job}
    news.clear()
    happens(*jobs.decide(job, c.Open(candidates=["a", "b"], settings={}, shares_state=False), now=2.0))
    for node, (blob, weight) in updates.items():
        digest = tensors.digest(blob)
        its = signed(KEYS[node], digest, weight, base)
        submit = c.SubmitUpdate(round=1, attempt=0, node=node, digest=digest, weight=weight, metrics={}, signed=its)
        happens(*jobs.decide(job, submit, now=3.0))
    strategy = compose(SPEC.strategy, SPEC.reducer)
    layout = tensors.decode(updates["a"][0]).layout
    total = strategy.reducer.zero(layout, 2, SPEC.cohort.largest_weight)
    strategy.reducer.add(total, *(Update(tensors.decode(blob), weight) for blob, weight in updates.values()))
    mean = strategy.reducer.finish(total).buffer
    right = tensors.digest(model(*(np.array([1.0, 2.0], np.float32) + mean)))

    def closed(made):
        counted = {"a": 1, "b": 3}
        return jobs.decide(job, c.Close(round=1, attempt=0, counted=counted, model=made, state=made), now=4.0)

    verifier = verifier_of(blobs, before, blobs.has)
    proposed = [*news, *(("job:toy-1", event) for event in closed(right))]
    assert await verifier.fault(proposed) is None  # the updates are not here yet
    for blob, _ in updates.values():
        await blobs.put(blob)
    assert await verifier_of(FullDisk(tmp_path), before, blobs.has).fault(proposed) is None
    obtained = []

    async def obtain(digest):
        obtained.append(digest)

    assert await verifier_of(blobs, before, blobs.has, obtain=obtain).fault(proposed) == ""
    assert obtained == [tensors.digest(blob) for blob, _ in updates.values()]
    assert right in await blobs.digests()
    for others, said in ((enough, None), (too_few, "")):  # it was given none of the updates
        assert await verifier_of(blobs, before, lambda _: False, others).fault(proposed, asked_for=0.0) == said
    wrong = [*news, *(("job:toy-1", event) for event in closed(base))]
    assert f"makes model {right[:12]}" in await verifier.fault(wrong)
    doubled = [*news, news[-1], *proposed[len(news) :]]
    assert "takes two updates of b" in await verifier.fault(doubled)
    assert "KeyError" in await verifier.fault([("job:other", news[0][1])])
    elsewhere = msgspec.structs.replace(SPEC, strategy=Choice("a-plug-in-of-the-leader"))
    lacking = {job.id: msgspec.structs.replace(before[job.id], spec=elsewhere)}
    assert await verifier_of(blobs, lacking, blobs.has).fault(proposed) is None


@pytest.mark.parametrize(
    ("me", "given", "enough"),
    [
        ("d", {"a": True, "b": True, "c": True, "e": False}, True),
        ("d", {"b": True, "c": True, "e": False}, False),  # the leader is dead: the next one fetches
        ("e", {"b": True, "c": True, "d": False}, True),
        ("e", {"b": True, "c": True}, False),  # and if that one is dead too, the one after it
        ("e", {"b": True, "c": True, "d": True}, True),
    ],
)
def test_who_was_given_no_update_is_needed_only_in_the_place_of_the_dead(me, given, enough):
    assert enough_without(me, "abcde", given) is enough


async def test_a_member_votes_only_for_updates_that_their_nodes_have_signed(tmp_path):
    blobs = DirectoryBlobs(tmp_path)
    base = await blobs.put(model(1.0, 2.0))
    digest = await blobs.put(model(1.0, 0.0))
    job = jobs.begin(submitted())
    for command in (
        c.Initialise(model=base, state=base, parameters=2),
        c.Open(candidates=["a", "b"], settings={}, shares_state=False),
    ):
        for event in jobs.decide(job, command, now=1.0):
            job = jobs.evolve(job, event)
    verifier = verifier_of(blobs, {job.id: job}, blobs.has)

    async def said_of(node, its, weight=3):
        event = e.UpdateAccepted(at=1.0, round=1, node=node, digest=digest, weight=weight, signed=its)
        return await verifier.fault([("job:toy-1", event)])

    good = signed(KEYS["a"], digest, 3, base)
    assert await said_of("a", good) == ""
    for forged in (None, signed(KEYS["b"], digest, 3, base), signed(KEYS["x"], digest, 3, base)):
        assert "is not signed by the key that its node has named" in await said_of("a", forged)
    for other in (
        signed(KEYS["a"], digest, 3, digest),
        signed(KEYS["a"], digest, 3, base, number=2),
        signed(KEYS["a"], digest, 2, base),
    ):
        assert "for another round, model or weight" in await said_of("a", other)
    claimed = msgspec.structs.replace(signed(KEYS["x"], digest, 3, base), key=KEYS["a"].public)
    assert "has a signature that does not hold" in await said_of("a", claimed)

    def named(node, key):
        return ("nodes", e.NodeKeyed(at=1.0, node=node, key=key.public))

    assert "given another key" in await verifier.fault([named("a", KEYS["x"])])
    assert "the key of another" in await verifier.fault([named("d", KEYS["a"])])
    assert "a key that is not its own" in await verifier.fault([named("c", Secp256k1Key(b"y" * 32))])
    assert await verifier.fault([named("c", KEYS["x"])]) == ""
    left = ("nodes", e.NodeRemoved(at=1.0, node="a", reason="lost its folder"))
    assert await verifier.fault([left, named("a", KEYS["x"])]) == ""


def chain_of(*bodies):
    """Records of one member with these events."""
    seat = Seat("a:1")
    records = [first(seat)]
    for body in bodies:
        records.append(after(records[-1], "a:1", [seat], msgspec.msgpack.encode(body)))
    return records


def test_a_chain_proves_who_has_signed_what():
    base, digest = "b" * 64, "d" * 64
    job = jobs.begin(submitted())
    begun: list[tuple[str, object]] = [
        *(("nodes", e.NodeKeyed(at=0.5, node=node, key=KEYS[node].public)) for node in "ab"),
        ("job:toy-1", submitted()),
    ]
    for command in (
        c.Initialise(model=base, state=base, parameters=2),
        c.Open(candidates=["a", "b"], settings={}, shares_state=False),
    ):
        for event in jobs.decide(job, command, now=1.0):
            begun.append(("job:toy-1", event))
            job = jobs.evolve(job, event)

    def taken(node, its, weight=3):
        event = e.UpdateAccepted(at=2.0, round=1, node=node, digest=digest, weight=weight, signed=its)
        return ("job:toy-1", event)

    records = chain_of(begun, [taken("a", signed(KEYS["a"], digest, 3, base))])
    found = check(records, {"a": address_of(KEYS["a"].public)}, records[1].digest)
    assert (found.records, found.head) == (3, records[-1].digest)
    assert [(each.node, each.since, each.updates) for each in found.signers] == [("a", 1, 1), ("b", 1, 0)]
    for known, why in (({"a": address_of(KEYS["x"].public)}, "a signs as 0x"), ({"b": ""}, "no update of b")):
        with pytest.raises(BadProof, match=why):
            check(records, known)
    for bad, why in (
        ([records[0], records[2]], "record 2 does not follow"),
        (records[1:], "not one with which a ring begins"),
        (
            chain_of(begun, [taken("a", None)]),
            "2 of a:1: the update d{12} of a in round 1 of toy-1 is not signed",
        ),
        (chain_of(begun, [taken("b", signed(KEYS["a"], digest, 3, base))]), "not signed by the key"),
        (chain_of(begun, [("nodes", e.NodeKeyed(at=1.0, node="a", key=KEYS["x"].public))]), "given another key"),
        (chain_of([("job:nowhere", e.JobPaused(at=1.0))]), "KeyError"),
    ):
        with pytest.raises(BadProof, match=why):
            check(bad, {})
    with pytest.raises(BadProof, match="there is no record 999999999999"):
        check(records, {}, "9" * 64)


# -- strangers ------------------------------------------------------------------------------------------------


async def test_nobody_speaks_for_another(tmp_path):
    class Nobody:
        async def agree(self, message):
            raise AssertionError("a forged message arrived")

    server = Server(training_node.TrainingNode, TrainingNode(Nobody(), HeldBlobs(DirectoryBlobs(tmp_path))))
    port = await server.start("127.0.0.1", 0)
    channel = Channel(training_node.TrainingNode, "127.0.0.1", port)
    said = msgspec.msgpack.encode(Fetch(sender="127.0.0.1:2", generation=0, height=0, tip=""))
    try:
        with pytest.raises(compute_node.Refused) as refused:
            await channel.call("agree", PROTOCOL, peer_struct(peer_at("127.0.0.1:3")), said, within=10)
        assert "is said to be of '127.0.0.1:2', '127.0.0.1:3' calls" in refused.value.reason
        with pytest.raises(compute_node.Refused) as refused:
            await channel.call("agree", PROTOCOL + 1, peer_struct(peer_at("127.0.0.1:2")), said, within=10)
        assert "use one version" in refused.value.reason
    finally:
        await channel.close()
        await server.close()


async def test_a_member_has_its_own_name_only():
    async def admit(node, key):
        raise AssertionError("nobody is admitted")

    fabric = RingFabric(ThriftPeers(), "127.0.0.1:1", admit)
    with pytest.raises(Forbidden, match="expected a registration"):
        await fabric.attach("127.0.0.1:2", 1, b'{"type":"device:heartbeat"}')
    with pytest.raises(BadMessage):
        await fabric.attach("127.0.0.1:2", 1, b"noise")
    with pytest.raises(LinkLost, match="connect anew"):
        await fabric.say(1, b'{"type":"device:heartbeat"}')
    assert node_of("[::1]:5001") == "1--5001"


def test_parts_are_read_and_judged():
    rows = Examples(np.eye(2, dtype=np.float32), np.array([0, 1]))
    data = Data("toy", SCHEMA, rows, Examples(rows.x[:0], rows.y[:0]))
    again = parts.joined([part.blob for part in reversed(parts.cut(data))])
    assert (again.train.x == rows.x).all()
    assert (again.train.y == rows.y).all()
    strange = Data("toy", SCHEMA, Examples(rows.x, np.array([0, 7])), data.held_out)
    good, other = parts.cut(data)[1].blob, Data("other", SCHEMA, rows, data.held_out)
    for bad in (b"noise", good[:-3], parts.cut(strange)[1].blob):
        with pytest.raises(parts.BadPart, match="not a part of a data set"):
            parts.joined([bad])
    with pytest.raises(parts.BadPart, match="not parts of one data set"):
        parts.joined([good, parts.cut(other)[0].blob])


def test_parts_belong_to_the_successors_of_their_keys():
    members = [peer_at(f"127.0.0.1:{port}") for port in range(8)]
    x = np.arange(1000, dtype=np.float32).reshape(-1, 2)
    cut = parts.cut(Data("toy", SCHEMA, Examples(x, np.zeros(500, np.int64)), Examples(x[:0], x[:0, 0])))
    owned = parts.owners(cut, members)
    assert sorted(row for mine in owned.values() for part in mine for row in part.rows) == list(range(500))
    left = parts.owners(cut, members[:-1])
    moved = [part for peer in members[:-1] for part in left[peer] if part not in owned[peer]]
    assert {part.digest for part in moved} == {part.digest for part in owned[members[-1]]}  # its own, and no others
