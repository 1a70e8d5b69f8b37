"""A compute job, from submission to settlement: what it is, what may happen to it, and what is due next.

    pending --assigned--> assigned --revealed--> completed --judged--> verified
       ^                     |                       |
       +------released-------+-------- wrong --------+          any of them --out of time or attempts--> failed

A job has a slot for each replica; each slot has one attempt at a time. Results are committed to before they are
revealed (`sealing`). What is revealed is *judged*; a wrong result costs its bond and opens the slot again. Once the
job's time is up it is *sealed*: it goes on with those that have committed, and looks for nobody else.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from functools import reduce
from typing import TypeAlias, assert_never

from tutti.core.errors import Conflict
from tutti.domain.market import events as e
from tutti.domain.market.rules import Rules
from tutti.domain.market.sealing import Phase, copied, phase, to_judge, to_reveal

AWAY = "disconnected for "
"""How the reason begins of an attempt whose worker was away for too long."""


class Status(StrEnum):
    """Where a compute job stands. FUNDING: its reward is being put in escrow."""

    FUNDING = "funding"
    PENDING = "pending"
    ASSIGNED = "assigned"
    COMPLETED = "completed"
    VERIFIED = "verified"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One worker's work on one slot. `holds` is None until the result was judged; `over` says why it ended without."""

    number: int
    slot: int
    worker: str
    owner: str
    bond: int
    at: float
    commitment: str = ""
    result: str = ""
    nonce: str = ""
    holds: bool | None = None
    replayed: bool = False
    reason: str = ""
    over: bool = False

    @property
    def live(self) -> bool:
        """Whether it still may give, or has given, a good result."""
        return not self.over and self.holds is not False

    @property
    def lost(self) -> bool:
        """Whether its worker was away, and no more: once it is back it may try again if no other can.

        Who is here and silent may not: it would have all attempts.
        """
        return self.over and not self.commitment and self.reason.startswith(AWAY)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeJob:
    """`expires`: when it is sealed at the latest; `verified`: the attempt whose result it has, and since when."""

    submitted: e.ComputeSubmitted
    funded: bool = False
    sealed: bool = False
    attempts: tuple[Attempt, ...] = ()
    expires: float
    disputed: str = ""
    verified: int | None = None
    verified_at: float = 0.0
    failed: str = ""
    settled: bool = False

    @property
    def id(self) -> str:
        return self.submitted.job

    @property
    def slots(self) -> range:
        """One for each replica; after a dispute, one for the further worker."""
        return range(self.submitted.replicas + bool(self.disputed))

    def share(self, slot: int) -> int:
        """The reward of a slot: equal parts, what is left over goes to the first."""
        part, rest = divmod(self.submitted.reward, self.submitted.replicas)
        return part + rest if slot == 0 else part

    def at(self, slot: int) -> Attempt | None:
        """The live attempt of a slot."""
        return next((a for a in reversed(self.attempts) if a.slot == slot and a.live), None)

    @property
    def live(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.live]

    def attempt(self, number: int) -> Attempt:
        return self.attempts[number - 1]

    @property
    def final(self) -> bool:
        """Verified or failed: no work is left to do, unless somebody disputes the result."""
        return self.verified is not None or bool(self.failed)

    @property
    def status(self) -> Status:
        if self.failed:
            return Status.FAILED
        if self.verified is not None:
            return Status.VERIFIED
        if not self.funded:
            return Status.FUNDING
        live = self.live
        if len(live) == len(self.slots) and all(attempt.result for attempt in live):
            return Status.COMPLETED
        return Status.ASSIGNED if live else Status.PENDING

    def open_slots(self, rules: Rules) -> list[int]:
        """Slots that want a worker."""
        if self.final or self.sealed or not self.funded:
            return []
        return [slot for slot in self.slots if self.at(slot) is None and self._left(slot, rules) > 0]

    def _left(self, slot: int, rules: Rules) -> int:
        return rules.attempts - sum(attempt.slot == slot for attempt in self.attempts)

    def patience(self, rules: Rules) -> float:
        """Seconds that one attempt may take in all, so that there is time for another."""
        return max(rules.lease, self.submitted.seconds / rules.attempts)


