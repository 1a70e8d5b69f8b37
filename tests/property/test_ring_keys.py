"""Where keys are: a join moves its share and no more, and as long as one holder lives nothing is lost."""

from random import Random

import pytest

from support.rings import World
from support.shelves import Shelves
from tutti.ring.identifiers import Peer
from tutti.ring.keys import Offer, Shelf, handed_over, safe, without
from tutti.ring.member import Member, list_length, owns

BITS = 24
COUNT = 150


def filled(ids: list[int], keys: list[int]) -> Shelves:
    world = World(bits=BITS)
    world.ideal(ids, list_length(len(ids)))
    shelves = Shelves(world)
    for id, member in world.members.items():
        shelves.at[id] = Shelf(frozenset(key for key in keys if owns(member, key)))
    for _ in range(3):
        shelves.repair()
    return shelves


def drawn(seed: int, members: int) -> tuple[list[int], list[int]]:
    rng = Random(seed)
    return rng.sample(range(1 << BITS), members), rng.sample(range(1 << BITS), COUNT)


def test_every_key_is_held_by_its_owner_and_the_next_members():
    ids, keys = drawn(1, 8)
    shelves = filled(ids, keys)
    for key in keys:
        ring = sorted(ids, key=lambda id: (id - key) % (1 << BITS))
        assert shelves.holders(key) == set(ring[:3])


def test_a_join_moves_about_a_share_of_the_keys():
    """K/N keys change their owner, on average over the places where one may join; nobody else's owner changes."""
    shares = []
    for seed in range(12):
        ids, keys = drawn(seed, 9)
        shelves = filled(ids[1:], keys)
        before = {key: owner(shelves.world, key) for key in keys}
        assert shelves.world.join(ids[0], ids[1])
        for _ in range(6):
            shelves.repair()
        assert shelves.world.perfect()
        after = {key: owner(shelves.world, key) for key in keys}
        moved = [key for key in keys if before[key] != after[key]]
        assert {after[key] for key in moved} <= {ids[0]}
        assert set(moved) <= shelves.shelf(ids[0]).keys
        shares.append(len(moved))
        for key in keys:
            assert len(shelves.holders(key)) == 3
    assert 0.6 < sum(shares) / len(shares) / (COUNT / 9) < 1.6


def test_the_bytes_of_a_join_are_its_own_share_and_the_copies_it_keeps():
    ids, keys = drawn(3, 9)
    shelves = filled(ids[1:], keys)
    shelves.moved = 0
    shelves.world.join(ids[0], ids[1])
    for _ in range(6):
        shelves.repair()
    assert shelves.moved == len(shelves.shelf(ids[0]).keys)  # nobody else is sent a thing


def owner(world: World, key: int) -> int:
    return next(id for id, member in world.members.items() if owns(member, key))


@pytest.mark.parametrize("seed", range(10))
def test_nothing_is_lost_while_one_holder_of_each_key_lives(seed):
    """Members die two at a time, and join, in the midst of moving; r = 3 copies outlive that between two repairs."""
    rng = Random(seed)
    ids, keys = drawn(seed, 9)
    shelves = filled(ids, keys)
    world = shelves.world
    for _ in range(8):
        if len(world.members) > 6:
            doomed = rng.sample(list(world.members), 2)
            for id in doomed:
                world.fail(id)
                del shelves.at[id]
        while len(world.members) < 9 and rng.random() < 0.8:
            new = rng.randrange(1 << BITS)
            if new not in world.members:
                world.join(new, rng.choice(list(world.members)))
        shelves.repair()
        assert all(shelves.holders(key) for key in keys)
        for _ in range(8):
            shelves.repair()
        assert all(len(shelves.holders(key)) == 3 for key in keys)


def test_a_key_is_forgotten_only_when_the_owner_and_its_copies_hold_it():
    a, b, c, d = (Peer(id, f"n{id}") for id in (10, 20, 30, 40))
    member = Member(b, joined=True, predecessor=a, successors=(c, d, a), bits=6)
    shelf = Shelf(frozenset({15, 20, 21}))
    assert safe(member, shelf, {15}) == frozenset()
    shelf = shelf.confirming(c, {15, 20})
    assert safe(member, shelf, {15}) == frozenset()
    shelf = shelf.confirming(d, {15})
    assert safe(member, shelf, {15, 20, 21, 11}) == {15}
    assert safe(member, shelf.audited(), {15}) == frozenset()
    reborn = Peer(30, "n30", incarnation=1)
    assert safe(Member(b, True, a, (reborn, d, a), bits=6), shelf, {15}) == frozenset()
    other = Member(a, joined=True, predecessor=d, successors=(b, c, d), bits=6)
    assert without(other, shelf, {15}, (b, c, d)).keys == {20, 21}
    assert without(other, shelf, {15}, (b, c, a)).keys == {15, 20, 21}


def test_a_new_predecessor_is_offered_its_arc():
    a, b, c = (Peer(id, f"n{id}") for id in (10, 20, 30))
    before = Member(c, joined=True, predecessor=a, successors=(a,), bits=6)
    after = Member(c, joined=True, predecessor=b, successors=(a,), bits=6)
    shelf = Shelf(frozenset({5, 11, 20, 21, 30}))
    assert handed_over(before, after, shelf) == Offer(b, frozenset({11, 20}))
    assert handed_over(after, after, shelf) is None
    assert handed_over(after, before, shelf) is None  # the predecessor died: its keys come here, not away
