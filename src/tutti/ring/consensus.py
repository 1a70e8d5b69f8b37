"""Agreement on the next record of the chain, among the committee that follows from the newest one.

For every height one record is chosen by single-decree Paxos (Lamport, "Paxos made simple", 2001). Each vote is for a
record in a ballot; a record that a majority of the committee has voted for in one ballot is chosen, and every later
ballot can propose nothing else. Votes and promises are on disk before anybody hears of them. Members vote for a record
only after their shell has verified it: for a round of training, by computing the model again.

**Who leads.** Ballot 0 of each height belongs to the first of `succession`, so an undisturbed round costs one
exchange. The leader is heard every BEAT seconds. The member of rank i begins an election after i leases of silence.
Nobody takes part in one who has heard the leader within the last lease: so that a leader is replaced, a majority must
miss it. A leader that a majority does not answer stops leading: a minority does nothing.

**Membership** is part of the records, and changes with them. The committee for height h + 1 is that of record h, which
everybody who votes has: no view out of date can choose a second record. If a majority of it is lost, nothing happens
until somebody calls for REFORM, which starts a new generation with whoever is left; chains of older generations give
way to it.

**Catching up.** Whoever hears of a greater height asks for the records it lacks.

`handle` is told an event and returns the next state and what the shell is to do: first write `durable` and the records
of Append to disk, all or nothing; then the other instructions, in order. Time is an argument.

| message | from | means |
| --- | --- | --- |
| Beat | leader | I lead after this record; Ack is the answer |
| Prepare | candidate | may I lead? Promise or Nack is the answer |
| Accept | leader | vote for this record: Accepted, Nack or Rejected is the answer |
| Commit | leader | this record is chosen |
| Fetch | anybody | send me the records after this one; Records is the answer |
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any, TypeAlias

import msgspec

from tutti.ring.record import Record, Seat, after, first, majority, succession

LEASE = 1.0
BEAT = 0.25
PATIENCE = 3
"""Leases without answers of a majority after which a leader stops."""


class Ballot(msgspec.Struct, frozen=True, order=True, array_like=True):
    """Ballots are ordered by number, then by who owns them. Number 0 is the unelected leader's."""

    number: int = 0
    owner: str = ""


class Vote(msgspec.Struct, frozen=True, array_like=True):
    ballot: Ballot
    record: Record


# -- messages -----------------------------------------------------------------------------------------------


class Message(msgspec.Struct, frozen=True, tag_field="type", kw_only=True):
    """`tip` is the digest of the sender's newest record, `height` its height, -1 if there is none."""

    sender: str
    generation: int
    height: int
    tip: str


class Beat(Message, frozen=True, tag="beat"):
    ballot: Ballot


class Ack(Message, frozen=True, tag="ack"):
    pass


class Prepare(Message, frozen=True, tag="prepare"):
    ballot: Ballot


class Promise(Message, frozen=True, tag="promise"):
    ballot: Ballot
    vote: Vote | None = None


class Nack(Message, frozen=True, tag="nack"):
    promised: Ballot


class Accept(Message, frozen=True, tag="accept"):
    ballot: Ballot
    record: Record


class Accepted(Message, frozen=True, tag="accepted"):
    ballot: Ballot
    record: str


class Rejected(Message, frozen=True, tag="rejected"):
    ballot: Ballot
    record: str
    reason: str


class Commit(Message, frozen=True, tag="commit"):
    record: Record


class Fetch(Message, frozen=True, tag="fetch"):
    pass


class Records(Message, frozen=True, tag="records"):
    records: tuple[Record, ...]


AnyMessage: TypeAlias = Beat | Ack | Prepare | Promise | Nack | Accept | Accepted | Rejected | Commit | Fetch | Records


# -- what a replica is told -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """Begin a chain; `roster` is this member alone."""

    seat: Seat


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Received:
    message: AnyMessage