# -- commands ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fund:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Assign:
    slot: int
    worker: str
    owner: str
    bond: int
    candidates: int = 0
    share: float = 0.0
    explored: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    worker: str
    attempt: int
    commitment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reveal:
    worker: str
    attempt: int
    result: str
    nonce: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    attempt: int
    holds: bool
    reason: str = ""
    check_seed: int = 0
    measures: dict[str, float] | None = None
    replayed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """End an attempt. With a `phase`, only if it still is in that: what has come meanwhile counts."""

    attempt: int
    reason: str
    ours: bool = False
    phase: Phase | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispute:
    by: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Seal:
    """The job's time is up: no further worker is looked for, and who has not committed cannot any more."""


@dataclass(frozen=True, slots=True)
class Conclude:
    """Look whether the job is over, one way or the other. A `reason` ends it without a result, by nobody's fault."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Settle:
    pass


Command: TypeAlias = Fund | Assign | Commit | Reveal | Judge | Release | Dispute | Seal | Conclude | Settle


def decide(job: ComputeJob, command: Command, rules: Rules, *, now: float) -> list[e.ComputeEvent]:
    """The facts that follow from a command; none if it is true already. Raises Conflict with the reason."""
    match command:
        case Fund():
            return [] if job.funded or job.final else [e.ComputeFunded(at=now)]
        case Assign():
            return _assign(job, command, rules, now)
        case Commit() | Reveal():
            return _hand_in(job, command, rules, now)
        case Judge():
            return _judge(job, command, rules, now)
        case Release(attempt=number, reason=reason, ours=ours, phase=seen):
            attempt = job.attempt(number)
            if not attempt.live or job.final or seen not in (None, phase(job, attempt, rules)):
                return []
            return [e.ComputeReleased(at=now, attempt=number, reason=reason[:500], ours=ours)]
        case Dispute(by=by, reason=reason):
            return _dispute(job, by, reason, now)
        case Seal():
            return [] if job.final or job.sealed or not job.funded else [e.ComputeSealed(at=now)]
        case Conclude():
            return _conclude(job, command, rules, now)
        case Settle():
            if not job.final:
                raise Conflict(f"compute job {job.id} is {job.status}: only what is over can be settled")
            return [] if job.settled else [e.ComputeSettled(at=now)]
    assert_never(command)


def _assign(job: ComputeJob, command: Assign, rules: Rules, now: float) -> list[e.ComputeEvent]:
    if command.slot not in job.open_slots(rules):
        raise Conflict(f"slot {command.slot} of compute job {job.id} wants no worker")
    return [
        e.ComputeAssigned(
            at=now,
            slot=command.slot,
            attempt=len(job.attempts) + 1,
            worker=command.worker,
            owner=command.owner,
            bond=command.bond,
            candidates=command.candidates,
            share=command.share,
            explored=command.explored,
        )
    ]


def _hand_in(job: ComputeJob, command: Commit | Reveal, rules: Rules, now: float) -> list[e.ComputeEvent]:
    number = command.attempt
    if not 1 <= number <= len(job.attempts) or (attempt := job.attempt(number)).worker != command.worker:
        raise Conflict(f"{command.worker} has no attempt {number} at compute job {job.id}")
    if attempt.over or job.final:
        raise Conflict(f"too late: {attempt.reason or f'compute job {job.id} is {job.status}'}")
    if isinstance(command, Commit):
        if attempt.commitment not in ("", command.commitment):
            raise Conflict("another commitment came before: a worker commits to one result")
        if job.sealed and not attempt.commitment:
            raise Conflict(f"too late: compute job {job.id} takes no further commitment")
        commitment = e.ComputeCommitted(at=now, attempt=number, commitment=command.commitment)
        return [] if attempt.commitment else [commitment]
    if number not in to_reveal(job, rules) and not attempt.result:
        raise Conflict("results are shown once all workers have committed to theirs, and not before")
    if attempt.result:
        return []
    return [e.ComputeRevealed(at=now, attempt=number, result=command.result, nonce=command.nonce)]


def _judge(job: ComputeJob, command: Judge, rules: Rules, now: float) -> list[e.ComputeEvent]:
    if command.attempt not in to_judge(job, rules) and not (command.attempt in copied(job) and not command.holds):
        return []
    return [
        e.ComputeJudged(
            at=now,
            attempt=command.attempt,
            holds=command.holds,
            reason=command.reason[:500],
            check_seed=command.check_seed,
            measures=command.measures or {},
            replayed=command.replayed,
        )
    ]


def _dispute(job: ComputeJob, by: str, reason: str, now: float) -> list[e.ComputeEvent]:
    if job.disputed:
        raise Conflict(f"compute job {job.id} was disputed before, by {job.disputed}: that was its one chance")
    if job.verified is None or job.settled or now >= job.verified_at + job.submitted.window:
        raise Conflict(
            f"compute job {job.id} is {job.status}: a result can be disputed for the {job.submitted.window:g} s "
            "of the job's window after it was verified"
        )
    return [e.ComputeDisputed(at=now, by=by, reason=reason[:500])]


def _conclude(job: ComputeJob, command: Conclude, rules: Rules, now: float) -> list[e.ComputeEvent]:
    if job.final:
        return []
    if command.reason:
        return [e.ComputeFailed(at=now, reason=command.reason[:500])]
    if not job.funded or any(a.holds is None for a in job.live) or job.open_slots(rules):
        return []
    good = next((attempt for attempt in job.live if attempt.holds), None)
    if good is not None:
        return [e.ComputeVerified(at=now, attempt=good.number)]
    if job.sealed:
        return [e.ComputeFailed(at=now, reason=f"no result within {job.submitted.seconds:g} s")]
    return [e.ComputeFailed(at=now, reason=f"{rules.attempts} attempts, the last: {job.attempts[-1].reason}")]


# -- events --------------------------------------------------------------------------------------------


def begin(event: e.ComputeSubmitted) -> ComputeJob:
    return ComputeJob(submitted=event, expires=event.at + event.seconds)


def evolve(job: ComputeJob, event: e.ComputeEvent) -> ComputeJob:
    """The job after an event; total."""
    match event:
        case e.ComputeSubmitted():
            return begin(event)
        case e.ComputeFunded():
            return replace(job, funded=True)
        case e.ComputeAssigned(slot=slot, attempt=number, worker=worker, owner=owner, bond=bond, at=at):
            made = Attempt(number=number, slot=slot, worker=worker, owner=owner, bond=bond, at=at)
            return replace(job, attempts=(*job.attempts, made))
        case e.ComputeCommitted(attempt=number, commitment=commitment):
            return _with(job, number, commitment=commitment)
        case e.ComputeRevealed(attempt=number, result=result, nonce=nonce):
            return _with(job, number, result=result, nonce=nonce)
        case e.ComputeJudged(attempt=number, holds=holds, reason=reason, replayed=replayed):
            return _with(job, number, holds=holds, reason=reason, replayed=replayed)
        case e.ComputeReleased(attempt=number, reason=reason):
            return _with(job, number, over=True, reason=reason)
        case e.ComputeDisputed(by=by, at=at):
            doubted = tuple(replace(a, holds=None) if a.holds else a for a in job.attempts)
            expires = max(job.expires, at + job.submitted.seconds)
            return replace(job, disputed=by, attempts=doubted, verified=None, sealed=False, expires=expires)
        case e.ComputeSealed():
            return replace(job, sealed=True)
        case e.ComputeVerified(attempt=number, at=at):
            return replace(job, verified=number, verified_at=at)
        case e.ComputeFailed(reason=reason):
            return replace(job, failed=reason)
        case e.ComputeSettled():
            return replace(job, settled=True)
    assert_never(event)


def _with(job: ComputeJob, number: int, **changes: object) -> ComputeJob:
    changed = replace(job.attempts[number - 1], **changes)  # type: ignore[arg-type]  # fields of Attempt
    return replace(job, attempts=(*job.attempts[: number - 1], changed, *job.attempts[number:]))


def replay(events: list[e.ComputeEvent]) -> ComputeJob:
    first, *rest = events
    assert isinstance(first, e.ComputeSubmitted)
    return reduce(evolve, rest, begin(first))


# -- what is due ---------------------------------------------------------------------------------------


def due(job: ComputeJob) -> float:
    """When somebody has to look at the job again, whatever happens until then."""
    if job.settled or (job.sealed and not job.final):
        return float("inf")
    return job.verified_at + job.submitted.window if job.verified is not None else job.expires


def at_risk(job: ComputeJob) -> list[Attempt]:
    """Attempts whose bonds are locked: of work that goes on, and of wrong results that are not paid for yet."""
    return [] if job.settled else [attempt for attempt in job.attempts if not attempt.over]
