"""One attempt at one round, as a value: who was asked, what came of it, and when it is due to close."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from types import MappingProxyType
from typing import assert_never

import msgspec

from tutti.domain.events import (
    NodeDropped,
    NodeId,
    RoundExtended,
    RoundOpened,
    UpdateAccepted,
    UpdateLost,
    UpdateRefused,
)
from tutti.domain.spec import CohortRules

NAMED_IN_REASONS = 8
"""Silent nodes that the reason of a round's end names."""

PACES_KEPT = 8
"""Newest attempts that the next deadline goes by."""

ARRIVALS_KEPT = 32
"""Arrivals of one attempt that the next deadlines go by."""


class Part(StrEnum):
    """What became of one node of the cohort."""

    ASSIGNED = "assigned"
    ACCEPTED = "accepted"
    REFUSED = "refused"
    DROPPED = "dropped"


class Member(msgspec.Struct, frozen=True):
    """A node's part so far. `waited` is for how long the coordinator waited for the update, in seconds.

    `base` is the opening of the earlier round on whose model the node still works; None for this round's.
    """

    part: Part = Part.ASSIGNED
    reason: str = ""
    update: UpdateAccepted | None = None
    waited: float = 0.0
    base: RoundOpened | None = None


class Round(msgspec.Struct, frozen=True):
    """An open round. `members` holds the cohort only; `refusals` also names strangers and latecomers.

    `since` is when its clock started: when it was opened, or when the coordinator last came back to it.
    """

    opened: RoundOpened
    members: Mapping[NodeId, Member]
    deadline: float
    since: float
    open: int  # members that still owe an update
    came: int = 0  # updates that count
    refusals: tuple[UpdateRefused, ...] = ()

    @property
    def number(self) -> int:
        return self.opened.round

    @property
    def accepted(self) -> tuple[UpdateAccepted, ...]:
        """The updates that count, by node: the order of arrival leaves no trace."""
        return tuple(member.update for _, member in sorted(self.members.items()) if member.update is not None)

    @property
    def waiting_for(self) -> tuple[NodeId, ...]:
        return tuple(sorted(self.owing))

    @property
    def owing(self) -> list[NodeId]:
        """The same, in no order."""
        return [node for node, member in self.members.items() if member.part is Part.ASSIGNED]

    def task_of(self, node: NodeId) -> RoundOpened:
        """The opening of the round whose model this member was told to train."""
        return self.members[node].base or self.opened

    def owes(self, node: NodeId) -> bool:
        """Whether the node is still expected to hand in an update."""
        return node in self.members and self.members[node].part is Part.ASSIGNED


@dataclass(frozen=True, slots=True)
class Verdict:
    """A round that is due: whether it succeeds, and why it closes now."""

    succeeds: bool
    reason: str


def open_round(event: RoundOpened, working: Mapping[NodeId, RoundOpened] = MappingProxyType({})) -> Round:
    """A round as it begins; `working` are the tasks of nodes that are carried into it, where they are known."""
    members = {node: Member(base=working.get(node) if node in event.carried else None) for node in event.cohort}
    return Round(event, members, event.deadline, event.at, len(event.cohort))


RoundEvent = UpdateAccepted | UpdateRefused | UpdateLost | NodeDropped | RoundExtended


def evolve_round(state: Round, event: RoundEvent) -> Round:
    """The round after an event. Total: the fact is in the log already."""
    match event:
        case UpdateAccepted():
            before = state.members[event.node]
            lost = before.reason if before.part is Part.ASSIGNED else ""
            return _with(state, event.node, Member(Part.ACCEPTED, lost, event, waited(state, event.at)))
        case UpdateRefused():
            state = msgspec.structs.replace(state, refusals=(*state.refusals, event))
            return _with(state, event.node, Member(Part.REFUSED, event.reason)) if event.final else state
        case UpdateLost():
            reason = f"its update was lost, and asked for again: {event.reason}"
            return _with(state, event.node, Member(reason=reason))
        case NodeDropped():
            return _with(state, event.node, Member(Part.DROPPED, event.reason))
        case RoundExtended():
            return msgspec.structs.replace(state, deadline=event.deadline, since=event.at)
    assert_never(event)


