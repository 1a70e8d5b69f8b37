"""Agreement on the next record of the chain, among the committee that follows from the newest one.

For every height one record is chosen by single-decree Paxos (Lamport, "Paxos made simple", 2001). Each vote is for a
record in a ballot; a record that a majority of the committee has voted for in one ballot is chosen, and every later
ballot can propose nothing else. Votes and promises are on disk before anybody hears of them. Members vote for a record
only after their shell has verified it: for a round of training, by computing the model again. Who has voted for it in
an earlier ballot does so again without: after all were killed at once, the updates may be gone.

**Who leads.** Ballot 0 of each height belongs to the first of `succession`, so an undisturbed round costs one
exchange. The leader is heard every BEAT seconds. The member of rank i begins an election after i leases of silence.
Nobody takes part in one who has heard the leader within the last lease: so that a leader is replaced, a majority must
miss it. A leader that a majority does not answer stops leading: a minority does nothing. One that hears that somebody
has promised more, such as a member that stood still and missed it, asks for a ballot above that, and leads on
meanwhile. One that cannot get votes for the record of another asks everybody for a higher ballot: if it turns out that
too few had voted for this record for it to be chosen, the leader is free to propose another.

**Membership** is part of the records, and changes with them. The committee for height h + 1 is that of record h, which
everybody who votes has: no view out of date can choose a second record. If a majority of it is lost, nothing happens
until somebody calls for REFORM, which starts a new generation with whoever is left; chains of older generations give
way to it. A member that has lost its memory comes in a later incarnation than the one its seat names: it does not vote
until a record seats it anew.

**Catching up.** Whoever hears of a greater height asks for the records it lacks. chain.py says from whom a member takes
records, and which of two chains stays.

`handle` is told an event and returns the next state and what the shell is to do: first write `durable` and the records
of Append to disk, all or nothing; then the other instructions, in order. Time is an argument.

| message | from | means |
| --- | --- | --- |
| Beat | leader | I lead after this record; Ack is the answer |
| Prepare | candidate | may I lead? Promise or Nack is the answer |
| Accept | leader | vote for this record: Accepted, Nack or Rejected is the answer |
| Commit | leader | this record is chosen |
| Fetch | anybody | send me the records after the newest that you know of these; Records is the answer |
"""

from collections.abc import Sequence

from tutti.ring.consensus import chain, leader, voter
from tutti.ring.consensus.chain import stays
from tutti.ring.consensus.messages import (
    Accept,
    Accepted,
    Ack,
    AnyMessage,
    Ballot,
    Beat,
    Commit,
    Fetch,
    Nack,
    Prepare,
    Promise,
    Records,
    Rejected,
    Vote,
)
from tutti.ring.consensus.replica import (
    LEASE,
    NOTHING,
    Append,
    Durable,
    Electing,
    Event,
    Follow,
    Following,
    Found,
    Instruction,
    Lead,
    Leading,
    Propose,
    Received,
    Reform,
    Replica,
    Seek,
    Send,
    Step,
    Tick,
    Verified,
    Verify,
    header,
)
from tutti.ring.record import Record, Seat, first

__all__ = [
    "NOTHING",
    "Accept",
    "Accepted",
    "Ack",
    "AnyMessage",
    "Append",
    "Ballot",
    "Beat",
    "Commit",
    "Durable",
    "Electing",
    "Event",
    "Fetch",
    "Follow",
    "Following",
    "Found",
    "Instruction",
    "Lead",
    "Leading",
    "Nack",
    "Prepare",
    "Promise",
    "Propose",
    "Received",
    "Records",
    "Reform",
    "Rejected",
    "Replica",
    "Seek",
    "Send",
    "Step",
    "Tick",
    "Verified",
    "Verify",
    "Vote",
    "handle",
    "header",
    "restored",
    "stays",
]


def restored(me: Seat, records: Sequence[Record], durable: Durable, now: float) -> Replica:
    """The replica of a process that starts again. It leads by election only: it may have used ballot 0 before."""
    if not records and durable == NOTHING:
        durable = Durable(since=me.incarnation)
    elif not records or durable.height != records[-1].height:
        durable = Durable(records[-1].height if records else -1, since=durable.since)
    return Replica(me.address, tuple(records), durable, Following("", now))


def handle(state: Replica, event: Event, now: float) -> Step:
    """The replica after the event, and what it wants done. Total: what comes too late changes nothing."""
    match event:
        case Found(seat):
            return (state, ()) if state.tip else chain.adopted(state, (first(seat),), now)
        case Tick():
            return _tick(state, now)
        case Received(message):
            return _received(state, message, now)
        case Propose(roster, body):
            return leader.propose(state, roster, body, now)
        case Verified(vote, fault):
            return _verified(state, vote, fault, now)
        case Reform(survivors):
            return leader.reform(state, survivors, now)
        case Seek(peer):
            return chain.seek(state, peer)


def _tick(state: Replica, now: float) -> Step:
    if not state.votes:
        return state, ()
    match state.role:
        case Leading():
            return leader.lead_on(state, state.role, now)
        case Electing(_, since) if now - since > LEASE:
            return leader.stand_again(state, state.role, now)
        case Following(_, since) if now - since > LEASE * max(state.order.index(state.me), 1):
            return leader.elect(state, now)
    return state, ()


def _verified(state: Replica, vote: Vote, fault: str, now: float) -> Step:
    if state.verifying is None or state.verifying.record != vote.record:
        return state, ()
    vote = state.verifying  # the ballot may be a later one by now
    state, answer = voter.verified(state, vote, fault)
    if vote.ballot.owner == state.me:
        return _received(state, answer, now)
    return state, (Send(vote.ballot.owner, answer),)


def _received(state: Replica, message: AnyMessage, now: float) -> Step:
    match message:
        case Commit():
            return chain.on_commit(state, message, now)
        case Records():
            return chain.on_records(state, message, now)
        case Fetch():
            return state, chain.records_for(state, message.sender, message.known)
    if state.tip is None or message.tip != state.tip.digest:
        return chain.catch_up(state, message)
    hearers = state.tip.addresses if isinstance(message, Ack) else state.order
    if message.sender not in hearers:
        return state, ()
    match message:
        case Beat(ballot=ballot):
            return voter.on_beat(state, message.sender, ballot, now)
        case Ack():
            return leader.on_ack(state, message.sender, now)
        case Prepare():
            return voter.on_prepare(state, message, now) if state.votes else (state, ())
        case Promise():
            return leader.on_promise(state, message, now)
        case Nack():
            return leader.on_nack(state, message, now)
        case Accept():
            return voter.on_accept(state, message, now) if state.votes else (state, ())
        case Accepted():
            return leader.on_accepted(state, message, now)
        case Rejected():
            return leader.on_rejected(state, message, now)
