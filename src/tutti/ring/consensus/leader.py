"""Who leads: is elected, proposes, counts votes, and gives up when too few answer."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import msgspec

from tutti.ring.consensus.chain import adopted
from tutti.ring.consensus.messages import (
    HIGHEST,
    Accept,
    Accepted,
    Ballot,
    Beat,
    Commit,
    Nack,
    Prepare,
    Promise,
    Rejected,
    Vote,
)
from tutti.ring.consensus.replica import (
    LEASE,
    Electing,
    Follow,
    Following,
    Instruction,
    Lead,
    Leading,
    Replica,
    Send,
    Step,
    header,
    remembering,
)
from tutti.ring.consensus.voter import looking_at
from tutti.ring.record import Record, Seat, after, majority

BEAT = 0.25
PATIENCE = 3
"""Leases without answers of a majority after which a leader stops."""

VOTING = 10
"""Leases after which a leader that finishes what another began looks whether it must. Votes may take them: others fetch
the updates first."""


def lead_on(state: Replica, role: Leading, now: float) -> Step:
    """Say so now and then, ask for votes again, and stop if a majority has not answered for long."""
    heard = [role.acks.get(other, role.since) for other in state.order if other != state.me]
    missing = majority(state.order) - 1  # this member answers itself
    if missing and sorted(heard, reverse=True)[missing - 1] < now - PATIENCE * LEASE:
        return _follow(state, "a majority of the committee does not answer", now)
    if role.proposal is not None and not role.told and now - role.since > VOTING * LEASE:
        return elect(replace(state, stuck=role.proposal.digest), now)
    if now - role.beat_at < BEAT:
        return state, ()
    state = replace(state, role=replace(role, beat_at=now))
    return state, (*_beats(state, role.ballot), *_ask_for_votes(state))


def _beats(state: Replica, ballot: Ballot) -> tuple[Instruction, ...]:
    tip = state.tip
    assert tip is not None
    beat = Beat(**header(state), ballot=ballot)
    return tuple(Send(other, beat) for other in tip.addresses if other != state.me)


def elect(state: Replica, now: float) -> Step:
    """Promise oneself a ballot that is higher than any heard of, and ask the others for the same."""
    if state.durable.promised.number >= HIGHEST:  # nobody can stand any more: only a REFORM helps
        return replace(state, role=Following("", now)), ()
    ballot = Ballot(state.durable.promised.number + 1, state.me)
    mine = MappingProxyType({state.me: state.durable.vote})
    state = replace(remembering(state, ballot, state.durable.vote), role=Electing(ballot, now, mine))
    if len(state.order) == 1:
        return _elected(state, now)
    return state, _prepare(state, ballot)


def _prepare(state: Replica, ballot: Ballot) -> tuple[Instruction, ...]:
    asked = Prepare(**header(state), ballot=ballot)
    return tuple(Send(other, asked) for other in state.order if other != state.me)


def stand_again(state: Replica, role: Electing, now: float) -> Step:
    """Unless so many have promised that it is what they voted for that is in the way: then let others stand."""
    if len(role.promises) < majority(state.order):
        return elect(state, now)
    return replace(state, stuck="", role=Following("", now + LEASE * len(state.order))), ()


def on_promise(state: Replica, message: Promise, now: float) -> Step:
    role = state.role
    if isinstance(role, Leading) and role.higher is not None and message.ballot == role.higher.ballot:
        return _promised_more(state, role, role.higher, message, now)
    if not isinstance(role, Electing) or message.ballot != role.ballot:
        return state, ()
    promises = MappingProxyType({**role.promises, message.sender: message.vote})
    return _elected(replace(state, role=replace(role, promises=promises)), now)


def _elected(state: Replica, now: float) -> Step:
    """Lead, once a majority has promised. If there was a vote already, its record may have been chosen: propose that of
    the highest ballot.

    A majority's promises are enough, and any majority's will do. So who voted for a record that is wrong is not counted
    here: if the record is not chosen, others are a majority; if it is, no majority is without one who voted for it, and
    this member does not lead.

    With more promises than that it may turn out that nothing was chosen. Then no vote binds. It is worth waiting for
    them only if the votes could not be had: this comes after everybody was killed at once, and the updates with them.
    """
    role = state.role
    assert isinstance(role, Electing)
    promises = {
        member: vote for member, vote in role.promises.items() if vote is None or vote.record.digest not in state.wrong
    }
    if len(promises) < majority(state.order):
        return state, ()
    votes = [vote for vote in promises.values() if vote is not None]
    latest = max(votes, key=lambda vote: vote.ballot).record if votes else None
    if latest is not None and not _may_be_chosen(state, latest, promises):
        latest = None
    elif latest is not None and latest.digest == state.stuck and len(role.promises) < len(state.order):
        return state, ()
    acks = MappingProxyType(dict.fromkeys(role.promises, now))
    state = replace(state, role=Leading(role.ballot, now, latest is None, acks, beat_at=now))
    beats = _beats(state, role.ballot)
    if latest is None:
        return state, (*beats, Lead())
    state, wishes = _proposing_again(state, latest, now)
    return state, (*beats, *wishes)


def _may_be_chosen(state: Replica, latest: Record, promises: Mapping[str, Vote | None]) -> bool:
    """Whether a majority may have voted for the record of the latest vote: those who say so, and who has not answered.

    If not, nothing else was chosen either: in the ballot of that vote nothing else could be proposed that some earlier
    ballot had not ruled out, and in a later one only those can have voted who have not answered, which is a minority.
    """
    others = sum(vote is None or vote.record != latest for vote in promises.values())
    return len(state.order) - others >= majority(state.order)


def on_nack(state: Replica, message: Nack, now: float) -> Step:
    """Somebody has promised more than this member's ballot. The next one will be higher."""
    role = state.role
    if isinstance(role, Following) or message.promised <= role.ballot:
        return state, ()
    if isinstance(role, Leading):
        if role.higher is not None and message.promised <= role.higher.ballot:
            return state, ()
        return _outvoted(state, message, now)
    promised = max(state.durable.promised, Ballot(message.promised.number, ""))  # the number: the promise is another's
    return _follow(remembering(state, promised, state.durable.vote), "outvoted", now)


