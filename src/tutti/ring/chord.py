"""Chord, as corrected by Zave: a ring that keeps itself in order while members come, go and fail.

**The ring.** Identifiers are numbers on a circle. Every member owns the keys from its predecessor (not included) to
itself. Each keeps a list of the r members that follow it. A member whose successor dies still knows the next one;
so the ring holds as long as no member loses its entire list between two repairs. Fingers (the owners of
me + 2**i) shorten look-ups to about half log2 N questions, and nothing else depends on them.

**Why not the paper of 2001.** The published operations (Stoica et al., https://doi.org/10.1145/964723.383071) can
break the ring for good. Zave found how (https://arxiv.org/abs/1502.06461), and gave operations with a proof
(https://arxiv.org/abs/1610.01140; IEEE TSE 43(12), 2017). They keep this invariant:

- *OneLiveSuccessor*: every member's list names a live member.
- *SufficientPrincipals*: at least r + 1 members are skipped by no list. (A list skips a member that
  lies strictly between two neighbours in [owner, *list].)

It follows that there is exactly one ring, in order, that everybody else leads into it, and that lists are in order
and free of duplicates. Where the operations differ from 2001: `join` copies a whole list; `stabilise` asks a closer
candidate for its list *before* it adopts it; `rectify` (once `notify`) replaces a predecessor that is dead.

**Small rings.** With r members or fewer the base cannot exist. There every member knows every member: lists follow from
the roster (`in_full`), and r + 1 known members switch to the operations above. The proof does not cover this; tests do.

**Two rings** that were one before a partition are each in order, and would never meet. So a member
looks its own identifier up through somebody it knew (HEAL). If the owner is another, the two become neighbours:
adopting any live member between oneself and one's successor keeps the invariant, whatever ring it came from.

**Time.** Nothing here knows it. The shell says what is due, carries questions out and says what came of them; an answer
that is late is dead, and if that was wrong, the accused hears it and takes a new incarnation.
One STABILISE at a time: the answer to an old one is recognised and ignored.

The message table is TABLE, at the end of this file; there are two messages, Ask and Tell.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise
from types import MappingProxyType
from typing import TypeAlias

from tutti.ring.identifiers import Peer, between, within
from tutti.ring.member import Member, View, in_full, list_length, size, towards
from tutti.ring.roster import Claim, Roster

MAX_HOPS = 64
MAX_CHOICES = 8


class Task(StrEnum):
    """What a member can be about, and why it asks."""

    JOIN = "join"
    STABILISE = "stabilise"
    FINGER = "finger"
    HEAL = "heal"
    LOOKUP = "lookup"
    CANDIDATE = "candidate"  # follows STABILISE or HEAL
    RECTIFY = "rectify"  # follows Told
    MEET = "meet"  # STABILISE of a small ring


# -- what a member is told -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Due:
    """It is time for a task. JOIN and HEAL go through `contact`; LOOKUP and FINGER need `key`."""

    task: Task
    key: int = 0
    contact: Peer | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to a question."""

    ask: "Ask"
    view: View


@dataclass(frozen=True, slots=True)
class Unanswered:
    """No answer in time, or that of a process that is no member: it counts as dead."""

    ask: "Ask"


@dataclass(frozen=True, slots=True)
class Told:
    """`peer` says that it exists: it may be the predecessor."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class Asked:
    """The member `peer` asks something; what it gets is `member.towards`."""

    peer: Peer


Event: TypeAlias = Due | Answered | Unanswered | Told | Asked


# -- what it wants done -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask `peer` for its view towards `key`.

    Attributes:
        rest: Whom to ask instead, if it is dead, on the way of a look-up.
        hops: Questions asked before this one.
        about: RECTIFY: who wants to become the predecessor.
    """

    peer: Peer
    task: Task
    key: int = 0
    rest: tuple[Peer, ...] = ()
    hops: int = 0
    about: Peer | None = None


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell `peer` that this member exists."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class Found:
    """A look-up ended: the first live one of `holders` owns the key. Nobody: every way to it was dead, ask again."""

    key: int
    holders: tuple[Peer, ...]
    hops: int


