"""Chord by hand-computed numbers, and its look-ups."""

from bisect import bisect_left
from dataclasses import replace
from math import log2
from random import Random
from types import MappingProxyType

import pytest

from support.rings import World
from tutti.ring import chord
from tutti.ring.chord import TABLE, Answered, Ask, Asked, Due, Found, Task, Tell, Told, Unanswered, handle
from tutti.ring.identifiers import BITS, Peer, between, identifier, within
from tutti.ring.member import Member, View, in_full, nearer, owns, size, towards
from tutti.ring.roster import EMPTY, ROOM, Claim


def peer(id: int, incarnation: int = 0) -> Peer:
    return Peer(id, f"n{id}", incarnation)


def member(id: int, *after: int, before: int | None = None, **more: object) -> Member:
    predecessor = None if before is None else peer(before)
    return Member(peer(id), True, predecessor, tuple(map(peer, after)), bits=6, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("a", "x", "b", "strictly", "half_open"),
    [
        (1, 2, 3, True, True),
        (1, 3, 3, False, True),
        (1, 1, 3, False, False),
        (1, 4, 3, False, False),
        (60, 2, 3, True, True),
        (60, 61, 3, True, True),
        (60, 30, 3, False, False),
        (5, 5, 5, False, True),
        (5, 6, 5, True, True),
    ],
)
def test_arcs_of_the_circle(a, x, b, strictly, half_open):
    assert between(a, x, b) is strictly
    assert within(a, x, b) is half_open


def test_identifiers_are_the_first_bits_of_sha256():
    assert identifier("") == 0xE3B0C44298FC1C149AFBF4C8996FB92427AE41E4
    assert identifier("", bits=8) == 0xE3
    assert identifier("127.0.0.1:5001") != identifier("127.0.0.2:5001")


# -- rosters -----------------------------------------------------------------------------------------------


def test_nobody_returns_from_the_dead_in_the_same_incarnation():
    roster = EMPTY.heard(peer(1)).lost(peer(1)).heard(peer(1))
    assert roster.alive == ()
    assert roster.refuses(peer(1))
    assert not roster.refuses(peer(1, 1))
    assert roster.heard(peer(1, 1)).alive == (peer(1, 1),)
    assert roster.heard(peer(1, 2)).refuses(peer(1, 1))


def test_rosters_merge_in_any_order():
    claims = [Claim(peer(id, inc), alive) for id in (1, 2) for inc in (0, 1) for alive in (True, False)]
    for seed in range(50):
        Random(seed).shuffle(claims)
        assert dict(EMPTY.merged(claims).claims) == {id: Claim(peer(id, 1), False) for id in (1, 2)}
    roster = EMPTY.merged(claims)
    assert roster.merged(claims) is roster


def test_a_full_roster_keeps_whom_it_knew():
    roster = EMPTY.heard(*map(peer, range(ROOM)))
    assert len(roster.alive) == ROOM
    assert roster.heard(peer(999)).alive == roster.alive
    for id in range(200, 200 + 2 * ROOM):
        roster = roster.lost(peer(id))
    assert len(roster.claims) == 2 * ROOM
    assert roster.refuses(peer(199 + 2 * ROOM))


# -- single steps ------------------------------------------------------------------------------------------


def test_every_kind_of_answer_has_an_operation():
    for task in Task:
        assert (Answered, task) in TABLE
        assert (Unanswered, task) in TABLE


def test_join_copies_the_whole_list():
    joiner = Member(peer(12), bits=6)
    joiner, asks = handle(joiner, Due(Task.JOIN, contact=peer(40)))
    assert asks == (Ask(peer(40), Task.JOIN, 12),)
    roster = EMPTY.heard(*map(peer, (5, 20, 30, 40, 50, 60)))
    far = View(peer(40), peer(30), (peer(50), peer(60), peer(5)), nearer=(peer(10), peer(5)), roster=roster)
    joiner, asks = handle(joiner, Answered(asks[0], far))
    assert [(ask.peer.id, ask.hops) for ask in asks if isinstance(ask, Ask)] == [(10, 1)]
    joiner, wishes = handle(joiner, Answered(asks[0], View(peer(10), peer(5), (peer(20), peer(30), peer(40)))))
    assert joiner.joined
    assert joiner.predecessor == peer(10)
    assert joiner.successors == (peer(20), peer(30), peer(40))
    assert Tell(peer(20)) in wishes


def test_one_cannot_join_where_ones_old_self_still_stands():
    ask = Ask(peer(10), Task.JOIN, 12)
    joiner, wishes = handle(Member(peer(12, 1), bits=6), Answered(ask, View(peer(10), None, (peer(12), peer(20)))))
    assert not joiner.joined
    assert wishes == ()