def _outvoted(state: Replica, message: Nack, now: float) -> Step:
    """A member that stood still, say, missed this leader, and has promised itself a ballot that nobody else wants.

    It would refuse this one until the next record. So ask for a ballot above: whoever hears this leader promises it.

    Not while votes are being collected: a record that is chosen ends it as well, and with a member that stands again
    and again the votes would never be complete. Until a majority has promised, this ballot holds, here too.
    """
    state, wishes = _opposed(state, message.sender, "outvoted", now)
    role = state.role
    if not isinstance(role, Leading) or role.proposal is not None or message.promised.number >= HIGHEST:
        return state, wishes
    ballot = Ballot(message.promised.number + 1, state.me)
    return replace(state, role=replace(role, higher=Electing(ballot, now))), _prepare(state, ballot)


def _promised_more(state: Replica, role: Leading, higher: Electing, message: Promise, now: float) -> Step:
    """Lead on in the higher ballot, once a majority has promised it.

    Nothing that was voted for below `role.ballot` can be chosen, or this member would not be free to propose. Votes
    since then that are not for its own proposal are of another's lead, and that record may have been chosen.
    """
    promises = MappingProxyType({**higher.promises, message.sender: message.vote})
    acks = MappingProxyType({**role.acks, message.sender: now})
    role = replace(role, acks=acks, higher=replace(higher, promises=promises))
    state = replace(state, role=role)
    if len(promises) + 1 < majority(state.order):  # this member promises when the others have
        return state, ()
    votes = [vote for vote in (*promises.values(), state.durable.vote) if vote is not None]
    if any(vote.ballot >= role.ballot and vote.record != role.proposal for vote in votes):
        return _follow(state, "another has led meanwhile", now)
    role = replace(role, ballot=higher.ballot, higher=None, against=frozenset(), beat_at=now)
    state = replace(remembering(state, role.ballot, state.durable.vote), role=role)
    beats = _beats(state, role.ballot)
    if role.proposal is None:
        return state, beats
    state, wishes = _proposing(state, role.proposal, now)
    return state, (*beats, *wishes)


def _opposed(state: Replica, sender: str, reason: str, now: float) -> Step:
    """One member will not vote in this ballot. A leader goes on while the others are a majority."""
    role = state.role
    assert isinstance(role, Leading)
    role = replace(role, against=role.against | {sender})
    if len(set(state.order) - role.against) < majority(state.order):
        return _follow(state, reason, now)
    return replace(state, role=role), ()