Instruction: TypeAlias = Ask | Tell | Found
Step: TypeAlias = tuple[Member, tuple[Instruction, ...]]


def handle(member: Member, event: Event) -> Step:
    """The member after the event, and what it wants done. Total: what comes too late changes nothing."""
    match event:
        case Due(task):
            return TABLE[Due, task](member, event)
        case Answered(ask, view):
            member, refuted = _learn(member, view)
            member, wishes = TABLE[Answered, ask.task](member, event)
            return member, refuted + wishes
        case Unanswered(ask):
            if ask.peer.id != member.me.id:
                member = _knowing(member, member.roster.lost(ask.peer))
            return TABLE[Unanswered, ask.task](member, event)
        case Told(peer) | Asked(peer):
            if peer.id == member.me.id or member.roster.refuses(peer):
                return member, ()
            member = _knowing(member, member.roster.heard(peer))
            return rectify(member, peer) if isinstance(event, Told) else (member, ())


def found(me: Peer, bits: int) -> Member:
    """The first member of a ring."""
    return Member(me, joined=True, bits=bits)


# -- the roster, and rings so small that it is all ---------------------------------------------------------


def _learn(member: Member, view: View) -> Step:
    """Merge what the answer says; whoever hears that it is dead takes a new incarnation, and says so to all."""
    accusation = view.roster.claims.get(member.me.id)
    claims = (Claim(view.peer, True), *view.roster.claims.values())  # who answers may be this member itself
    member = _knowing(member, member.roster.merged(claim for claim in claims if claim.peer.id != member.me.id))
    if accusation is None or not accusation.beats(Claim(member.me, True)):
        return member, ()
    member = replace(member, me=replace(member.me, incarnation=accusation.peer.incarnation + 1))
    hearers = dict.fromkeys((view.peer, *member.roster.alive))
    return member, tuple(map(Tell, hearers)) if member.joined else ()


def _knowing(member: Member, roster: Roster) -> Member:
    """With a new roster. It alone makes the lists of a small ring, up to the moment when the ring outgrows it."""
    if roster is member.roster:
        return member
    small, member = in_full(member), replace(member, roster=roster)
    return _from_roster(member) if member.joined and (small or in_full(member)) else member


def _from_roster(member: Member) -> Member:
    others = sorted(member.roster.alive, key=lambda peer: member.after(peer.id))
    last = others[-1] if others else None
    return replace(member, successors=tuple(others[: list_length(size(member))]), predecessor=last)


def _list(member: Member, *peers: Peer) -> tuple[Peer, ...]:
    """A successor list: as long as it should be, and ending before it comes round to this member."""
    ahead = [member.after(peer.id) for peer in peers]
    end = next((at for at, (a, b) in enumerate(pairwise([0, *ahead])) if b <= a), len(peers))
    return peers[: min(end, list_length(size(member)))]


# -- join: Zave, Join ------------------------------------------------------------------------------------


def join(member: Member, event: Due) -> Step:
    """Look for the member before one's place, beginning with any member."""
    if member.joined or event.contact is None:
        return member, ()
    return member, (Ask(event.contact, Task.JOIN, member.me.id),)


def join_between(member: Member, event: Answered) -> Step:
    """At the right place: copy the whole list. If one's old self still stands there, the next attempt will do."""
    ask, view = event.ask, event.view
    if member.joined:
        return member, ()
    if not within(view.peer.id, ask.key, view.head.id):
        return _ask_nearer(member, ask, view)
    if member.me.id in (view.head.id, view.peer.id):
        return member, ()
    whole = _list(member, *view.successors)
    short = len(whole) < min(len(member.roster.alive), list_length(size(member)))
    if in_full(member) or short:  # the list of a ring that was small until now; the roster knows more
        member = _from_roster(replace(member, joined=True))
    else:
        member = replace(member, joined=True, successors=whole, predecessor=view.peer)
    return member, tuple(map(Tell, member.roster.alive))