@dataclass(frozen=True, slots=True)
class Propose:
    """The leader's wish for the next record. One at a time; it comes to nothing if this member does not lead."""

    roster: tuple[Seat, ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Verified:
    """The shell has looked at a record. `fault`: why it is wrong; empty if it is right."""

    vote: Vote
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Reform:
    """A person says that the others will not come back: go on with these members, without a majority."""

    survivors: tuple[Seat, ...]


Event: TypeAlias = Found | Tick | Received | Propose | Verified | Reform


# -- what it wants done ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    to: str
    message: AnyMessage


@dataclass(frozen=True, slots=True)
class SendRecords:
    """Send the records after `height`; all of them, if the chain here has another record there than `tip`."""

    to: str
    height: int
    tip: str


@dataclass(frozen=True, slots=True)
class Append:
    """These records are chosen. `anew`: they replace the whole chain."""

    records: tuple[Record, ...]
    anew: bool = False


@dataclass(frozen=True, slots=True)
class Verify:
    vote: Vote


@dataclass(frozen=True, slots=True)
class Lead:
    """From now on this member leads."""


@dataclass(frozen=True, slots=True)
class Follow:
    """From now on it does not."""

    reason: str


Instruction: TypeAlias = Send | SendRecords | Append | Verify | Lead | Follow


# -- the state ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Following:
    """`leader` was last heard at `since`; empty if nobody was."""

    leader: str = ""
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class Electing:
    ballot: Ballot
    since: float
    promises: Mapping[str, Vote | None] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Leading:
    """This member leads.

    Attributes:
        told: Whether the shell has been told to; it is not while this ballot only finishes what another began.
        acks: When each member of the committee last answered.
        votes, against: Who has voted for `proposal`, and who will not in this ballot.
        rejected: Who of the latter finds it wrong.
    """

    ballot: Ballot
    since: float
    told: bool = True
    acks: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    proposal: Record | None = None
    votes: frozenset[str] = frozenset()
    against: frozenset[str] = frozenset()
    rejected: frozenset[str] = frozenset()
    beat_at: float = float("-inf")


class Durable(msgspec.Struct, frozen=True):
    """What must be on disk before anything is said: promise and vote, for the height after the newest record."""

    height: int = -1
    promised: Ballot = Ballot()
    vote: Vote | None = None


NOTHING = Durable()


@dataclass(frozen=True, slots=True)
class Replica:
    """One member's part in it.

    Attributes:
        me: Its address.
        tip: The newest record; None before this member has a chain.
        seed: Digest of the first record, by which committees are drawn.
        durable: Promise and vote.
        verifying: What the shell is looking at.
        wrong: Digests of records at this height that are wrong: this member or a majority has found them so.
    """

    me: str
    tip: Record | None = None
    seed: str = ""
    durable: Durable = NOTHING
    role: Following | Electing | Leading = Following()
    verifying: Vote | None = None
    wrong: frozenset[str] = frozenset()

    @property
    def order(self) -> tuple[str, ...]:
        """The committee for the next record, in the order of succession."""
        return () if self.tip is None else succession(self.tip, self.seed)

    @property
    def leader(self) -> str:
        """Who leads, as far as is known here; empty if nobody does."""
        match self.role:
            case Leading():
                return self.me
            case Following(leader):
                return leader
        return ""


Step: TypeAlias = tuple[Replica, tuple[Instruction, ...]]


def restored(me: str, tip: Record | None, seed: str, durable: Durable, now: float) -> Replica:
    """The replica of a process that starts again. It leads by election only: it may have used ballot 0 before."""
    current = durable if tip is not None and durable.height == tip.height else _nothing_said(tip)
    return Replica(me, tip, seed, current, Following("", now))


def handle(state: Replica, event: Event, now: float) -> Step:
    """The replica after the event, and what it wants done. Total: what comes too late changes nothing."""
    match event:
        case Found(seat):
            return (state, ()) if state.tip else _adopted(state, (first(seat),), now, anew=True)
        case Tick():
            return _tick(state, now)
        case Received(message):
            return _received(state, message, now)
        case Propose(roster, body):
            return _propose(state, roster, body, now)
        case Verified(vote, fault):
            return _verified(state, vote, fault, now)
        case Reform(survivors):
            return _reform(state, survivors, now)


def _nothing_said(tip: Record | None) -> Durable:
    """As it is when a record has just been appended."""
    return NOTHING if tip is None else Durable(tip.height)


# -- time -----------------------------------------------------------------------------------------------------


def _tick(state: Replica, now: float) -> Step:
    if state.me not in state.order:
        return state, ()
    match state.role:
        case Leading():
            return _lead_on(state, state.role, now)
        case Electing(_, since) if now - since > LEASE:
            return _elect(state, now)
        case Following(_, since) if now - since > LEASE * max(state.order.index(state.me), 1):
            return _elect(state, now)
    return state, ()


def _lead_on(state: Replica, role: Leading, now: float) -> Step:
    """Say so now and then, ask for votes again, and stop if a majority has not answered for long."""
    heard = [role.acks.get(other, role.since) for other in state.order if other != state.me]
    missing = majority(state.order) - 1  # this member answers itself
    if missing and sorted(heard, reverse=True)[missing - 1] < now - PATIENCE * LEASE:
        return _follow(state, "a majority of the committee does not answer", now)
    if now - role.beat_at < BEAT:
        return state, ()
    state = replace(state, role=replace(role, beat_at=now))
    return state, (*_beats(state, role.ballot), *_ask_for_votes(state))


def _beats(state: Replica, ballot: Ballot) -> tuple[Instruction, ...]:
    tip = state.tip
    assert tip is not None
    beat = Beat(**header(state), ballot=ballot)
    return tuple(Send(other, beat) for other in tip.addresses if other != state.me)


# -- elections ------------------------------------------------------------------------------------------------


def _elect(state: Replica, now: float) -> Step:
    """Promise oneself a ballot that is higher than any heard of, and ask the others for the same."""
    ballot = Ballot(state.durable.promised.number + 1, state.me)
    durable = Durable(_height(state), ballot, state.durable.vote)
    state = replace(state, durable=durable, role=Electing(ballot, now, MappingProxyType({state.me: durable.vote})))
    if len(state.order) == 1:
        return _elected(state, now)
    return state, tuple(
        Send(other, Prepare(**header(state), ballot=ballot)) for other in state.order if other != state.me
    )


def _on_prepare(state: Replica, message: Prepare, now: float) -> Step:
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
    durable = Durable(_height(state), ballot, state.durable.vote)
    return replace(state, durable=durable, role=Following(ballot.owner, now))


def _on_promise(state: Replica, message: Promise, now: float) -> Step:
    role = state.role
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
    """
    role = state.role
    assert isinstance(role, Electing)
    promises = {
        member: vote for member, vote in role.promises.items() if vote is None or vote.record.digest not in state.wrong
    }
    if len(promises) < majority(state.order):
        return state, ()
    votes = [vote for vote in promises.values() if vote is not None]
    acks = MappingProxyType(dict.fromkeys(role.promises, now))
    state = replace(state, role=Leading(role.ballot, now, not votes, acks, beat_at=now))
    beats = _beats(state, role.ballot)
    if not votes:
        return state, (*beats, Lead())
    state, wishes = _proposing(state, max(votes, key=lambda vote: vote.ballot).record, now)
    return state, (*beats, *wishes)


def _on_nack(state: Replica, message: Nack, now: float) -> Step:
    """Somebody has promised more than this member's ballot. The next one will be higher."""
    role = state.role
    if isinstance(role, Following) or message.promised <= role.ballot:
        return state, ()
    if isinstance(role, Leading):
        return _opposed(state, message.sender, "outvoted", now)
    promised = max(state.durable.promised, Ballot(message.promised.number, ""))  # the number: the promise is another's
    return _follow(replace(state, durable=Durable(_height(state), promised, state.durable.vote)), "outvoted", now)


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


# -- votes ----------------------------------------------------------------------------------------------------


def _propose(state: Replica, roster: tuple[Seat, ...], body: bytes, now: float) -> Step:
    role = state.role
    if not isinstance(role, Leading) or role.proposal is not None or state.tip is None:
        return state, ()
    return _proposing(state, after(state.tip, state.me, roster, body), now)


def _proposing(state: Replica, record: Record, now: float) -> Step:
    """Vote for it, and ask the others to. One that is not of this member it verifies first, as anybody does."""
    role, said = state.role, state.durable.vote
    assert isinstance(role, Leading)
    vote = Vote(role.ballot, record)
    if record.leader != state.me and (said is None or said.record != record):
        state = replace(state, verifying=vote, role=replace(role, proposal=record))
        return state, (*_ask_for_votes(state), Verify(vote))
    durable = Durable(_height(state), role.ballot, vote)
    state = replace(state, durable=durable, role=replace(role, proposal=record, votes=frozenset({state.me})))
    if len(state.order) == 1:
        return _chosen(state, record, now)
    return state, _ask_for_votes(state)


def _ask_for_votes(state: Replica) -> tuple[Instruction, ...]:
    role = state.role
    if not isinstance(role, Leading) or role.proposal is None:
        return ()
    accept = Accept(**header(state), ballot=role.ballot, record=role.proposal)
    return tuple(Send(other, accept) for other in state.order if other not in {*role.votes, state.me})


def _on_accept(state: Replica, message: Accept, now: float) -> Step:
    if message.ballot < state.durable.promised:
        return state, (Send(message.sender, Nack(**header(state), promised=state.durable.promised)),)
    vote = Vote(message.ballot, message.record)
    state, wishes = _heard(state, message.ballot, now)
    if state.durable.vote == vote:
        return state, (*wishes, Send(message.ballot.owner, _accepted(state, vote)))
    if state.verifying == vote or message.record.previous != message.tip:
        return state, wishes
    return replace(state, verifying=vote), (*wishes, Verify(vote))


def _verified(state: Replica, vote: Vote, fault: str, now: float) -> Step:
    """Vote, unless the record is wrong, or more has been promised meanwhile."""
    if state.verifying != vote:
        return state, ()
    state = replace(state, verifying=None)
    answer: Rejected | Nack | Accepted
    if fault:
        state = replace(state, wrong=state.wrong | {vote.record.digest})
        answer = Rejected(**header(state), ballot=vote.ballot, record=vote.record.digest, reason=fault[:500])
    elif vote.ballot < state.durable.promised:
        answer = Nack(**header(state), promised=state.durable.promised)
    else:
        state = replace(state, durable=Durable(_height(state), vote.ballot, vote))
        answer = _accepted(state, vote)
    if vote.ballot.owner != state.me:
        return state, (Send(vote.ballot.owner, answer),)
    match answer:
        case Rejected():
            return _on_rejected(state, answer, now)
        case Accepted():
            return _on_accepted(state, answer, now)
    return state, ()


def _accepted(state: Replica, vote: Vote) -> Accepted:
    return Accepted(**header(state), ballot=vote.ballot, record=vote.record.digest)


def _on_accepted(state: Replica, message: Accepted, now: float) -> Step:
    role = state.role
    if not isinstance(role, Leading) or role.proposal is None or role.ballot != message.ballot:
        return state, ()
    if message.record != role.proposal.digest:  # one ballot is for one record: whoever says this is broken
        return state, ()
    role = replace(role, votes=role.votes | {message.sender}, acks=MappingProxyType({**role.acks, message.sender: now}))
    state = replace(state, role=role)
    assert role.proposal is not None
    return _chosen(state, role.proposal, now) if len(role.votes) >= majority(state.order) else (state, ())


def _on_rejected(state: Replica, message: Rejected, now: float) -> Step:
    """One member finds the record wrong: it made another model of the same updates. If many do, another shall lead."""
    role = state.role
    if not isinstance(role, Leading) or role.proposal is None or message.record != role.proposal.digest:
        return state, ()
    rejected = role.rejected | {message.sender}
    state = replace(state, role=replace(role, rejected=rejected))
    if len(rejected) >= majority(state.order):
        state = replace(state, wrong=state.wrong | {message.record})
    return _opposed(state, message.sender, f"the committee finds the record wrong: {message.reason}", now)


# -- records that are chosen --------------------------------------------------------------------------------


def _chosen(state: Replica, record: Record, now: float) -> Step:
    """Tell everybody, those who leave and those who come too."""
    tip, ballot = state.tip, state.durable.promised
    assert tip is not None
    hearers = dict.fromkeys((*tip.addresses, *record.addresses))
    led = isinstance(state.role, Leading)
    state, wishes = _adopted(state, (record,), now, by=state.me)
    commit = Commit(**header(state), record=record)
    told = tuple(Send(other, commit) for other in hearers if other != state.me)
    if led and not isinstance(state.role, Leading) and state.me in state.order and ballot.number:
        state, more = _elect(state, now)  # whose record it was does not answer, or it would have led itself
        wishes += more
    return state, (*told, *wishes)


def _adopted(state: Replica, records: tuple[Record, ...], now: float, *, by: str = "", anew: bool = False) -> Step:
    """With these records at the end of the chain, or as the whole of it; `by` led to them, if that is known."""
    tip, before = records[-1], state.role
    seed = records[0].digest if anew else state.seed
    state = replace(state, tip=tip, seed=seed, verifying=None, wrong=frozenset())
    leader = state.order[0]
    state = replace(state, durable=Durable(tip.height, Ballot(0, leader)))
    if leader != state.me:
        return replace(state, role=Following(by, now)), (Append(records, anew), *_resign(before))
    goes_on = isinstance(before, Leading) and before.told and before.proposal == tip
    acks = before.acks if isinstance(before, Leading) else MappingProxyType[str, float]({})
    state = replace(state, role=Leading(Ballot(0, leader), now, acks=acks))
    return state, (Append(records, anew), *(() if goes_on else (*_resign(before), Lead())))


def _resign(before: Following | Electing | Leading) -> tuple[Instruction, ...]:
    return (Follow("another leads"),) if isinstance(before, Leading) and before.told else ()


def _on_commit(state: Replica, message: Commit, now: float) -> Step:
    record = message.record
    if state.tip is not None and record.previous == state.tip.digest:
        return _adopted(state, (record,), now, by=message.sender)
    return _catch_up(state, message)


def _on_records(state: Replica, message: Records, now: float) -> Step:
    """Append what follows; take a whole chain if this member has none of consequence, or one of an older generation."""
    records = message.records
    if not records or any(b.previous != a.digest or b.height != a.height + 1 for a, b in pairwise(records)):
        return state, ()
    tip, newest = state.tip, records[-1]
    if tip is not None:
        new = tuple(record for record in records if record.height > tip.height)
        if new and new[0].previous == tip.digest:
            return _adopted(state, new, now)
    whole = records[0].height == 0
    if whole and (tip is None or newest.generation > tip.generation or tip.height == 0 < newest.height):
        return _adopted(state, records, now, anew=True)
    return state, ()


def _reform(state: Replica, survivors: tuple[Seat, ...], now: float) -> Step:
    """A record without a majority. It is the first of a new generation, and everybody can see that."""
    if state.tip is None:
        return state, ()
    forced = after(state.tip, state.me, survivors, b"")
    return _chosen(state, msgspec.structs.replace(forced, generation=state.tip.generation + 1), now)


# -- messages ---------------------------------------------------------------------------------------------------


def _received(state: Replica, message: AnyMessage, now: float) -> Step:
    match message:
        case Commit():
            return _on_commit(state, message, now)
        case Records():
            return _on_records(state, message, now)
        case Fetch():
            return state, (SendRecords(message.sender, message.height, message.tip),)
    if state.tip is None or message.tip != state.tip.digest:
        return _catch_up(state, message)
    if message.sender not in state.order and not isinstance(message, Beat | Ack):
        return state, ()
    match message:
        case Beat(ballot=ballot):
            return _on_beat(state, message.sender, ballot, now)
        case Ack():
            return _on_ack(state, message.sender, now)
        case Prepare():
            return _on_prepare(state, message, now) if state.me in state.order else (state, ())
        case Promise():
            return _on_promise(state, message, now)
        case Nack():
            return _on_nack(state, message, now)
        case Accept():
            return _on_accept(state, message, now) if state.me in state.order else (state, ())
        case Accepted():
            return _on_accepted(state, message, now)
        case Rejected():
            return _on_rejected(state, message, now)


def _catch_up(state: Replica, message: AnyMessage) -> Step:
    """Of two members whose chains differ, the one behind gets the other's records."""
    mine = (0, -1) if state.tip is None else (state.tip.generation, state.tip.height)
    if (message.generation, message.height) < mine:
        return state, (SendRecords(message.sender, message.height, message.tip),)
    if state.tip is not None and message.tip == state.tip.digest:
        return state, ()
    return state, (Send(message.sender, Fetch(**header(state))),)


def _on_beat(state: Replica, sender: str, ballot: Ballot, now: float) -> Step:
    if ballot < state.durable.promised:
        return state, (Send(sender, Nack(**header(state), promised=state.durable.promised)),)
    state, wishes = _heard(state, ballot, now)
    return state, (*wishes, Send(sender, Ack(**header(state))))


def _heard(state: Replica, ballot: Ballot, now: float) -> Step:
    """The owner of this ballot leads. To hear of a higher ballot than one's own is to be outvoted."""
    if state.me == ballot.owner:
        return state, ()
    durable = Durable(_height(state), max(ballot, state.durable.promised), state.durable.vote)
    before, state = state.role, replace(state, durable=durable, role=Following(ballot.owner, now))
    return state, _resign(before)


def _on_ack(state: Replica, sender: str, now: float) -> Step:
    role = state.role
    if not isinstance(role, Leading):
        return state, ()
    return replace(state, role=replace(role, acks=MappingProxyType({**role.acks, sender: now}))), ()


def _height(state: Replica) -> int:
    return -1 if state.tip is None else state.tip.height


def header(state: Replica) -> dict[str, Any]:
    """The fields that every message of this member has."""
    tip = state.tip
    if tip is None:
        return {"sender": state.me, "generation": 0, "height": -1, "tip": ""}
    return {"sender": state.me, "generation": tip.generation, "height": tip.height, "tip": tip.digest}


def lacking(records: Iterable[Record], height: int, tip: str) -> tuple[Record, ...]:
    """What SendRecords asks for, of the whole chain."""
    chain = tuple(records)
    known = 0 <= height < len(chain) and chain[height].digest == tip
    return chain[height + 1 :] if known else chain