def _with(state: Round, node: NodeId, member: Member) -> Round:
    before, base = state.members[node].part, state.members[node].base
    return msgspec.structs.replace(
        state,
        members={**state.members, node: msgspec.structs.replace(member, base=base) if base else member},
        open=state.open + (member.part is Part.ASSIGNED) - (before is Part.ASSIGNED),
        came=state.came + (member.part is Part.ACCEPTED) - (before is Part.ACCEPTED),
    )


def due(state: Round, now: float) -> Verdict | None:
    """Whether the round closes now, and why. The rules in the order in which they apply."""
    came, opened = state.came, state.opened
    if state.open == 0:
        if came >= opened.quorum:
            return Verdict(True, f"all {len(state.members)} answered, {came} counted")
        return Verdict(False, f"{came} of {len(state.members)} updates counted, quorum is {opened.quorum}")
    if came >= opened.wanted:
        return Verdict(True, f"{came} of {len(state.members)} came first, {opened.wanted} were wanted")
    if now >= state.deadline:
        silent = _some(state.waiting_for)
        if came >= opened.quorum:
            return Verdict(True, f"deadline, {came} counted, without {silent}")
        return Verdict(False, f"deadline: {came} updates, quorum is {opened.quorum}; silent: {silent}")
    return None


def _some(nodes: Sequence[NodeId]) -> str:
    """The first few names: a reason is logged and kept, and a cohort may be large."""
    more = len(nodes) - NAMED_IN_REASONS
    return ", ".join(nodes[:NAMED_IN_REASONS]) + (f" and {more} more" if more > 0 else "")


# -- how long a round may take -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a finished attempt went, in seconds of waiting.

    Attributes:
        arrivals: When its updates came, up to ARRIVALS_KEPT of them, evenly from the fastest to the slowest.
            A node that was still silent at the end enters with the time for which it was waited: it is slower.
        quorum: When enough updates had come; if they never had, the time for which they were waited.
    """

    arrivals: tuple[float, ...]
    quorum: float


def pace_of(state: Round, closed_at: float) -> Pace | None:
    """The pace of an attempt that ends; None if it tells nothing.

    Nodes that were refused or dropped do not enter. Where the coordinator was away, the time counts from its
    return, and it never goes beyond the deadline: neither a restart nor a suspended machine makes a node slow.
    """
    arrived = sorted(member.waited for member in state.members.values() if member.part is Part.ACCEPTED)
    if len(arrived) < state.opened.quorum and state.open == 0:
        return None  # it failed, but not for lack of time
    all_along = waited(state, min(closed_at, state.deadline))
    times = sorted([*arrived, *[all_along] * state.open])
    quorum = state.opened.quorum
    return Pace(_thinned(times), arrived[quorum - 1] if len(arrived) >= quorum else all_along)


def waited(state: Round, at: float) -> float:
    """For how long the coordinator has waited at this time, in seconds."""
    return max(0.0, at - state.since)


def _thinned(ordered: Sequence[float]) -> tuple[float, ...]:
    if len(ordered) <= ARRIVALS_KEPT:
        return tuple(ordered)
    return tuple(ordered[i * (len(ordered) - 1) // (ARRIVALS_KEPT - 1)] for i in range(ARRIVALS_KEPT))


def allowed_seconds(rules: CohortRules, paces: Sequence[Pace]) -> float:
    """How long a round may take, from how the newest attempts went.

    The largest of: `floor`; median + `patience` x MAD of the arrivals, which suits all but outliers; and twice
    the longest time to a quorum, without which the round fails. Never more than `deadline`.

    The MAD is scaled by 1.4826, so that for normal arrivals `patience` counts standard deviations. An attempt
    that missed its quorum enters with the time it had, so the next one has at least twice as long. Before four
    arrivals are known there is nothing to go by, and the full `deadline` holds.
    """
    arrivals = [arrival for pace in paces for arrival in pace.arrivals]
    if len(arrivals) < 4:
        return rules.deadline
    middle = median(arrivals)
    usual = middle + rules.patience * 1.4826 * median(abs(arrival - middle) for arrival in arrivals)
    enough = 2 * max(pace.quorum for pace in paces)
    return min(rules.deadline, max(rules.floor, usual, enough))
