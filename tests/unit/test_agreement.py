"""Agreement on one record, step by step: what must not happen whoever fails, as small schedules."""

from dataclasses import dataclass, field, replace

import msgspec
import pytest

from tutti.ring import consensus
from tutti.ring.consensus import (
    Accept,
    Append,
    Ballot,
    Beat,
    Durable,
    Event,
    Follow,
    Lead,
    Leading,
    Nack,
    Prepare,
    Promise,
    Propose,
    Received,
    Rejected,
    Send,
    Tick,
    Verified,
    Verify,
    Vote,
)
from tutti.ring.consensus.messages import HIGHEST
from tutti.ring.record import Record, Seat, after, first, succession

NAMES = ("a:1", "b:1", "c:1")
SEATS = tuple(Seat(name) for name in NAMES)


@dataclass
class Member:
    """A replica whose messages lie here until somebody hands them on."""

    replica: consensus.Replica
    sent: list[Send] = field(default_factory=list)
    asked: list[Verify] = field(default_factory=list)
    appended: list[Record] = field(default_factory=list)
    told: list[consensus.Instruction] = field(default_factory=list)

    def tell(self, event: Event, now: float) -> None:
        self.replica, wishes = consensus.handle(self.replica, event, now)
        for wish in wishes:
            match wish:
                case Send():
                    self.sent.append(wish)
                case Verify():
                    self.asked.append(wish)
                case Append(records):
                    self.appended += records
                case _:
                    self.told.append(wish)

    def hear(self, other: "Member", kind: type, now: float) -> None:
        """The newest message of this kind that the other has for this member."""
        self.tell(Received(other.said(self, kind)), now)

    def said(self, to: "Member", kind: type):
        return [s.message for s in self.sent if s.to == to.replica.me and isinstance(s.message, kind)][-1]

    def find(self, fault: str, now: float) -> None:
        """What it was asked to verify last is right, or has this fault."""
        self.tell(Verified(self.asked[-1].vote, fault), now)

    @property
    def proposal(self) -> Record | None:
        role = self.replica.role
        return role.proposal if isinstance(role, Leading) else None


@pytest.fixture
def three() -> list[Member]:
    """The leader of the record before, and the two others of the committee."""
    begin = first(SEATS[0])
    tip = after(begin, NAMES[0], SEATS, b"")
    order = succession(tip, begin.digest)
    members = [Member(consensus.restored(Seat(name), (begin, tip), Durable(tip.height), 0.0)) for name in order]
    leader = members[0]
    ballot = Ballot(0, order[0])
    leader.replica = replace(leader.replica, role=Leading(ballot, 0.0), durable=Durable(tip.height, ballot))
    return members


def elected(candidate: Member, voter: Member, now: float) -> None:
    candidate.tell(Tick(), now)
    voter.hear(candidate, Prepare, now)
    candidate.hear(voter, consensus.Promise, now)


def test_a_chosen_record_stays_though_one_member_finds_it_wrong(three):
    """It may be the member that is wrong: it must not lead then, and whoever leads proposes that record again."""
    leader, other, odd = three
    leader.tell(Propose(SEATS, b"A"), 0.1)
    odd.hear(leader, Accept, 0.2)
    odd.find("it makes another model", 0.2)
    other.hear(leader, Accept, 0.2)
    other.find("", 0.3)
    leader.hear(other, consensus.Accepted, 0.4)
    (chosen,) = leader.appended  # and it dies before anybody hears of it
    elected(odd, other, 5.0)
    assert odd.proposal is None
    assert Lead() not in odd.told
    elected(other, odd, 10.0)
    assert other.proposal == chosen
    odd.hear(other, Accept, 10.1)
    odd.find("it makes another model", 10.2)
    assert other.appended == []  # with the leader dead there is no majority for it: the ring waits
    disk = leader.replica
    leader.replica = consensus.restored(Seat(disk.me), disk.chain, disk.durable, 11.0)
    other.tell(Received(consensus.Commit(**consensus.header(leader.replica), record=chosen)), 11.0)
    assert other.appended == [chosen]


