"""Training on a ring under every fault: one history, equal models, every counted update counted once."""

import os
from dataclasses import replace
from random import Random

import pytest

from support.chains import Process, World, digest, events_of, job_of, model_of, update_of
from tutti.domain import commands as c
from tutti.domain import events as e
from tutti.domain import jobs
from tutti.domain.jobs import Status
from tutti.ring import consensus
from tutti.ring.consensus import Ballot, Durable, Leading, Reform
from tutti.ring.record import Record, Seat, committee, majority

SCHEDULES = int(os.environ.get("TUTTI_SCHEDULES", "100"))
"""How many random ones are tried."""


def check(world: World) -> None:
    """All have one history, in which every round's model is made of the updates it names, each of them once."""
    chains = [process.disk.chain for process in world.processes.values()]
    assert len({chain[-1].digest for chain in chains}) == 1
    job = job_of(chains[0])
    assert job is not None
    assert job.status is Status.COMPLETED, job.outcome
    base, rounds, accepted = digest("first"), 0, dict[str, tuple[str, int]]()
    for event in (event for record in chains[0] for event in events_of(record)):
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
    world = World(seed, members=Random(seed).choice([1, 2, 3, 4, 5, 8]), rounds=12)
    world.begin()
    world.run(world.rng.uniform(0.0, 1.0))
    world.misbehave(world.rng.uniform(4.0, 12.0))
    world.mend()
    world.settle()
    return world


@pytest.mark.parametrize("seed", range(SCHEDULES))
def test_one_history_whatever_fails(seed):
    check(faulty(seed))


def test_the_same_seed_gives_the_same_trace():
    assert faulty(7).trace == faulty(7).trace
    assert faulty(7).trace != faulty(8).trace


def test_without_faults_everybody_counts_in_every_round():
    world = started(8, rounds=8)
    joined = height(world)
    world.settle()
    check(world)
    chain = world.processes[world.names[0]].disk.chain
    closed = [
        event for record in chain[joined + 1 :] for event in events_of(record) if isinstance(event, e.RoundClosed)
    ]
    assert len(closed) > 2
    assert all(len(event.counted) == 8 for event in closed)


def started(members: int, rounds: int = 50) -> World:
    """All have joined, and the rounds go on."""
    world = World(3, members, rounds)
    world.begin()
    while any(len(p.disk.chain) < 4 or len(p.disk.chain[-1].roster) < members for p in world.processes.values()):
        world.run(world.now + 0.1)
    return world


def leader_of(world: World) -> Process:
    return next(p for p in world.processes.values() if p.up and p.coordinator is not None)


def height(world: World) -> int:
    return max(len(process.disk.chain) for process in world.processes.values())


def test_when_the_leader_dies_another_goes_on_within_two_seconds():
    world = started(8)
    leader_of(world).crash()
    before, began = height(world), world.now
    while height(world) == before:
        world.run(world.now + 0.05)
    assert world.now - began < 2.0 + 1.0  # and one round, with who was silent in it


def test_two_may_die_at_once():
    world = started(8, rounds=6)
    leader = leader_of(world)
    other = next(name for name in leader.replica.order if name != leader.name)
    leader.crash()
    world.processes[other].crash()
    before = height(world)
    world.run(world.now + 10.0)
    assert height(world) > before
    world.mend()
    world.settle()
    check(world)


def test_a_minority_stops_and_follows_when_it_comes_back():
    world = started(8, rounds=12)
    order = leader_of(world).replica.order
    minority = order[:2]  # the leader among them
    world.sides = {name: int(name in minority) for name in world.names}
    before = len(world.processes[minority[0]].disk.chain)
    world.run(world.now + 8.0)
    for name in minority:
        assert len(world.processes[name].disk.chain) <= before + 1  # what had been sent already
        assert world.processes[name].coordinator is None
    assert height(world) > before + 1
    world.mend()
    world.settle()
    check(world)


def test_without_a_majority_nothing_happens_until_somebody_forces_it():
    world = started(5, rounds=8)
    order = leader_of(world).replica.order
    dead, left = order[:3], order[3:]
    for name in dead:
        world.processes[name].crash()
    world.run(world.now + 2.0)
    before = height(world)
    world.run(world.now + 20.0)
    assert height(world) == before
    world.processes[left[0]].tell(Reform(tuple(sorted(Seat(name) for name in left))))
    world.run(world.now + 10.0)
    assert height(world) > before + 1
    assert world.processes[left[1]].disk.chain[-1].generation == 1
    world.mend()  # those who were given up come back, and take over what was decided without them
    world.settle()
    check(world)
    assert all(process.disk.chain[-1].generation == 1 for process in world.processes.values())


