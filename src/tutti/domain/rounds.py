"""One attempt at one round, as a value: who was asked, what came of it, and when it is due to close."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from statistics import median
from typing import assert_never

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


class Part(StrEnum):
    """What became of one node of the cohort."""

    ASSIGNED = "assigned"
    ACCEPTED = "accepted"
    REFUSED = "refused"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class Member:
    part: Part = Part.ASSIGNED
    reason: str = ""
    update: UpdateAccepted | None = None


@dataclass(frozen=True, slots=True)
class Round:
    """An open round. `members` holds the cohort only; `refusals` also names strangers and latecomers."""

    opened: RoundOpened
    members: Mapping[NodeId, Member]
    deadline: float
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
        return tuple(node for node, member in sorted(self.members.items()) if member.part is Part.ASSIGNED)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A round that is due: whether it succeeds, and why it closes now."""

    succeeds: bool
    reason: str


def open_round(event: RoundOpened) -> Round:
    return Round(event, {node: Member() for node in event.cohort}, event.deadline, len(event.cohort))


RoundEvent = UpdateAccepted | UpdateRefused | UpdateLost | NodeDropped | RoundExtended


def evolve_round(state: Round, event: RoundEvent) -> Round:
    """The round after an event. Total: the fact is in the log already."""
    match event:
        case UpdateAccepted():
            return _with(state, event.node, Member(Part.ACCEPTED, update=event))
        case UpdateRefused():
            state = replace(state, refusals=(*state.refusals, event))
            return _with(state, event.node, Member(Part.REFUSED, event.reason)) if event.final else state
        case UpdateLost():
            return _with(state, event.node, Member(reason=event.reason))
        case NodeDropped():
            return _with(state, event.node, Member(Part.DROPPED, event.reason))
        case RoundExtended():
            return replace(state, deadline=event.deadline)
    assert_never(event)


def _with(state: Round, node: NodeId, member: Member) -> Round:
    before = state.members[node].part
    return replace(
        state,
        members={**state.members, node: member},
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
        silent = ", ".join(state.waiting_for)
        if came >= opened.quorum:
            return Verdict(True, f"deadline, {came} counted, without {silent}")
        return Verdict(False, f"deadline: {came} updates, quorum is {opened.quorum}; silent: {silent}")
    return None


def allowed_seconds(rules: CohortRules, arrivals: Sequence[float]) -> float:
    """How long a round may take: median + patience x MAD of past arrivals, between `floor` and `deadline`.

    The MAD is scaled by 1.4826, so that for normal arrivals `patience` counts standard deviations. Under
    four arrivals there is nothing to go by, and the full `deadline` holds.
    """
    if len(arrivals) < 4:
        return rules.deadline
    middle = median(arrivals)
    spread = 1.4826 * median(abs(arrival - middle) for arrival in arrivals)
    return min(rules.deadline, max(rules.floor, middle + rules.patience * spread))


@dataclass(frozen=True, slots=True)
class RoundSummary:
    """A finished attempt, kept for `tutti why` and the history."""

    round: Round
    closed_at: float
    succeeded: bool
    reason: str
    model: str = ""
    counted: Mapping[NodeId, int] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