def test_a_wrong_record_is_voted_for_by_nobody_else(three):
    """Its leader has voted for it, so whoever is elected with that promise looks at it before voting."""
    wrong, first_other, second = three
    wrong.tell(Propose(SEATS, b"wrong"), 0.1)
    wrong.tell(Tick(), 4.9)  # nobody has answered
    elected(first_other, wrong, 5.0)
    assert first_other.proposal.body == b"wrong"
    assert first_other.replica.durable.vote is None
    wrong.hear(first_other, Accept, 5.1)
    first_other.hear(wrong, consensus.Accepted, 5.2)
    first_other.find("it makes another model", 5.3)
    second.hear(first_other, Accept, 5.4)
    second.find("it makes another model", 5.4)
    first_other.hear(second, Rejected, 5.5)
    assert first_other.appended == []
    assert first_other.proposal is None
    first_other.tell(Tick(), 10.0)
    wrong.hear(first_other, Prepare, 10.0)
    first_other.hear(wrong, consensus.Promise, 10.1)  # its promise is not counted
    assert Lead() not in first_other.told
    second.hear(first_other, Prepare, 10.1)
    first_other.hear(second, consensus.Promise, 10.2)  # but these two are a majority without it
    assert first_other.told[-1] == Lead()


def test_a_record_that_names_its_next_leader_is_looked_at_like_any_other(three):
    """Whoever is wrong may put another's name on its record, and die: the other has not computed it."""
    wrong, named, _ = three
    wrong.tell(Propose(SEATS, b"wrong"), 0.1)
    forged = msgspec.structs.replace(wrong.replica.role.proposal, leader=named.replica.me)
    vote = Vote(Ballot(0, wrong.replica.me), forged)
    wrong.replica = replace(wrong.replica, durable=msgspec.structs.replace(wrong.replica.durable, vote=vote))
    wrong.tell(Tick(), 4.9)  # nobody has answered
    elected(named, wrong, 5.0)
    assert named.proposal == forged
    assert named.replica.durable.vote is None
    assert named.asked[-1].vote.record == forged
    named.find("it makes another model", 5.1)
    assert named.replica.durable.vote is None
    assert named.appended == []


def test_who_may_not_propose_what_was_voted_for_lets_others_stand(three):
    leader, other, odd = three
    leader.tell(Propose(SEATS, b"A"), 0.1)
    for member, fault in ((odd, "it makes another model"), (other, "")):
        member.hear(leader, Accept, 0.2)
        member.find(fault, 0.2)
    odd.hear(leader, Accept, 0.4)  # again, which is not computed again
    assert [s.message.reason for s in odd.sent] == ["it makes another model", "as was said before"]
    assert len(odd.asked) == 1
    elected(odd, other, 5.0)
    asked = len(odd.sent)
    for tick in range(30):
        odd.tell(Tick(), 5.0 + tick / 10)
    assert len(odd.sent) == asked
    odd.tell(Tick(), 20.0)
    assert len(odd.sent) > asked


def test_to_be_outvoted_is_no_opinion_on_the_record(three):
    leader, other, odd = three
    leader.tell(Propose(SEATS, b"A"), 0.1)
    nack = consensus.Nack(**consensus.header(other.replica), promised=Ballot(1, other.replica.me))
    leader.tell(Received(nack), 0.2)
    odd.hear(leader, Accept, 0.3)
    odd.find("it makes another model", 0.3)
    leader.hear(odd, Rejected, 0.4)
    assert isinstance(leader.told[-1], Follow)
    assert leader.replica.wrong == frozenset()


# -- a leader of whom somebody has promised more ----------------------------------------------------------------


def refused(leader: Member, other: Member, now: float) -> None:
    """The other stands still for a while, promises itself a ballot, and refuses what the leader says."""
    leader.tell(Tick(), now)
    other.tell(Tick(), now)
    other.hear(leader, Beat, now)
    leader.hear(other, Nack, now)