def test_a_wrong_sum_is_never_agreed_on():
    world = World(5, members=5, rounds=6)
    world.begin()
    while any(len(process.disk.chain) < 4 for process in world.processes.values()):
        world.run(world.now + 0.1)
    world.wrong = {leader_of(world).name}
    world.settle()
    check(world)
    assert world.lied > 0


# -- mutants: each must be caught by the schedules above --------------------------------------------------------


def forgetful(world: World) -> None:
    """Promises and votes are not on disk."""

    def start(process: Process) -> None:
        process.disk.durable = Durable()
        Process.start(process)

    for process in world.processes.values():
        process.start = start.__get__(process)


def headstrong(world: World) -> None:
    """Who is elected proposes what it likes, whatever was voted for."""

    def handle(state, event, now):
        if isinstance(state.role, consensus.Electing):
            bare = dict.fromkeys(state.role.promises)
            state = replace(state, role=replace(state.role, promises=bare))
            if isinstance(event, consensus.Received) and isinstance(event.message, consensus.Promise):
                event = consensus.Received(_without_vote(event.message))
        return consensus.handle(state, event, now)

    world.handle = handle


def _without_vote(promise: consensus.Promise) -> consensus.Promise:
    return consensus.Promise(
        sender=promise.sender,
        generation=promise.generation,
        height=promise.height,
        tip=promise.tip,
        ballot=promise.ballot,
    )


def hasty(world: World) -> None:
    """A leader takes a record for chosen with a vote less than a majority."""

    def handle(state, event, now):
        role = state.role
        if isinstance(role, Leading) and role.proposal is not None and len(state.order) > 1:
            state = replace(state, role=replace(role, votes=role.votes | {"nobody"}))
        return consensus.handle(state, event, now)

    world.handle = handle


def faithless(world: World) -> None:
    """A member votes in a ballot lower than it has promised."""

    def handle(state, event, now):
        if isinstance(event, consensus.Received) and isinstance(event.message, consensus.Accept):
            state = replace(state, durable=replace_promise(state.durable))
        return consensus.handle(state, event, now)

    world.handle = handle


def replace_promise(durable: Durable) -> Durable:
    return Durable(durable.height, Ballot(), durable.vote)


def double_counting(world: World) -> None:
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
        return jobs.decide(job, command, now=now)

    world.decide = decide


MUTANTS = {forgetful: 0, headstrong: 0, hasty: 10, faithless: 370, double_counting: 0}
"""Each with the first of the schedules that are tried: one near to it catches the mutant."""


@pytest.mark.parametrize(("mutant", "start"), MUTANTS.items(), ids=lambda it: getattr(it, "__name__", ""))
def test_mutants_are_caught(mutant, start):
    for seed in range(start, start + 1000):
        world = World(seed, members=(3, 4, 5)[seed % 3], rounds=12)
        mutant(world)
        world.begin()
        try:
            world.run(world.rng.uniform(0.0, 1.0))
            world.misbehave(10.0)
            world.mend()
            world.settle()
            check(world)
        except AssertionError:
            return
    pytest.fail(f"{mutant.__name__} was not noticed")


# -- committees --------------------------------------------------------------------------------------------------


def test_a_committee_is_drawn_fairly_and_changes_little():
    rosters = [f"10.0.0.{number}:5001" for number in range(8)]
    drawn = dict.fromkeys(rosters, 0)
    for seed in range(20_000):
        drawn[committee(rosters, str(seed))[0]] += 1
    assert max(drawn.values()) / (20_000 / 8) < 1.06
    for gone in rosters:
        before, after = committee(rosters, "x"), committee([name for name in rosters if name != gone], "x")
        assert len(set(before) - set(after)) == (gone in before)


@pytest.mark.parametrize(("members", "size"), [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (8, 5), (64, 5)])
def test_a_committee_is_odd(members, size):
    assert len(committee([str(number) for number in range(members)], "seed")) == size
    assert majority(range(size)) == size // 2 + 1


def test_records_that_differ_have_other_digests():
    record = Record(1, "a", "b", (Seat("b"),))
    assert record.digest != Record(1, "a", "b", (Seat("b", 1),)).digest
    assert record.digest == Record(1, "a", "b", (Seat("b"),)).digest