def _follow(state: Replica, reason: str, now: float) -> Step:
    told = isinstance(state.role, Leading) and state.role.told
    state = replace(state, role=Following("", now))
    return state, (Follow(reason),) if told else ()


def propose(state: Replica, roster: tuple[Seat, ...], body: bytes, now: float) -> Step:
    role = state.role
    if not isinstance(role, Leading) or role.proposal is not None or state.tip is None:
        return state, ()
    return _proposing(state, after(state.tip, state.me, roster, body), now)


def _proposing_again(state: Replica, record: Record, now: float) -> Step:
    """Ask for votes, and verify it first, as anybody does: that it names this member proves nothing."""
    role, said = state.role, state.durable.vote
    assert isinstance(role, Leading)
    if said is not None and said.record == record:
        return _proposing(state, record, now)
    state, looks = looking_at(replace(state, role=replace(role, proposal=record)), Vote(role.ballot, record))
    return state, (*_ask_for_votes(state), *looks)


def _proposing(state: Replica, record: Record, now: float) -> Step:
    """Vote for it, and ask the others to."""
    role = state.role
    assert isinstance(role, Leading)
    vote = Vote(role.ballot, record)
    state = replace(
        remembering(state, role.ballot, vote), role=replace(role, proposal=record, votes=frozenset({state.me}))
    )
    if len(state.order) == 1:
        return _chosen(state, record, now)
    return state, _ask_for_votes(state)


def _ask_for_votes(state: Replica) -> tuple[Instruction, ...]:
    role = state.role
    if not isinstance(role, Leading) or role.proposal is None:
        return ()
    accept = Accept(**header(state), ballot=role.ballot, record=role.proposal)
    return tuple(Send(other, accept) for other in state.order if other not in {*role.votes, state.me})


def on_accepted(state: Replica, message: Accepted, now: float) -> Step:
    role = state.role
    if not isinstance(role, Leading) or role.proposal is None or role.ballot != message.ballot:
        return state, ()
    if message.record != role.proposal.digest:  # one ballot is for one record: whoever says this is broken
        return state, ()
    role = replace(role, votes=role.votes | {message.sender}, acks=MappingProxyType({**role.acks, message.sender: now}))
    state = replace(state, role=role)
    assert role.proposal is not None
    return _chosen(state, role.proposal, now) if len(role.votes) >= majority(state.order) else (state, ())


def on_rejected(state: Replica, message: Rejected, now: float) -> Step:
    """One member finds the record wrong: it made another model of the same updates. If many do, another shall lead."""
    role = state.role
    if not isinstance(role, Leading) or role.proposal is None or message.record != role.proposal.digest:
        return state, ()
    rejected = role.rejected | {message.sender}
    state = replace(state, role=replace(role, rejected=rejected))
    if len(rejected) >= majority(state.order):
        state = replace(state, wrong=state.wrong | {message.record})
    return _opposed(state, message.sender, f"the committee finds the record wrong: {message.reason}", now)


def _chosen(state: Replica, record: Record, now: float) -> Step:
    """Tell everybody, those who leave and those who come too."""
    tip, ballot = state.tip, state.durable.promised
    assert tip is not None
    hearers = dict.fromkeys((*tip.addresses, *record.addresses))
    led = isinstance(state.role, Leading)
    state, wishes = adopted(state, (record,), now, by=state.me)
    commit = Commit(**header(state), record=record)
    told = tuple(Send(other, commit) for other in hearers if other != state.me)
    if led and not isinstance(state.role, Leading) and state.votes and ballot.number:
        state, more = elect(state, now)  # whose record it was does not answer, or it would have led itself
        wishes += more
    return state, (*told, *wishes)


def reform(state: Replica, survivors: tuple[Seat, ...], now: float) -> Step:
    """A record without a majority. It is the first of a new generation, and everybody can see that."""
    if state.tip is None:
        return state, ()
    forced = after(state.tip, state.me, survivors, b"")
    return _chosen(state, msgspec.structs.replace(forced, generation=state.tip.generation + 1), now)


def on_ack(state: Replica, sender: str, now: float) -> Step:
    role = state.role
    if not isinstance(role, Leading):
        return state, ()
    return replace(state, role=replace(role, acks=MappingProxyType({**role.acks, sender: now}))), ()
