"""Who votes: hears the leader, promises ballots, and votes for what its shell has verified."""

from dataclasses import replace

from tutti.ring.consensus.messages import Accept, Accepted, Ack, Ballot, Nack, Prepare, Promise, Rejected, Vote
from tutti.ring.consensus.replica import (
    LEASE,
    Following,
    Leading,
    Replica,
    Send,
    Step,
    Verify,
    header,
    remembering,
    resign,
)


def on_beat(state: Replica, sender: str, ballot: Ballot, now: float) -> Step:
    if ballot < state.durable.promised:
        return state, (Send(sender, Nack(**header(state), promised=state.durable.promised)),)
    state, wishes = _heard(state, ballot, now)
    if state.me in state.order and not state.votes:  # the leader must not count on its vote
        return state, wishes
    return state, (*wishes, Send(sender, Ack(**header(state))))


def on_prepare(state: Replica, message: Prepare, now: float) -> Step:
    match state.role:
        case Leading():
            return state, ()
        case Following(leader, since) if leader not in ("", message.sender) and now - since <= LEASE:
            return state, ()
    if message.ballot <= state.durable.promised:
        return state, (Send(message.sender, Nack(**header(state), promised=state.durable.promised)),)
    state = _promising(state, message.ballot, now)
    return state, (Send(message.sender, Promise(**header(state), ballot=message.ballot, vote=state.durable.vote)),)


def _promising(state: Replica, ballot: Ballot, now: float) -> Replica:
    return replace(remembering(state, ballot, state.durable.vote), role=Following(ballot.owner, now))


def on_accept(state: Replica, message: Accept, now: float) -> Step:
    if message.ballot < state.durable.promised:
        return state, (Send(message.sender, Nack(**header(state), promised=state.durable.promised)),)
    vote = Vote(message.ballot, message.record)
    state, wishes = _heard(state, message.ballot, now)
    if state.durable.vote == vote:
        return state, (*wishes, Send(message.ballot.owner, _accepted(state, vote)))
    if message.record.digest in state.wrong:
        again = Rejected(**header(state), ballot=vote.ballot, record=vote.record.digest, reason="as was said before")
        return state, (*wishes, Send(message.ballot.owner, again))
    if message.record.previous != message.tip:
        return state, wishes
    said = state.durable.vote
    if said is not None and said.record == message.record:  # it was looked at then, and may not be able to be now
        state = replace(remembering(state, vote.ballot, vote), verifying=None)
        return state, (*wishes, Send(message.ballot.owner, _accepted(state, vote)))
    state, looks = looking_at(state, vote)
    return state, (*wishes, *looks)


def looking_at(state: Replica, vote: Vote) -> Step:
    """Have a record verified. Whoever is at it already goes on, in whatever ballot that was."""
    under_way = state.verifying is not None and state.verifying.record == vote.record
    return replace(state, verifying=vote), () if under_way else (Verify(vote),)


def verified(state: Replica, vote: Vote, fault: str) -> tuple[Replica, Accepted | Nack | Rejected]:
    """Vote, unless the record is wrong, or more has been promised meanwhile; what to answer whoever asked for it."""
    state = replace(state, verifying=None)
    if fault:
        state = replace(state, wrong=state.wrong | {vote.record.digest})
        return state, Rejected(**header(state), ballot=vote.ballot, record=vote.record.digest, reason=fault[:500])
    if vote.ballot < state.durable.promised:
        return state, Nack(**header(state), promised=state.durable.promised)
    state = remembering(state, vote.ballot, vote)
    return state, _accepted(state, vote)


def _accepted(state: Replica, vote: Vote) -> Accepted:
    return Accepted(**header(state), ballot=vote.ballot, record=vote.record.digest)


def _heard(state: Replica, ballot: Ballot, now: float) -> Step:
    """The owner of this ballot leads. To hear of a higher ballot than one's own is to be outvoted."""
    if state.me == ballot.owner:
        return state, ()
    before, promised = state.role, max(ballot, state.durable.promised)
    state = replace(remembering(state, promised, state.durable.vote), role=Following(ballot.owner, now))
    return state, resign(before)
