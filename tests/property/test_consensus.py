"""Training on a ring under every fault: one history, equal models, every counted update counted once."""

import os
from collections.abc import Awaitable, Callable
from contextlib import contextmanager, suppress
from dataclasses import replace
from random import Random

import msgspec
import pytest

from support import chains
from support.chains import FRAME, Disk, Process, Store, World, digest, job_events, model_of, play, update_of
from tutti.domain import commands as c
from tutti.domain import events as e
from tutti.domain import jobs
from tutti.domain.jobs import Status
from tutti.ring import consensus
from tutti.ring.consensus import Ballot, Leading, Received
from tutti.ring.consensus.replica import remembering
from tutti.ring.record import Record, Seat, committee, majority
from tutti.services import chain as chain_service

SCHEDULES = int(os.environ.get("TUTTI_SCHEDULES", "100"))
"""How many random ones are tried."""


def check(world: World) -> None:
    """All have one history, in which every round's model is made of the updates it names, each of them once."""
    chains = [disk.records for disk in world.disks.values()]
    assert len({chain[-1].digest for chain in chains}) == 1
    history = [event for record in chains[0] for event in job_events(record)]
    job = jobs.replay(history)
    assert job.status is Status.COMPLETED, job.outcome
    base, rounds, accepted = digest("first"), 0, dict[str, tuple[str, int]]()
    for event in history:
        match event:
            case e.RoundOpened():
                accepted = {}
            case e.UpdateAccepted(node=node, digest=update, weight=weight):
                assert node not in accepted
                assert (update, weight) == update_of(node, rounds + 1, base)
                accepted[node] = update, weight
            case e.RoundClosed(counted=counted, model=model):
                assert counted == {node: weight for node, (_, weight) in accepted.items()}
                assert model == model_of(base, accepted)
                base, rounds = model, rounds + 1
    assert rounds == world.spec.rounds


def faulty(seed: int) -> World:
    async def schedule(world: World) -> None:
        world.begin()
        await world.run(world.rng.uniform(0.0, 2.0))
        await world.misbehave(world.rng.uniform(4.0, 12.0))
        world.mend()
        await world.settle()

    return play(schedule, World(seed, Random(seed).choice([1, 2, 3, 4, 5, 8]), rounds=20))


@pytest.mark.parametrize("seed", range(SCHEDULES))
def test_one_history_whatever_fails(seed):
    check(faulty(seed))


def test_the_same_seed_gives_the_same_trace():
    assert faulty(7).trace == faulty(7).trace
    assert faulty(7).trace != faulty(8).trace


CALM = 15.0
"""Seconds within which a ring at rest has one leader again, once nothing fails: a few leases for each who may lead."""