def test_stabilise_asks_a_closer_candidate_before_it_adopts_it():
    at = member(10, 20, 30, 40, before=5, roster=EMPTY.heard(*map(peer, (5, 20, 30, 40))))
    at, asks = handle(at, Due(Task.STABILISE))
    assert asks == (Ask(peer(20), Task.STABILISE, 10),)
    at, asks = handle(at, Answered(asks[0], View(peer(20), peer(15), (peer(30), peer(40), peer(50)))))
    assert at.head == peer(20)
    assert asks == (Ask(peer(15), Task.CANDIDATE, 10),)
    adopted, wishes = handle(at, Answered(asks[0], View(peer(15), peer(10), (peer(20), peer(30), peer(40)))))
    assert adopted.successors == (peer(15), peer(20), peer(30))
    assert wishes == (Tell(peer(15)),)
    left, wishes = handle(at, Unanswered(asks[0]))
    assert left.successors == (peer(20), peer(30), peer(40))
    assert wishes == (Tell(peer(20)),)


def test_a_dead_successor_is_dropped_and_the_list_filled_up():
    at = member(10, 20, 30, 63, before=5, roster=EMPTY.heard(*map(peer, (5, 20, 30, 63))))
    at, wishes = handle(at, Unanswered(Ask(peer(20), Task.STABILISE)))
    assert at.successors == (peer(30), peer(63), Peer(0, ""))
    assert wishes == (Tell(peer(30)),)
    again, wishes = handle(at, Unanswered(Ask(peer(20), Task.STABILISE)))
    assert again == at
    assert wishes == ()


def test_rectify_replaces_a_dead_predecessor():
    at = member(30, 40, 50, 60, before=20, roster=EMPTY.heard(*map(peer, (10, 20, 40, 50, 60))))
    closer, wishes = handle(at, Told(peer(25)))
    assert closer.predecessor == peer(25)
    assert wishes == ()
    at, wishes = handle(at, Told(peer(10)))
    assert wishes == (Ask(peer(20), Task.RECTIFY, 30, about=peer(10)),)
    assert at.predecessor == peer(20)
    alive, _ = handle(at, Answered(wishes[0], View(peer(20), None, (peer(30),))))
    assert alive.predecessor == peer(20)
    dead, _ = handle(at, Unanswered(wishes[0]))
    assert dead.predecessor == peer(10)


def test_old_incarnations_are_refused():
    at = member(30, 40, 50, 60, before=10, roster=EMPTY.heard(peer(20, 2), *map(peer, (10, 40, 50, 60))))
    assert handle(at, Told(peer(20, 1))) == (at, ())
    assert handle(at, Asked(peer(20, 1))) == (at, ())
    after, _ = handle(at, Told(peer(20, 3)))
    assert after.predecessor == peer(20, 3)


def test_who_hears_that_it_is_dead_takes_a_new_incarnation_and_says_so():
    at = member(10, 20, 30, 40, before=5, roster=EMPTY.heard(*map(peer, (5, 20, 30, 40))))
    gossip = View(peer(20), peer(5), (peer(30), peer(40)), roster=EMPTY.lost(peer(10, 4)).heard(peer(5)))
    after, wishes = handle(at, Answered(Ask(peer(20), Task.STABILISE, 10), gossip))
    assert after.me == peer(10, 5)
    assert {wish.peer for wish in wishes if isinstance(wish, Tell)} == set(map(peer, (5, 20, 30, 40)))


def test_a_small_ring_knows_everybody_and_grows_out_of_it():
    at = chord.found(peer(10), 6)
    for id in (30, 20):
        assert in_full(at)
        at, _ = handle(at, Told(peer(id)))
    assert at.successors == (peer(20), peer(30))
    assert at.predecessor == peer(30)
    assert handle(at, Due(Task.STABILISE))[1] == (Ask(peer(20), Task.MEET, 10), Ask(peer(30), Task.MEET, 10))
    at, _ = handle(at, Told(peer(5)))
    assert not in_full(at)
    assert at.successors == (peer(20), peer(30), peer(5))
    at, _ = handle(at, Unanswered(Ask(peer(20), Task.STABILISE, 10)))
    assert in_full(at)
    assert at.successors == (peer(30), peer(5))


def test_healing_makes_neighbours_of_members_of_two_rings():
    at = member(10, 40, 50, 60, before=5, roster=EMPTY.heard(*map(peer, (5, 40, 50, 60))))
    ask = handle(at, Due(Task.HEAL, contact=peer(8)))[1][0]
    same = View(peer(8), peer(5), (peer(10), peer(40)))
    assert handle(at, Answered(ask, same))[1] == ()
    other = View(peer(8), peer(2), (peer(20), peer(55)))
    assert handle(at, Answered(ask, other))[1] == (Tell(peer(20)), Ask(peer(20), Task.CANDIDATE, 10))
    farther = View(peer(8), peer(2), (peer(45), peer(55)))
    assert handle(at, Answered(ask, farther))[1] == (Tell(peer(45)),)