def agreed(leader: Member, voter: Member, now: float) -> None:
    """The voter hears the leader's proposal, finds it right, and its vote makes the record."""
    voter.hear(leader, Accept, now)
    voter.find("", now)
    leader.hear(voter, consensus.Accepted, now + 0.1)
    assert [record.body for record in leader.appended] == [b"A"]


def test_a_leader_asks_for_a_ballot_above_that_of_a_member_that_stood_still(three):
    leader, second, third = three
    refused(leader, second, 2.0)
    leader.tell(Tick(), 2.3)
    second.hear(leader, Beat, 2.3)
    leader.hear(second, Nack, 2.3)  # of a beat that was on its way: that ballot has been outbid
    second.hear(leader, Prepare, 2.4)
    assert leader.replica.durable.promised == Ballot(0, leader.replica.me)  # nothing before a majority has
    leader.hear(second, Promise, 2.4)
    ballot = Ballot(2, leader.replica.me)
    assert isinstance(leader.replica.role, Leading)
    assert (leader.replica.role.ballot, leader.replica.durable.promised) == (ballot, ballot)
    third.hear(leader, Beat, 2.5)
    assert {member.replica.leader for member in three} == {leader.replica.me}
    assert leader.told == []  # to the shell nothing has happened
    leader.tell(Propose(SEATS, b"A"), 2.6)
    agreed(leader, second, 2.7)


def test_what_was_proposed_meanwhile_is_proposed_again_in_the_higher_ballot(three):
    leader, second, third = three
    refused(leader, second, 2.0)
    third.hear(leader, Prepare, 2.1)
    leader.tell(Propose(SEATS, b"A"), 2.1)
    third.hear(leader, Accept, 2.2)
    leader.hear(third, Nack, 2.2)  # it has promised this leader more: that does not count against it
    leader.hear(third, Promise, 2.3)
    assert leader.said(third, Accept).ballot == leader.replica.role.ballot == Ballot(2, leader.replica.me)
    agreed(leader, third, 2.4)


def test_while_votes_are_collected_nobody_makes_a_leader_collect_them_anew(three):
    leader, second, third = three
    leader.tell(Propose(SEATS, b"A"), 1.9)
    refused(leader, second, 2.0)
    assert not [wish for wish in leader.sent if isinstance(wish.message, Prepare)]
    agreed(leader, third, 2.1)


def test_a_leader_gives_up_when_its_promises_tell_of_votes_for_another(three):
    """Another may have had its record chosen meanwhile."""
    leader, second, third = three
    elected(second, third, 5.0)
    second.tell(Propose(SEATS, b"of the other"), 5.1)
    third.hear(second, Accept, 5.1)
    third.find("", 5.1)
    leader.tell(Tick(), 2.0)  # it stood still itself, and knows nothing of that
    third.hear(leader, Beat, 5.2)
    leader.hear(third, Nack, 5.2)
    third.hear(leader, Prepare, 7.0)
    leader.hear(third, Promise, 7.0)
    assert leader.replica.leader == ""
    assert leader.told == [Follow("another has led meanwhile")]


def test_no_ballot_is_above_the_highest(three):
    """It can be nobody's but a broken member's; a record ends it."""
    _, second, third = three
    header = consensus.header(third.replica)
    second.tell(Received(Beat(**header, ballot=Ballot(HIGHEST, third.replica.me))), 0.1)
    second.tell(Tick(), 9.0)
    assert second.replica.durable.promised.number == HIGHEST
    assert not [wish for wish in second.sent if isinstance(wish.message, Prepare)]
    above = msgspec.msgpack.encode(Beat(**header, ballot=Ballot(HIGHEST + 1, third.replica.me)))
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(above, type=consensus.AnyMessage)


def test_acks_are_noted_of_members_only(three):
    leader, second, _ = three
    header = consensus.header(second.replica)
    for sender in (second.replica.me, "evil:9"):
        leader.tell(Received(consensus.Ack(**{**header, "sender": sender})), 0.1)
    assert dict(leader.replica.role.acks) == {second.replica.me: 0.1}