# -- stabilise: Zave, StabilizeFromSuccessor and StabilizeFromPredecessor --------------------------------


def stabilise(member: Member, event: Due) -> Step:
    """Ask the successor; in a small ring, ask everybody."""
    if not member.joined:
        return member, ()
    if in_full(member):
        return member, tuple(Ask(peer, Task.MEET, member.me.id) for peer in member.roster.alive)
    return member, (Ask(member.head, Task.STABILISE, member.me.id),)


def from_successor(member: Member, event: Answered) -> Step:
    """Follow the successor's list, then ask a closer candidate if there is one."""
    ask, view = event.ask, event.view
    if in_full(member) or ask.peer.id != member.head.id:
        return member, ()
    member = replace(member, successors=_list(member, view.peer, *view.successors))
    offered = member.roster.alive if view.predecessor is None else (*member.roster.alive, view.predecessor)
    closer = [peer for peer in offered if peer.address and between(member.me.id, peer.id, member.head.id)]
    if not closer:
        return member, (Tell(member.head),)
    candidate = min(closer, key=lambda peer: member.after(peer.id))
    return member, (Ask(candidate, Task.CANDIDATE, member.me.id),)


def without_successor(member: Member, event: Unanswered) -> Step:
    """Drop the dead successor. An identifier just after the last fills the list up: it skips nobody."""
    if in_full(member) or event.ask.peer.id != member.head.id or not member.successors:
        return member, ()
    filler = Peer((member.successors[-1].id + 1) % (1 << member.bits), "")
    rest = _list(member, *member.successors[1:], filler)
    lives = any(peer.address for peer in rest)  # if not, more died at once than the proof allows: ask whom we know
    member = replace(member, successors=rest) if lives else _from_roster(member)
    return member, (Tell(member.head),) if member.head.address else ()


def from_candidate(member: Member, event: Answered) -> Step:
    """It lives, so it is the successor now, with its list."""
    if in_full(member):
        return member, ()
    view = event.view
    if between(member.me.id, view.peer.id, member.head.id) and view.peer.id != member.me.id:
        member = replace(member, successors=_list(member, view.peer, *view.successors))
    return member, (Tell(member.head),)


def without_candidate(member: Member, event: Unanswered) -> Step:
    """It is dead; the successor stays."""
    return member, (Tell(member.head),) if member.head.address and not in_full(member) else ()


# -- rectify: Zave, Rectify ------------------------------------------------------------------------------


def rectify(member: Member, peer: Peer) -> Step:
    """Adopt a closer predecessor; for a farther one, see whether the present one is dead."""
    present = member.predecessor
    if not member.joined or in_full(member):
        return member, ()
    if present is None or present.id == peer.id or between(present.id, peer.id, member.me.id):
        return replace(member, predecessor=peer), ()
    return member, (Ask(present, Task.RECTIFY, member.me.id, about=peer),)


def without_predecessor(member: Member, event: Unanswered) -> Step:
    """The predecessor is dead: adopt who asked to be."""
    ask = event.ask
    if in_full(member) or member.predecessor is None or ask.peer.id != member.predecessor.id:
        return member, ()
    return replace(member, predecessor=ask.about), ()


# -- look-ups, fingers and healing -----------------------------------------------------------------------


def look_up(member: Member, event: Due) -> Step:
    """Find the owner of a key, by asking ever nearer members before it."""
    if not member.joined:
        return member, ()
    ask = Ask(member.me, event.task, event.key)
    return go_on(member, Answered(replace(ask, hops=-1), towards(member, event.key)))


def go_on(member: Member, event: Answered) -> Step:
    """Whether the key lies between this member and its successor; else on to a nearer one."""
    ask, view = event.ask, event.view
    holders = _living(member, view)
    if within(view.peer.id, ask.key, holders[0].id):
        return _arrived(member, ask, holders, ask.hops + 1)
    return _ask_nearer(member, ask, view)