# -- look-ups ----------------------------------------------------------------------------------------------


def stable(count: int, seed: int, *, rosters: bool = False) -> World:
    """A ring in perfect order, with all fingers; only they and the lists lead through it, unless there are rosters."""
    rng = Random(seed)
    world = World(bits=BITS)
    ids = sorted(rng.getrandbits(BITS) for _ in range(count))
    world.ideal(ids, length=chord.list_length(count))
    for id, at in world.members.items():
        owners = {i: ids[bisect_left(ids, (id + (1 << i)) % (1 << BITS)) % count] for i in range(BITS)}
        fingers = MappingProxyType({i: world.members[owner].me for i, owner in owners.items()})
        world.members[id] = replace(at, fingers=fingers, roster=at.roster if rosters else EMPTY)
    return world


def look_up(world: World, start: int, key: int) -> Found:
    """Without telling anybody of the asker, so that rosters stay empty."""
    at, work = handle(world.members[start], Due(Task.LOOKUP, key=key))
    while isinstance(work[0], Ask):
        ask = work[0]
        there = world.members.get(ask.peer.id)
        at, work = handle(at, Unanswered(ask) if there is None else Answered(ask, towards(there, key)))
    assert isinstance(work[0], Found)
    return work[0]


@pytest.mark.parametrize(("count", "mean"), [(64, 3.6), (1024, 5.7)])
def test_look_ups_take_few_questions(count, mean):
    world, rng = stable(count, seed=7), Random(8)
    ids = sorted(world.members)
    hops = []
    for _ in range(2000):
        key = rng.getrandbits(BITS)
        result = look_up(world, rng.choice(ids), key)
        assert result.holders[0].id == ids[bisect_left(ids, key) % count]
        hops.append(result.hops)
    assert sorted(hops)[1980] <= log2(count) + 2
    assert sum(hops) / len(hops) < mean


def test_look_ups_find_their_way_past_the_dead():
    world, rng = stable(128, seed=3), Random(4)
    for id in rng.sample(sorted(world.members), 25):
        world.fail(id)
    ids = sorted(world.members)
    for _ in range(300):
        key = rng.getrandbits(BITS)
        holders = look_up(world, rng.choice(ids), key).holders
        assert next(p.id for p in holders if p.id in world.members) == ids[bisect_left(ids, key) % len(ids)]


def test_fingers_are_fixed_by_look_ups():
    world = stable(32, seed=5, rosters=True)
    start = min(world.members)
    wanted = world.members[start].fingers
    world.members[start] = replace(world.members[start], fingers=MappingProxyType({}))
    for i in range(BITS):
        world.due(start, Due(Task.FINGER, key=(start + (1 << i)) % (1 << BITS)))
        while world.asks[start]:
            world.ask(start, world.asks[start].popleft())
    assert dict(world.members[start].fingers) == dict(wanted)


def test_whoever_knows_everybody_asks_one():
    world = World(bits=16)
    world.ideal(range(0, 1 << 16, 1 << 11), length=5)
    for key in range(0, 1 << 16, 997):
        assert look_up(world, 0, key).hops <= 1


def test_a_look_up_with_nobody_left_says_so():
    at = member(10, 20, 30, 40, before=5)
    at, wishes = handle(at, Due(Task.LOOKUP, key=35))
    hops = 0
    while isinstance(wishes[0], Ask):
        at, wishes = handle(at, Unanswered(wishes[0]))
        hops += 1
    assert wishes == (Found(35, (), hops),)


def test_the_size_is_counted_or_estimated():
    assert size(member(10, 20, roster=EMPTY.heard(peer(20)))) == 2
    large = stable(1024, seed=9)
    for id, at in large.members.items():
        known = EMPTY.heard(*(other.me for other in list(large.members.values())[:ROOM] if other.me.id != id))
        large.members[id] = replace(at, roster=known.heard(*(Peer(i, f"x{i}") for i in range(2))))
    estimates = sorted(size(at) for at in large.members.values())
    assert 700 < estimates[512] < 1500


def test_a_key_belongs_to_who_comes_next():
    at = member(10, 20, before=60)
    assert [key for key in (60, 61, 0, 10, 11) if owns(at, key)] == [61, 0, 10]
    assert owns(member(10), 33)
    assert nearer(member(10, 20, 30), 31) == (peer(30), peer(20))
