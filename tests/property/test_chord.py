"""Chord under random schedules of joins, failures and interleaved repair: the invariants of the proof after every step.

`plain` rings remember nobody (ROOM = 0), so nothing but the proved operations holds them together; it is there that
the mutants must be caught. The seed of a failing schedule is in its message.
"""

from random import Random

import pytest

from support.rings import R, World, any_small, churn
from tutti.ring import chord, roster
from tutti.ring.chord import Due, Task
from tutti.ring.identifiers import between
from tutti.ring.member import list_length

SCHEDULES, PARTS, STEPS = 10_000, 10, 50


def fault_of(seed: int, *, first: int | None = None, guarded: bool = True) -> str | None:
    """What goes wrong in the schedule of that seed, which begins with `first` members in perfect order."""
    rng = Random(seed)
    world = World(bits=rng.choice((4, 5, 6)))
    world.ideal(rng.sample(range(1 << world.bits), first or R + 1 + seed % 5))
    for step in range(STEPS):
        churn(world, rng, guarded=guarded)
        if len(world.members) > 1 and (faults := world.faults()):
            if first and faults == ["SufficientPrincipals"]:
                continue
            return f"seed {seed} step {step}: {faults}"
    return None if world.settle() is not None else f"seed {seed}: never in order again"


@pytest.fixture
def plain(monkeypatch):
    """Zave's model: a list length that never changes, and no memory beyond the list."""
    monkeypatch.setattr(roster, "ROOM", 0)
    monkeypatch.setattr(chord, "in_full", lambda member: False)
    monkeypatch.setattr(chord, "list_length", lambda members: R)


@pytest.mark.parametrize("part", range(PARTS))
def test_the_invariants_hold_after_every_step(plain, part):
    for seed in range(part, SCHEDULES, PARTS):
        assert fault_of(seed) is None


@pytest.mark.parametrize("part", range(2))
def test_the_invariants_hold_with_rosters_too(part):
    for seed in range(part, 1500, 2):
        assert fault_of(seed) is None


@pytest.mark.parametrize("part", range(2))
def test_a_ring_from_one_member_up_and_down_again_always_finds_its_order(part):
    """Failures are not guarded: whole small rings but one die at once, in the middle of anything."""
    sizes = set()
    for seed in range(part, 2000, 2):
        rng = Random(seed)
        world = World(bits=rng.choice((4, 5, 6)))
        world.join(rng.randrange(1 << world.bits), None)
        for _ in range(STEPS):
            churn(world, rng, guarded=not any_small(world), fingers=True)
            sizes.add(len(world.members))
            for member in world.members.values():
                ahead = [member.after(peer.id) for peer in member.successors]
                assert ahead == sorted(set(ahead)), f"seed {seed}"
                assert 0 not in ahead, f"seed {seed}"
                assert member.me.id not in member.roster.claims, f"seed {seed}: it counts itself twice"
        assert world.settle(40) is not None, f"seed {seed}"
    assert {1, R, R + 1, 2 * R} <= sizes


# -- mutants: what was published in 2001, or looks as if it could be left out ------------------------------


def join_with_one_successor(member, event):
    member, wishes = chord.join_between(member, event)
    if member.joined:
        member = chord.replace(member, successors=member.successors[:1])
    return member, wishes


def notify_of_2001(member, peer):
    present = member.predecessor
    if present is None or between(present.id, peer.id, member.me.id):
        member = chord.replace(member, predecessor=peer)
    return member, ()


def caught(schedules: int, **options) -> int:
    return sum(fault_of(seed, **options) is not None for seed in range(schedules))


def test_a_join_that_sets_one_successor_is_caught(plain, monkeypatch):
    monkeypatch.setattr(chord, "TABLE", {**chord.TABLE, (chord.Answered, Task.JOIN): join_with_one_successor})
    assert caught(100) >= 20


def test_the_notify_of_2001_is_caught(plain, monkeypatch):
    monkeypatch.setattr(chord, "rectify", notify_of_2001)
    assert caught(50) >= 40


def test_rings_below_the_base_are_why_small_rings_are_different(plain):
    """Dropping the rule of r + 1 is rarely caught: so many schedules are why there must be many."""
    assert any(fault_of(seed, first=1 + seed % 3, guarded=False) for seed in range(3000))


# -- what else must hold -----------------------------------------------------------------------------------


def test_the_list_grows_with_the_ring():
    assert [list_length(n) for n in (1, 15, 16, 17, 64, 1024)] == [3, 3, 5, 6, 7, 11]
    world, rng = World(bits=16), Random(1)
    world.join(7, None)
    while len(world.members) < 40:
        if world.join(rng.randrange(1 << 16), rng.choice(list(world.members))):
            world.repair()
    assert world.settle() is not None
    assert min(len(member.successors) for member in world.members.values()) >= list_length(40)


@pytest.mark.parametrize("each", [1, 2, 5, 12])
def test_two_rings_become_one(each):
    """As after a partition: each half is in order, and knows the other half as dead."""
    world, rng = World(bits=8), Random(each)
    ids = rng.sample(range(1 << 8), 2 * each)
    for half in (ids[:each], ids[each:]):
        part = World(bits=8)
        part.lives = world.lives
        part.ideal(half)
        world.members |= part.members
        world.lives = part.lives
    peers = [member.me for member in world.members.values()]
    for id, member in world.members.items():
        mine = ids[:each] if id in ids[:each] else ids[each:]
        known = member.roster
        for peer in peers:
            known = known if peer.id in mine else known.lost(peer)
        world.members[id] = chord.replace(member, roster=known)
    rounds = 0
    while not world.perfect():
        for id in ids:
            contact = rng.choice([peer for peer in peers if peer.id != id])
            world.due(id, Due(Task.HEAL, contact=contact))
        world.repair()
        rounds += 1
        assert rounds < 30


def test_two_rings_too_large_to_remember_become_one(plain):
    test_two_rings_become_one(12)
