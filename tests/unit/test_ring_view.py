"""What can be seen of a ring as a whole, and what the page is given."""

import pytest
from msgspec.structs import replace

from tutti.adapters.thrift.node import peer_at
from tutti.apps.ringview import shown
from tutti.ring.identifiers import identifier
from tutti.services.views.ring import RingView, ring_lights

EIGHT = sorted(peer_at(f"10.0.0.{number}:5001") for number in range(8))


def views_of(peers=EIGHT, roster=EIGHT):
    """A ring of these members, in order, with lists of three."""
    views = []
    for at, peer in enumerate(peers):
        after = tuple(other.address for other in (peers[at + 1 :] + peers[:at])[:3])
        before = peers[at - 1]
        views.append(
            RingView(
                id=f"{peer.id:040x}",
                address=peer.address,
                incarnation=1,
                joined=True,
                predecessor=before.address,
                successors=after,
                owns_after=f"{before.id:040x}",
                replicas=after[:2],
                fingers=(),
                known=tuple(other.address for other in peers if other != peer),
                height=3,
                generation=0,
                digest="d" * 64,
                leader=peers[0].address,
                committee=tuple(other.address for other in peers[:5]),
                roster=tuple(other.address for other in roster),
                parts_owned=0,
                parts_copied=0,
                parts_uncopied=0,
                sent_bytes=0,
                resent_bytes=0,
                holders={},
                jobs=(),
                lights=(),
            )
        )
    return views


def wrong(views):
    return [light.name for light in ring_lights(views) if not light.ok]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
def test_a_ring_in_order_is_well(count):
    assert wrong(views_of(EIGHT[:count], EIGHT[:count])) == []


def test_who_gives_no_answer_is_said_and_has_its_place_on_the_page():
    views = [replace(view, leader=EIGHT[1].address) for view in views_of(EIGHT[1:])]
    assert wrong(views) == ["everybody answers"]
    assert wrong([replace(view, leader=EIGHT[0].address) for view in views]) == ["everybody answers", "one leader"]
    (absent,) = shown(views, "").absent
    assert (absent.address, int(absent.id, 16)) == (EIGHT[0].address, identifier(EIGHT[0].address))


def test_a_leader_that_gives_no_answer_is_seen():
    views = [replace(view, leader=EIGHT[0].address) for view in views_of(EIGHT[1:])]
    assert wrong(views) == ["everybody answers", "one leader"]


def test_two_rings_are_not_one():
    assert wrong(views_of(EIGHT[:4], EIGHT) + views_of(EIGHT[4:], EIGHT))[:1] == ["one ring"]


def test_lists_that_skip_members_are_seen():
    """The members' own successors are right, so each of them is content; but nearly everybody is skipped."""
    views = views_of()
    far = [replace(view, successors=(view.successors[0], views[at - 1].address)) for at, view in enumerate(views)]
    assert wrong(far) == ["sufficient principals"]


def test_chains_and_leaders_that_differ_are_seen():
    first, *others = views_of()
    assert wrong([replace(first, digest="e" * 64, leader=""), *others]) == ["one chain", "one leader"]


def test_nobody_is_no_ring():
    assert ring_lights([]) == ()
    assert shown([], "note").note == "note"