def go_round(member: Member, event: Unanswered) -> Step:
    """Past a dead member by the next best."""
    ask = event.ask
    if ask.rest and ask.hops < MAX_HOPS:
        return member, (replace(ask, peer=ask.rest[0], rest=ask.rest[1:], hops=ask.hops + 1),)
    return member, (Found(ask.key, (), ask.hops + 1),) if ask.task is Task.LOOKUP else ()


def _living(member: Member, view: View) -> tuple[Peer, ...]:
    """The view's successor list without those who are known to be dead; who answered, if there is nobody else."""
    living = (peer for peer in view.successors if peer.address and not member.roster.refuses(peer))
    return tuple(living) or (view.peer,)


def _ask_nearer(member: Member, ask: Ask, view: View) -> Step:
    """First whom the answer proposes, if it is nearer and not known to be dead; then what is left of earlier ones.

    If all those turn out to be dead, the same member is asked again: its living successor is another one then.
    """
    nearer = (peer for peer in view.nearer if not member.roster.refuses(peer))
    proposed = [peer for peer in (*nearer, *_living(member, view)) if between(view.peer.id, peer.id, ask.key)]
    if proposed:
        proposed = [*proposed[:MAX_CHOICES], view.peer]
    choices = tuple(dict.fromkeys((*proposed, *ask.rest)))
    return go_round(member, Unanswered(replace(ask, rest=choices[: 3 * MAX_CHOICES])))


def _arrived(member: Member, ask: Ask, holders: tuple[Peer, ...], hops: int) -> Step:
    if ask.task is Task.LOOKUP:
        return member, (Found(ask.key, holders, hops),)
    owner, exponent = holders[0], member.after(ask.key).bit_length() - 1
    fingers = {**member.fingers, exponent: owner}
    return replace(member, fingers=MappingProxyType(fingers)), ()


def heal(member: Member, event: Due) -> Step:
    """Look one's own identifier up, through somebody who may be in another ring."""
    if not member.joined or event.contact is None:
        return member, ()
    return member, (Ask(event.contact, Task.HEAL, member.me.id),)


def heal_from(member: Member, event: Answered) -> Step:
    """If another owns one's identifier there, become its predecessor and, if it is closer, make it one's successor."""
    ask, view = event.ask, event.view
    owner = _living(member, view)[0]
    if not within(view.peer.id, ask.key, owner.id):
        return _ask_nearer(member, ask, view)
    if in_full(member) or member.me.id in (owner.id, view.peer.id):
        return member, ()
    if between(member.me.id, owner.id, member.head.id):
        return member, (Tell(owner), Ask(owner, Task.CANDIDATE, member.me.id))
    return member, (Tell(owner),)


def nothing(member: Member, event: Event) -> Step:
    """What had to be learnt from this has been learnt."""
    return member, ()


Handler: TypeAlias = Callable[[Member, "Event"], Step]

TABLE: Mapping[tuple[type, Task], Callable[..., Step]] = {
    (Due, Task.JOIN): join,
    (Answered, Task.JOIN): join_between,
    (Unanswered, Task.JOIN): go_round,
    (Due, Task.STABILISE): stabilise,
    (Answered, Task.STABILISE): from_successor,
    (Unanswered, Task.STABILISE): without_successor,
    (Answered, Task.CANDIDATE): from_candidate,
    (Unanswered, Task.CANDIDATE): without_candidate,
    (Answered, Task.RECTIFY): nothing,
    (Unanswered, Task.RECTIFY): without_predecessor,
    (Answered, Task.MEET): nothing,
    (Unanswered, Task.MEET): nothing,
    (Due, Task.FINGER): look_up,
    (Answered, Task.FINGER): go_on,
    (Unanswered, Task.FINGER): go_round,
    (Due, Task.LOOKUP): look_up,
    (Answered, Task.LOOKUP): go_on,
    (Unanswered, Task.LOOKUP): go_round,
    (Due, Task.HEAL): heal,
    (Answered, Task.HEAL): heal_from,
    (Unanswered, Task.HEAL): go_round,
}
"""The whole protocol: for what comes, and why it was asked, the operation that answers it."""
