"""Three members, and schedules by hand: what would go wrong if a process that starts again had forgotten its ballot."""

from dataclasses import replace

import pytest

from tutti.ring import consensus
from tutti.ring.consensus import Accepted, Append, Ballot, Durable, Leading, Propose, Received, Send, Tick, Verified
from tutti.ring.record import Seat, after, first

SEATS = tuple(Seat(f"10.0.0.{number}:5001") for number in range(3))
FOUNDED = first(SEATS[0])
BASE = after(FOUNDED, SEATS[0].address, SEATS, b"")


class Three:
    """Replicas with their disks. Messages go nowhere unless the schedule delivers them."""

    def __init__(self, restored=consensus.restored):
        self.restored, self.now = restored, 0.0
        self.disks = {seat.address: Durable(BASE.height) for seat in SEATS}
        self.replicas = {
            name: consensus.restored(Seat(name), (FOUNDED, BASE), self.disks[name], 0.0) for name in self.disks
        }
        self.order = self.replicas[SEATS[0].address].order
        self.chosen = {name: [] for name in self.disks}
        leader = self.order[0]
        self.replicas[leader] = replace(self.replicas[leader], role=Leading(Ballot(0, leader), 0.0))

    def tell(self, name, event):
        """The messages that the member wants sent."""
        self.replicas[name], wishes = consensus.handle(self.replicas[name], event, self.now)
        self.disks[name] = self.replicas[name].durable
        self.chosen[name] += [record for wish in wishes if isinstance(wish, Append) for record in wish.records]
        sent = [wish for wish in wishes if isinstance(wish, Send)]
        for wish in wishes:
            if isinstance(wish, consensus.Verify):
                sent += self.tell(name, Verified(wish.vote))
        return sent

    def deliver(self, sent, to, kind):
        """Those of the messages that are of one kind and for one member; what it answers."""
        return [
            answer
            for wish in sent
            if wish.to == to and isinstance(wish.message, kind)
            for answer in self.tell(to, Received(wish.message))
        ]

    def start_again(self, name):
        chain = (FOUNDED, BASE, *self.chosen[name])
        self.replicas[name] = self.restored(Seat(name), chain, self.disks[name], self.now)


def back_to_zero(me, chain, durable, now):
    """The mutant: who led in ballot 0 leads in it again."""
    state = consensus.restored(me, chain, durable, now)
    return replace(state, durable=Durable(durable.height), role=Leading(Ballot(0, me.address), now))


def chosen_by(world):
    """The leader dies with one record half agreed on, begins another, and is then cut off from the other two.

    What each of the leader and one of the others takes for the next record.
    """
    a, b, c = world.order
    asked = world.tell(a, Propose(SEATS, b"before"))
    world.deliver(asked, b, consensus.Accept)  # b has voted; a never hears of it
    world.start_again(a)
    votes = world.deliver(world.tell(a, Propose(SEATS, b"after")), c, consensus.Accept)
    world.deliver(votes, a, Accepted)  # with c's vote a takes it for chosen, and nobody hears of that
    world.now += 10.0
    asked = world.deliver(world.tell(b, Tick()), c, consensus.Prepare)
    asked = world.deliver(asked, b, consensus.Promise)
    world.deliver(world.deliver(asked, c, consensus.Accept), b, Accepted)
    return [world.chosen[name] for name in (a, b)]


def test_a_leader_that_starts_again_does_not_go_on_in_its_old_ballot():
    of_a, of_b = chosen_by(Three())
    assert (of_a, [record.body for record in of_b]) == ([], [b"before"])


def test_the_schedule_catches_a_leader_that_does():
    of_a, of_b = chosen_by(Three(back_to_zero))
    assert [record.body for record in (*of_a, *of_b)] == [b"after", b"before"]  # two histories


def promise_lost(me, chain, durable, now):
    """The mutant: the vote is on disk, and what was promised is not."""
    return consensus.restored(me, chain, Durable(durable.height, vote=durable.vote), now)


def chosen_after_a_promise(world):
    """One promises a candidate not to vote for the leader any more, starts again, and then hears of the leader."""
    a, b, c = world.order
    late = world.tell(a, Propose(SEATS, b"of the leader"))
    world.now += 10.0
    world.deliver(world.deliver(world.tell(c, Tick()), b, consensus.Prepare), c, consensus.Promise)
    world.start_again(b)
    world.deliver(world.deliver(late, b, consensus.Accept), a, Accepted)
    world.deliver(world.deliver(world.tell(c, Propose(SEATS, b"of the other")), b, consensus.Accept), c, Accepted)
    return [record.body for name in (a, c) for record in world.chosen[name]]


def test_a_promise_outlives_the_process():
    assert chosen_after_a_promise(Three()) == [b"of the other"]
    assert chosen_after_a_promise(Three(promise_lost)) == [b"of the leader", b"of the other"]


@pytest.mark.parametrize("right", [True, False])
def test_a_vote_counts_for_the_record_that_it_names(right):
    world = Three()
    a, b, _ = world.order
    world.tell(a, Propose(SEATS, b"wanted"))
    mine = world.replicas[a]
    record = mine.role.proposal.digest if right else "another"
    world.tell(a, Received(Accepted(**consensus.header(world.replicas[b]), ballot=Ballot(0, a), record=record)))
    assert [each.body for each in world.chosen[a]] == ([b"wanted"] if right else [])