@pytest.mark.parametrize("seed", range(SCHEDULES // 2))
def test_a_ring_at_rest_has_one_leader_again_once_nothing_fails(seed):
    """No record comes then that would make up for what was promised meanwhile."""

    async def schedule(world: World) -> None:
        world.begin()
        await world.settle()
        records = height(world)
        await world.disturb(world.rng.uniform(2.0, 20.0), crashes=seed % 4 == 0)
        assert seed % 4 == 0 or height(world) == records, "it was not at rest"
        world.mend()
        await world.until(world.calm, CALM)
        await world.run(5.0)
        assert world.calm(), world.state()

    play(schedule, World(seed, Random(seed).choice([2, 3, 3, 4, 5, 8]), rounds=1))


@pytest.mark.parametrize("members", [3, 5, 8])
def test_a_member_that_stands_still_deposes_nobody(members):
    async def schedule(world: World) -> None:
        leader = leader_of(world)
        term, second = leader.chain.term, leader.chain.replica.order[1]
        for _ in range(6):
            await world.stand_still(second, 1.6)
            await world.run(0.7)
        assert (leader.chain.leading, leader.chain.term) == (True, term)
        await world.settle()
        check(world)

    joined(schedule, members)


Schedule = Callable[[World], Awaitable[None]]


def joined(schedule: Schedule, members: int, rounds: int = 50, seed: int = 3) -> World:
    """Play a schedule that begins when all have joined and the rounds go on."""

    async def whole(world: World) -> None:
        world.begin()
        await world.until(lambda: all(_joined(disk, members) for disk in world.disks.values()))
        await schedule(world)

    return play(whole, World(seed, members, rounds))


def scheduled(members: int, rounds: int = 50):
    def of(schedule: Schedule):
        def test() -> None:
            joined(schedule, members, rounds)

        test.__name__, test.__doc__ = schedule.__name__, schedule.__doc__
        return test

    return of


def _joined(disk: Disk, members: int) -> bool:
    return len(disk.records) > 4 and len(disk.records[-1].roster) == members


def leader_of(world: World) -> Process:
    return next(process for process in world.up if process.chain.leading)


def height(world: World) -> int:
    return len(world.longest())


@scheduled(8, rounds=8)
async def test_without_faults_everybody_counts_in_every_round(world):
    joined = height(world)
    await world.settle()
    check(world)
    chain = world.longest()
    closed = [event for record in chain[joined:] for event in job_events(record) if isinstance(event, e.RoundClosed)]
    assert len(closed) > 2
    assert all(len(event.counted) == 8 for event in closed)


@scheduled(8)
async def test_when_the_leader_dies_another_goes_on_within_two_seconds(world):
    leader_of(world).crash()
    before, began = height(world), world.now
    await world.until(lambda: height(world) > before)
    assert world.now - began < 2.0 + 1.0  # and one round, with who was silent in it


@scheduled(8, rounds=12)
async def test_two_may_die_at_once(world):
    leader = leader_of(world)
    other = next(name for name in leader.chain.replica.order if name != leader.name)
    leader.crash()
    world.processes[other].crash()
    before = height(world)
    await world.until(lambda: height(world) > before, 10.0)
    world.mend()
    await world.settle()
    check(world)


@scheduled(8, rounds=12)
async def test_a_minority_stops_and_follows_when_it_comes_back(world):
    minority = leader_of(world).chain.replica.order[:2]  # the leader among them
    world.sides = {name: int(name in minority) for name in world.names}
    before = len(world.disks[minority[0]].records)
    await world.run(8.0)
    for name in minority:
        assert len(world.disks[name].records) <= before + 1  # what had been sent already
        assert not world.processes[name].chain.leading
    assert height(world) > before + 1
    world.mend()
    await world.settle()
    check(world)


@scheduled(5, rounds=16)
async def test_without_a_majority_nothing_happens_until_somebody_forces_it(world):
    order = leader_of(world).chain.replica.order
    dead, left = order[:3], order[3:]
    for name in dead:
        world.processes[name].crash()
    await world.run(2.0)
    before = height(world)
    await world.run(20.0)
    assert height(world) == before
    world.force(world.processes[left[0]])
    await world.run(10.0)
    assert height(world) > before + 1
    assert world.disks[left[1]].records[-1].generation == 1
    world.mend()  # those who were given up come back, and take over what was decided without them
    await world.settle()
    check(world)
    assert all(disk.records[-1].generation == 1 for disk in world.disks.values())


@scheduled(5, rounds=8)
async def test_a_wrong_sum_is_never_agreed_on(world):
    world.wrong = {leader_of(world).name}
    await world.settle()
    check(world)
    assert world.lied > 0


@scheduled(3, rounds=8)
async def test_nothing_is_kept_for_strangers_and_for_those_who_went(world):
    leader, *others = sorted(world.up, key=lambda process: not process.chain.leading)
    for number in range(100):
        await leader.chain.heard(consensus.Fetch(sender=f"10.9.9.{number}:5001", generation=0, height=-1, tip=""))
    assert set(leader.chain._queues) == {process.name for process in others}
    others[0].crash()
    await world.run(15.0)
    assert set(leader.chain._queues) == {others[1].name}
    world.mend()  # who comes back is told everything all the same
    await world.settle()
    check(world)


@scheduled(3, rounds=30)
async def test_whoever_has_lost_its_memory_is_seated_anew(world):
    leader = leader_of(world)
    world.wipe(leader.name)
    await world.run(0.5)
    process = world.processes[leader.name]
    assert not process.chain.replica.votes
    await world.until(lambda: process.chain.replica.votes)
    await world.settle()
    check(world)
    assert world.forced == 0


@scheduled(2)
async def test_a_dead_leader_is_not_shown_as_one(world):
    leader = leader_of(world)
    (other,) = (process for process in world.up if process is not leader)
    assert other.chain.fault == ""
    leader.crash()
    await world.run(5.0)
    assert other.chain.leader == leader.name
    assert f"{leader.name} was not heard for" in other.chain.fault


@scheduled(3)
async def test_a_record_that_gets_no_votes_is_shown(world):
    leader = leader_of(world)
    world.unable = {process.name for process in world.up if process is not leader}
    await world.run(20.0)
    assert all("has waited for votes" in process.chain.fault for process in world.up)
    world.unable = set()
    await world.run(5.0)
    assert {process.chain.fault for process in world.up} == {""}


# -- schedules in which one thing must not be forgotten -----------------------------------------------------------


async def at_random(world: World) -> None:
    await world.misbehave(8.0, harsh=True)


async def disturbed(world: World) -> None:
    """In the middle of rounds, members stand still, and what leaders and candidates say is late."""
    await world.disturb(12.0, crashes=True)


async def away(world: World) -> None:
    """One is away for long, and lacks more than one message holds."""
    follower = next(process for process in world.up if not process.chain.leading)
    follower.crash()
    await world.until(lambda: sum(record.size for record in world.longest()) > 2 * FRAME)


async def cut_off(world: World) -> None:
    """The leader and one more of five are alone."""
    leader, other, *_ = leader_of(world).chain.replica.order
    world.sides = {leader: 1, other: 1}
    await world.run(8.0)


async def half_known(world: World, *, odd: bool = False) -> tuple[Process, Process]:
    """The leader and one of the two others have agreed on a record, of which only the leader knows, and it dies.

    The third has not been asked; or, if it is odd, it has found the record wrong.
    """
    world.slow = 0.2
    for _ in range(20):
        leader = leader_of(world)
        other, third = (process for process in world.up if process is not leader)
        with suppress(TimeoutError):
            await world.until(lambda: other.chain.replica.durable.vote is None)  # noqa: B023
            if odd:
                world.odd = {third.name}
                await world.until(lambda: bool(third.chain.replica.wrong), 2.0)  # noqa: B023
            world.links[leader.name, third.name] = None
            await world.until(lambda: other.chain.replica.durable.vote is not None, 0.7)  # noqa: B023
            world.links[leader.name, other.name] = None
            await world.until(lambda: len(leader.disk.records) > len(other.disk.records), 0.7)  # noqa: B023
            leader.crash()
            world.links.clear()
            return other, third
        world.links.clear()
        await world.run(2.0)
    raise TimeoutError("the leader never knew more than the others")


async def survived(world: World) -> None:
    await half_known(world)
    await world.run(10.0)


async def survived_by_the_odd(world: World) -> None:
    """One of those who are left finds the record wrong."""
    await half_known(world, odd=True)
    await world.run(15.0)


async def survived_by_the_restarted(world: World) -> None:
    other, _ = await half_known(world)
    other.crash()
    world.start(other.name)
    await world.run(10.0)


async def survived_by_the_forgetful(world: World) -> None:
    """The only other one who has voted for the record has lost its disk."""
    other, _ = await half_known(world)
    world.wipe(other.name)
    await world.run(10.0)


async def late(world: World) -> None:
    """What the leader asks votes for arrives when another has been elected, which has not proposed anything yet."""
    leader = leader_of(world)
    other, third = (process for process in world.up if process is not leader)
    world.links = {(leader.name, other.name): world.rng.uniform(1.1, 1.6), (leader.name, third.name): None}
    with suppress(TimeoutError):
        await world.until(lambda: getattr(leader.chain.replica.role, "proposal", None) is not None, 1.0)
    world.work_time = 4.0
    await world.run(6.0)


async def restarted_half_way(world: World) -> None:
    """The leader dies when one has voted, and has the vote of the other when it has started again."""
    leader, world.slow = leader_of(world), 0.2
    other, third = (process for process in world.up if process is not leader)
    world.links = {(leader.name, third.name): None, (other.name, leader.name): None}
    await world.until(lambda: other.chain.replica.durable.vote is not None)
    leader.crash()
    world.links = {(leader.name, other.name): None}
    world.start(leader.name)
    with suppress(TimeoutError):
        await world.until(lambda: third.chain.replica.durable.vote is not None, 1.0)
    world.links[leader.name, third.name] = None
    await world.run(0.5)
    world.processes[leader.name].crash()
    await world.run(8.0)


async def forced_apart(world: World) -> None:
    """Both sides of a cut are forced to go on, and the larger one twice, after it has gone on for long."""
    one, other = world.names[:3], world.names[3:]
    world.sides = {name: int(name in other) for name in world.names}
    await world.run(6.0)
    world.force(world.processes[other[0]])
    await world.run(8.0)
    for _ in range(2):
        world.force(next(world.processes[name] for name in one if world.processes[name].chain.leading))
        await world.run(1.0)


async def forced_alike(world: World) -> None:
    """Both sides of a cut are forced to go on."""
    world.sides = {name: number % 2 for number, name in enumerate(world.names)}
    await world.run(6.0)
    for side in (0, 1):
        world.force(next(p for p in world.up if world.sides[p.name] == side))
    await world.run(4.0)


async def all_killed(world: World, votes: int) -> None:
    """Everybody is killed at once when so many have voted for a record; nobody who has not can look at it any more."""
    for _ in range(20):
        leader = leader_of(world)
        others = [process for process in world.up if process is not leader]
        world.links = {(leader.name, other.name): None for other in others[votes - 1 :]}
        world.links |= {(other.name, leader.name): None for other in others}
        with suppress(TimeoutError):
            await world.until(lambda: len(voted(world)) == votes, 3.0)
            record = voted(world)[0]
            world.lost.add(record.digest)
            assert {it.digest for it in voted(world)} == {record.digest}
            for process in world.up:
                process.crash()
            break
        world.links.clear()
        await world.run(4.0)
    assert not world.up
    world.links.clear()
    for name in world.names:
        world.start(name)
    await world.run(30.0)
    assert height(world) > record.height, world.state()


def voted(world: World) -> list[Record]:
    """What was voted for after the newest record."""
    promised = [disk.durable for disk in world.disks.values()]
    return [said.vote.record for said in promised if said.vote is not None and said.height == height(world) - 1]


async def all_killed_when_one_had_voted(world: World) -> None:
    await all_killed(world, 1)


async def all_killed_when_two_had_voted(world: World) -> None:
    """Of three they are a majority: the record may be chosen. Of five they are not."""
    await all_killed(world, 2)


async def all_killed_when_three_had_voted(world: World) -> None:
    await all_killed(world, 3)


def after_all(schedule: Schedule, members: int, seed: int) -> World:
    """The schedule, and then everything is mended."""

    async def whole(world: World) -> None:
        await schedule(world)
        world.mend()
        await world.settle()

    world = joined(whole, members, 40, seed)
    check(world)
    return world


PROVOKING = {
    at_random: (3, 4, 5),
    disturbed: (3, 5),
    away: (3,),
    cut_off: (5,),
    survived: (3,),
    survived_by_the_odd: (3,),
    survived_by_the_restarted: (3,),
    survived_by_the_forgetful: (3,),
    late: (3,),
    restarted_half_way: (3,),
    forced_apart: (5,),
    forced_alike: (4,),
    all_killed_when_one_had_voted: (3, 5),
    all_killed_when_two_had_voted: (3, 5),
    all_killed_when_three_had_voted: (5,),
}
"""Each with how many members it may have."""


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("schedule", "members"), PROVOKING.items(), ids=lambda it: getattr(it, "__name__", ""))
def test_one_history_whatever_was_provoked(schedule, members, seed):
    after_all(schedule, members[seed % len(members)], seed)


# -- mutants: each must be caught by the schedules above --------------------------------------------------------


@contextmanager
def instead(*patches: tuple[object, str, object]):
    with pytest.MonkeyPatch.context() as patch:
        for where, name, what in patches:
            patch.setattr(where, name, what)
        yield


HANDLE = consensus.handle


def forgetful():
    """Promises and votes are not on disk."""

    def load(store):
        records, durable = LOAD(store)
        store.disk.durable = consensus.Durable(len(records) - 1, since=durable.since) if records else durable
        return records, store.disk.durable

    return instead((Store, "load", load))


LOAD = Store.load


def back_to_zero():
    """Who led when it died leads on with the ballot that it had, and proposes something else."""

    def restored(me, records, durable, now):
        state = RESTORED(me, records, durable, now)
        leads = state.votes and state.order[0] == me.address
        return replace(state, asked=BACK) if leads else state

    def handle(state, event, now):
        if state.asked != BACK:
            return HANDLE(state, event, now)
        state = replace(remembering(state, Ballot(0, state.me)), asked="")
        return replace(state, role=Leading(Ballot(0, state.me), now)), (consensus.Lead(),)

    return instead((consensus, "restored", restored), (consensus, "handle", handle))


RESTORED, BACK = consensus.restored, "it goes on"


def headstrong():
    """Who is elected proposes what it likes, whatever was voted for."""

    def handle(state, event, now):
        if isinstance(state.role, consensus.Electing):
            bare = dict.fromkeys(state.role.promises)
            state = replace(state, role=replace(state.role, promises=bare))
            if isinstance(event, Received) and isinstance(event.message, consensus.Promise):
                event = Received(msgspec.structs.replace(event.message, vote=None))
        return HANDLE(state, event, now)

    return instead((consensus, "handle", handle))


def overriding():
    """Who finds a record wrong proposes another one, though that may have been chosen."""

    def handle(state, event, now):
        if isinstance(event, Received) and isinstance(event.message, consensus.Promise):
            vote = event.message.vote
            if vote is not None and vote.record.digest in state.wrong:
                event = Received(msgspec.structs.replace(event.message, vote=None))
        return HANDLE(state, event, now)

    return instead((consensus, "handle", handle))


def hasty():
    """A leader takes a record for chosen with a vote less than a majority."""

    def handle(state, event, now):
        role = state.role
        if isinstance(role, Leading) and role.proposal is not None and len(state.order) > 1:
            state = replace(state, role=replace(role, votes=role.votes | {"nobody"}))
        return HANDLE(state, event, now)

    return instead((consensus, "handle", handle))


def double_counting():
    """An update that comes twice is taken twice."""

    def decide(job, command, *, now):
        if isinstance(command, c.SubmitUpdate) and job.round is not None and command.node in job.round.members:
            update = job.round.members[command.node].update
            if update is not None and update.digest == command.digest:
                return [
                    e.UpdateAccepted(
                        at=now, round=command.round, node=command.node, digest=command.digest, weight=command.weight
                    )
                ]
        return DECIDE(job, command, now=now)

    return instead((jobs, "decide", decide))


DECIDE = jobs.decide


def parting():
    """What a member is told is given up half-way if its caller is gone."""

    async def half_way(work):
        await work

    return instead((chain_service, "to_the_end", half_way))


def credulous():
    """A member takes records from anybody."""
    chain = consensus.chain

    def on_commit(state, message, now):
        if state.tip is not None and message.record.previous == state.tip.digest:
            return chain.adopted(state, (message.record,), now, by=message.sender)
        return chain.catch_up(state, message)

    return instead((chain, "on_commit", on_commit), (chain, "_believed", lambda state, sender: True))


def unread():
    """A record is saved before it is read."""

    def reading(member, *of):
        return lambda: READING(member, *of)()

    return instead((chain_service.ChainMember, "_reading", reading))


READING = chain_service.ChainMember._reading


def impatient():
    """Records of another chain are forgotten if they are not enough at once."""

    def handle(state, event, now):
        return HANDLE(replace(state, staged=()), event, now)

    return instead((consensus, "handle", handle))


def uncut():
    """All records are sent in one message."""
    return instead((chains, "BATCH", 2**30))


def undecided():
    """Of two chains of one generation neither gives way."""

    def stays(one, other):
        return one[-1].generation != other[-1].generation and STAYS(one, other)

    return instead((consensus.chain, "stays", stays))


STAYS = consensus.stays


def reborn():
    """Who has lost its memory votes as if nothing had happened."""
    votes = property(lambda replica: replica.me in replica.order)
    return instead((consensus.Replica, "votes", votes))


def rash():
    """Who has not answered counts as one who has not voted."""

    def bound(state, latest, promises):
        return sum(vote is not None and vote.record == latest for vote in promises.values()) >= majority(state.order)

    return instead((consensus.leader, "_may_be_chosen", bound))


def bound():
    """A leader does not find out that too few have voted for the record which it cannot get votes for."""
    return instead((consensus.leader, "_may_be_chosen", lambda *_: True))


MUTANTS = {
    forgetful: survived_by_the_restarted,
    back_to_zero: restarted_half_way,
    headstrong: survived,
    overriding: survived_by_the_odd,
    hasty: cut_off,
    double_counting: at_random,
    parting: at_random,
    credulous: at_random,
    unread: at_random,
    uncut: away,
    impatient: forced_apart,
    undecided: forced_alike,
    reborn: survived_by_the_forgetful,
    rash: survived,
    bound: all_killed_when_one_had_voted,
}
"""Each with the schedule that provokes it."""

TRIED = 30


@pytest.mark.parametrize(("mutant", "schedule"), MUTANTS.items(), ids=lambda it: getattr(it, "__name__", ""))
def test_mutants_are_caught(mutant, schedule):
    members = PROVOKING[schedule]
    for seed in range(TRIED):
        try:
            with mutant():
                after_all(schedule, members[seed % len(members)], seed)
        except AssertionError:
            return
    pytest.fail(f"{mutant.__name__} was not noticed")


# -- committees --------------------------------------------------------------------------------------------------


def test_a_committee_is_drawn_fairly_and_changes_little():
    rosters = tuple(f"10.0.0.{number}:5001" for number in range(8))
    drawn = dict.fromkeys(rosters, 0)
    for seed in range(20_000):
        drawn[committee(rosters, str(seed))[0]] += 1
    assert max(drawn.values()) / (20_000 / 8) < 1.06
    for gone in rosters:
        before, after = committee(rosters, "x"), committee(tuple(name for name in rosters if name != gone), "x")
        assert len(set(before) - set(after)) == (gone in before)


@pytest.mark.parametrize(("members", "size"), [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (8, 5), (64, 5)])
def test_a_committee_is_odd(members, size):
    assert len(committee(tuple(map(str, range(members))), "seed")) == size
    assert majority(range(size)) == size // 2 + 1


def test_records_that_differ_have_other_digests():
    record = Record(1, "a", "b", (Seat("b"),))
    assert record.digest != Record(1, "a", "b", (Seat("b", 1),)).digest
    assert record.digest == Record(1, "a", "b", (Seat("b"),)).digest
