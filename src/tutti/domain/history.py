"""What a job remembers of its past: the newest attempts in full, of the older ones nothing that grows with the cohort.

The log has it all: `attempts_at` rebuilds any attempt in full from the job's events.
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec

from tutti.domain.events import (
    Digest,
    JobEvent,
    JobFailed,
    JobStopped,
    NodeDropped,
    NodeId,
    RoundClosed,
    RoundExtended,
    RoundFailed,
    RoundOpened,
    UpdateAccepted,
    UpdateLost,
    UpdateRefused,
)
from tutti.domain.pacing import Tempo
from tutti.domain.rounds import Round, evolve_round, open_round
from tutti.domain.spec import Metrics

KEPT_IN_FULL = 8
"""Newest attempts of which a job still knows every member."""

RoundEnd: TypeAlias = RoundClosed | RoundFailed | JobStopped | JobFailed


class RoundSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A finished attempt at a round.

    Attributes:
        base: The model that it started from.
        cohort: How many nodes were asked.
        accepted: How many updates were accepted; in an attempt that succeeded, all of them count.
        bytes: Size of the accepted updates.
        received: Bytes of models, whole or in steps, that nodes say they were sent; `untold` nodes said nothing.
        detail: The attempt itself, member by member; None for all but the newest.
        shares: Of the nodes in what was made, where the reducer weighed updates anew; known as long as `detail` is.
    """

    number: int
    attempt: int
    task: Literal["train", "evaluate"]
    base: Digest
    opened_at: float
    deadline: float
    closed_at: float
    wanted: int
    quorum: int
    cohort: int
    accepted: int
    bytes: int
    received: int = 0
    untold: int = 0
    succeeded: bool
    reason: str
    model: Digest = ""
    metrics: Metrics = msgspec.field(default_factory=dict)
    detail: Round | None = None
    shares: Mapping[NodeId, float] = msgspec.field(default_factory=dict)

    @property
    def round(self) -> Round:
        """The attempt itself; ask only the newest, or what `attempts_at` has rebuilt."""
        assert self.detail is not None, f"round {self.number} is not kept in full any more: read it from the log"
        return self.detail

    @property
    def counted(self) -> Mapping[NodeId, int]:
        """Whose update counted, and its weight; as with `round`, not known of old attempts."""
        return {update.node: update.weight for update in self.round.accepted} if self.succeeded else {}

    @property
    def made_model(self) -> bool:
        return self.succeeded and self.task == "train"


def finish(round: Round, event: RoundEnd) -> RoundSummary:
    """The summary of an attempt, in full, that this event ends."""
    opened, accepted = round.opened, round.accepted
    told = [update.received for update in accepted if update.received is not None]
    closed = event if isinstance(event, RoundClosed) else None
    return RoundSummary(
        number=opened.round,
        attempt=opened.attempt,
        task=opened.task,
        base=opened.model,
        opened_at=opened.at,
        deadline=round.deadline,
        closed_at=event.at,
        wanted=opened.wanted,
        quorum=opened.quorum,
        cohort=len(round.members),
        accepted=len(accepted),
        bytes=sum(update.bytes for update in accepted),
        received=sum(told),
        untold=len(round.members) - len(told),
        succeeded=closed is not None,
        reason=event.reason,
        model=closed.model if closed else "",
        metrics=closed.metrics if closed else {},
        detail=round,
        shares=closed.shares if closed else {},
    )


def remember(past: tuple[RoundSummary, ...], newest: RoundSummary) -> tuple[RoundSummary, ...]:
    """The past with one more attempt; the detail of the one that has grown old is forgotten."""
    past = (*past, newest)
    if len(past) <= KEPT_IN_FULL:
        return past
    old = msgspec.structs.replace(past[-KEPT_IN_FULL - 1], detail=None, shares={})
    return (*past[: -KEPT_IN_FULL - 1], old, *past[-KEPT_IN_FULL:])


def attempts_at(events: Iterable[JobEvent], rounds: Container[int]) -> list[RoundSummary]:
    """Every finished attempt at these rounds in full, in order, from a job's events.

    Events of other rounds may be missing.
    """
    found: list[RoundSummary] = []
    round: Round | None = None
    for event in events:
        match event:
            case RoundOpened(round=number):
                round = open_round(event) if number in rounds else None
            case UpdateAccepted() | UpdateRefused() | UpdateLost() | NodeDropped() | RoundExtended() if round:
                round = evolve_round(round, event)
            case RoundClosed() | RoundFailed() | JobStopped() | JobFailed() if round:
                found.append(finish(round, event))
                round = None
            case _:
                pass
    return found


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one node gave to a job: the sums over those of its updates that made models, and the newest's round.

    `seconds` is what it says it worked, `waited` how long the coordinator waited for it; `tempo` is the newest's.
    """

    updates: int = 0
    weight: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    bytes: int = 0
    first_at: float = 0.0
    last_at: float = 0.0
    round: int = 0
    tempo: Tempo | None = None

    def plus(self, update: UpdateAccepted, waited: float, share: float) -> "Contribution":
        return Contribution(
            self.updates + 1,
            self.weight + update.weight,
            self.seconds + update.seconds,
            self.waited + waited,
            self.bytes + update.bytes,
            self.first_at if self.updates else update.at,
            update.at,
            update.round,
            Tempo(update.seconds, waited, share),
        )


def is_in(shares: Mapping[NodeId, float], node: NodeId) -> bool:
    """Whether the update of a node that was counted is in the model: a robust reducer may have left it out."""
    return not shares or shares.get(node, 0.0) > 0


def credit(given: Mapping[NodeId, Contribution], made: RoundSummary) -> Mapping[NodeId, Contribution]:
    """The contributions after one more attempt, in full, if it made a model. Who was left out has given nothing."""
    if not made.made_model:
        return given
    members, less = made.round.members, made.round.opened.less
    new = {
        update.node: given.get(update.node, Contribution()).plus(
            update, members[update.node].waited, less.get(update.node, 1.0)
        )
        for update in made.round.accepted
        if is_in(made.shares, update.node)
    }
    return {**given, **new}
