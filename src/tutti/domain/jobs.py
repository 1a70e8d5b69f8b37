"""The life of a job: decide (may refuse), evolve (total), react (idempotent, so it is also crash recovery).

A shell feeds commands in, writes the events that come out to the log, and only then evolves the state and
carries out what `react` asks for. Killed anywhere, it replays the log and asks `react` again.

`STATUS_AFTER` is the whole life cycle; the table in docs/machines.md is printed from it. Pausing is not a
status of its own: the open round runs to its end, and no further one opens.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum
from heapq import nsmallest
from itertools import islice
from math import ceil
from types import MappingProxyType
from typing import Literal, TypeAlias, assert_never

import msgspec

from tutti.core.codec import ratio_of
from tutti.core.errors import Conflict
from tutti.core.sampling import Pool, cohort_size, sample
from tutti.domain import commands as c
from tutti.domain import events as e
from tutti.domain.events import Digest, JobEvent, NodeId
from tutti.domain.history import Contribution, RoundEnd, RoundSummary, credit, finish, remember
from tutti.domain.metrics import average, fault_of, finite
from tutti.domain.pacing import Tempo, less_work
from tutti.domain.rounds import (
    PACES_KEPT,
    Pace,
    Part,
    Round,
    allowed_seconds,
    due,
    evolve_round,
    open_round,
    pace_of,
)
from tutti.domain.spec import LONGEST, DataSchema, EarlyStopping, JobSpec, Metrics
from tutti.domain.turns import Turn, choose
from tutti.domain.turns import remember as take_turns

Evaluator: TypeAlias = Literal["nodes", "coordinator"]

REFUSALS_KEPT = 16
"""Refusals recorded per round and node; a node that goes on sending is answered, not logged."""

LEFT_OUT_NAMED = 100
"""Nodes that a round's opening names as not asked; of further ones it counts the reasons."""

LEFT_OUT_REASONS = 16
"""Reasons that are counted one by one; a reason may quote a node, so there could be as many as nodes."""

STEPS_KEPT = 4
"""Newest steps from model to model that nodes can fetch, at most."""

LONGEST_REASON = 200
NOT_DRAWN = "not drawn"


class Status(StrEnum):
    INITIALISING = "initialising"  # the initial model is being made
    WAITING = "waiting"  # between rounds: for nodes, for an evaluation, or for somebody to resume
    TRAINING = "training"  # a round is open
    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"


FINAL = frozenset({Status.COMPLETED, Status.STOPPED, Status.FAILED})
_LIVE = tuple(status for status in Status if status not in FINAL)
_IN_ROUND = (e.UpdateAccepted, e.UpdateRefused, e.UpdateLost, e.NodeDropped, e.RoundExtended)

STATUS_AFTER: Mapping[tuple[Status, type[e.Event]], Status] = MappingProxyType(
    {
        (Status.INITIALISING, e.JobInitialised): Status.WAITING,
        (Status.WAITING, e.ModelEvaluated): Status.WAITING,
        (Status.WAITING, e.RoundOpened): Status.TRAINING,
        **{(Status.TRAINING, event): Status.TRAINING for event in _IN_ROUND},
        (Status.TRAINING, e.RoundClosed): Status.WAITING,
        (Status.TRAINING, e.RoundFailed): Status.WAITING,
        (Status.WAITING, e.JobCompleted): Status.COMPLETED,
        **{(status, event): status for status in _LIVE for event in (e.JobPaused, e.JobResumed)},
        **{(status, e.JobStopped): Status.STOPPED for status in _LIVE},
        **{(status, e.JobFailed): Status.FAILED for status in _LIVE},
    }
)


class ModelStep(msgspec.Struct, frozen=True):
    """A blob that leads from the model `base` to the next one."""

    base: Digest
    step: Digest


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job's state, rebuilt from its events.

    Attributes:
        rounds_done: Closed training rounds; the model is the one that the last of them made.
        failures: Failed attempts at the next round.
        evaluations: By round (0 is the initial model) and by who measured.
        best: The measured round with the best steering metric (the earliest of equals), and its value.
        stale: Evaluations since the steering metric last improved.
        stop_early: Why training ends before its last round, if it does.
        past: Every finished attempt; only the newest ones know their members (see domain.history).
        contributions: By node, what went into the models so far.
        paces: How the newest attempts went in time.
        waiting_since: When the job last began to wait for nodes.
        working: Between overlapping rounds, the tasks of nodes that go on with their work.
        steps: From older models to this one, in their order, where the job's models have a codec.
        archive: The blob with its events, once they may be gone from the log.
        turns: When nodes were last asked and how fast they were, where the job prefers fast ones.
    """

    id: str
    spec: JobSpec
    data: DataSchema
    submitted_at: float
    by: str = ""
    status: Status = Status.INITIALISING
    paused: str | None = None
    outcome: str = ""
    parameters: int = 0
    model: Digest = ""
    state: Digest = ""
    initial_model: Digest = ""
    rounds_done: int = 0
    failures: int = 0
    measured_at_end: bool = False
    best: tuple[int, float] | None = None
    stale: int = 0
    stop_early: str | None = None
    round: Round | None = None
    past: tuple[RoundSummary, ...] = ()
    evaluations: Mapping[int, Mapping[Evaluator, Metrics]] = msgspec.field(default_factory=dict)
    contributions: Mapping[NodeId, Contribution] = msgspec.field(default_factory=dict)
    paces: tuple[Pace, ...] = ()
    waiting_since: float = 0.0
    working: Mapping[NodeId, e.RoundOpened] = msgspec.field(default_factory=dict)
    steps: tuple[ModelStep, ...] = ()
    archive: Digest = ""
    turns: Mapping[NodeId, Turn] = msgspec.field(default_factory=dict)

    @property
    def final(self) -> bool:
        return self.status in FINAL

    @property
    def steered_by(self) -> Evaluator:
        """Whose measurements steer early stopping and the choice of the best model."""
        return "coordinator" if self.spec.evaluation.data else "nodes"

    def task_of(self, node: NodeId) -> e.RoundOpened | None:
        """The opening of the round whose model the node has been told to work on and still owes, if any."""
        if self.round is not None and self.round.owes(node):
            return self.round.task_of(node)
        return self.working.get(node)

    def tasks(self) -> Mapping[NodeId, e.RoundOpened]:
        """Such tasks of all nodes that owe an update."""
        if self.round is None:
            return self.working
        return {**self.working, **{node: self.round.task_of(node) for node in self.round.owing}}

    def model_of(self, round: int) -> Digest | None:
        """The digest of the model that a round made (0: the initial one)."""
        if round == 0:
            return self.initial_model or None
        for summary in reversed(self.past):
            if summary.made_model and summary.number == round:
                return summary.model
        return None


def submit(job: str, spec: JobSpec, data: DataSchema, *, now: float, by: str = "") -> e.JobSubmitted:
    return e.JobSubmitted(at=now, job=job, spec=spec, data=data, by=by)


def decide(state: Job, command: c.Command, *, now: float) -> list[JobEvent]:
    """What happens, if anything, when `command` meets `state` at `now`; raises Conflict with the reason."""
    if state.final and not isinstance(command, c.Tick):
        raise Conflict(f"job {state.id} is {state.status}: {state.outcome}")
    match command:
        case c.Initialise(model=model, state=checkpoint, parameters=parameters):
            if state.status is not Status.INITIALISING:
                return []
            return [e.JobInitialised(at=now, model=model, state=checkpoint, parameters=parameters)]
        case c.Open():
            return _open(state, command, now)
        case c.SubmitUpdate():
            return _submit_update(state, command, now)
        case c.RefuseUpdate(node=node, reason=reason):
            return [] if state.round is None else _refuse(state.round, node, reason, now)
        case c.LoseUpdate(node=node, reason=reason):
            round = _member_round(state, node, Part.ACCEPTED)
            return [e.UpdateLost(at=now, round=round.number, node=node, reason=reason)] if round else []
        case c.Drop(node=node, reason=reason):
            round = _member_round(state, node, Part.ASSIGNED)
            return [e.NodeDropped(at=now, round=round.number, node=node, reason=reason)] if round else []
        case c.Extend(reason=reason):
            return _extend(state, reason, now)
        case c.Close():
            return _close(state, command, now)
        case c.RecordEvaluation(round=number, metrics=metrics):
            if "coordinator" in state.evaluations.get(number, {}) or state.status is not Status.WAITING:
                return []
            return [e.ModelEvaluated(at=now, round=number, by="coordinator", metrics=finite(metrics))]
        case c.SkipEvaluation(reason=reason):
            if state.status is not Status.WAITING or next_task(state) != "evaluate":
                return []
            return [_completed(state, now, f"; {reason}")]
        case c.Pause(reason=reason):
            return [] if state.paused is not None else [e.JobPaused(at=now, reason=reason)]
        case c.Resume():
            return [] if state.paused is None else [e.JobResumed(at=now)]
        case c.Stop(reason=reason):
            return [e.JobStopped(at=now, reason=reason)]
        case c.Fail(reason=reason):
            return [e.JobFailed(at=now, reason=reason)]
        case c.Tick():
            return _tick(state, now)
    assert_never(command)


def _member_round(state: Job, node: NodeId, part: Part) -> Round | None:
    """The open round, if the node is in that part of it."""
    member = state.round.members.get(node) if state.round else None
    return state.round if member and member.part is part else None


def _open(state: Job, command: c.Open, now: float) -> list[JobEvent]:
    task = next_task(state)
    if task is None or state.status is not Status.WAITING or state.paused is not None:
        raise Conflict(f"job {state.id} has no round to open: it is {state.status}")
    rules, candidates = state.spec.cohort, Pool.of(command.candidates)
    carried = tuple(sorted(state.working)) if task == "train" else ()
    if any(node in candidates for node in carried):  # asked already
        candidates = Pool(node for node in candidates if node not in state.working)
    needed = rules.min_nodes if task == "train" else 1
    if len(candidates) + len(carried) < needed:
        raise Conflict(f"job {state.id} needs {needed} nodes, {len(candidates)} are ready")
    number = state.rounds_done + 1
    wanted = cohort_size(len(candidates), rules.size, rules.fraction) if task == "train" else len(candidates)
    asked = min(len(candidates), ceil(wanted * (1 + rules.over_select)))
    cohort, drawn = _drawn(state, candidates, asked, number)
    if task == "train" and command.in_turn:
        wanted, cohort = 1, (_next_in_turn(state, candidates),)
    elif task == "train" and command.buffer is not None:
        at_once = cohort_size(len(candidates) + len(carried), rules.size, rules.fraction)
        fresh = min(len(candidates), max(at_once - len(carried), 0))
        cohort = (*carried, *sample(candidates, fresh, seed=state.spec.seed, round=number, attempt=state.failures))
        wanted = min(command.buffer, len(cohort))
    apart = {node: reason for node, reason in command.left_out.items() if node not in carried}
    named, more = _left_out(apart, candidates, frozenset(cohort))
    quorum = min(rules.quorum or rules.min_nodes, wanted) if task == "train" else 1
    return [
        e.RoundOpened(
            at=now,
            round=number,
            attempt=state.failures,
            task=task,
            model=state.model,
            cohort=cohort,
            wanted=wanted,
            quorum=quorum,
            deadline=now + allowed_seconds(rules, state.paces),
            left_out=named,
            left_out_more=more,
            candidates=len(candidates) + len(carried),
            settings=dict(command.settings),
            state=state.state if command.shares_state else "",
            overlaps=task == "train" and command.buffer is not None,
            carried=carried,
            less=less_work(cohort, _tempos(state)) if task == "train" and rules.by_speed else {},
            drawn=drawn,
        )
    ]


def _drawn(state: Job, candidates: Pool, asked: int, round: int) -> tuple[tuple[NodeId, ...], dict[NodeId, str]]:
    """The cohort; and why of those that are in it by more than chance."""
    rules, chance = state.spec.cohort, {"seed": state.spec.seed, "round": round, "attempt": state.failures}
    if not rules.prefer_fast:
        return sample(candidates, asked, **chance), {}
    return choose(candidates, asked, state.turns, prefer=rules.prefer_fast, within=rules.at_least_every, **chance)


def _tempos(state: Job) -> Mapping[NodeId, Tempo]:
    return {node: given.tempo for node, given in state.contributions.items() if given.tempo is not None}


def _next_in_turn(state: Job, candidates: Pool) -> NodeId:
    """The candidate after the node that was asked last, in the order of names; after the last, the first."""
    before = max(state.past[-1].round.opened.cohort) if state.past else ""
    return candidates[bisect_right(candidates, before) % len(candidates)]


def _left_out(
    apart: Mapping[NodeId, str], candidates: Pool, cohort: frozenset[NodeId]
) -> tuple[dict[NodeId, str], dict[str, int]]:
    """Whom to name, those with rare reasons first, and how many more there are of each reason.

    Candidates that are not drawn are counted, and a hundred named, without a look at each of them.
    """
    groups: dict[str, list[NodeId]] = {}
    for node, reason in apart.items():
        groups.setdefault(reason[:LONGEST_REASON], []).append(node)
    sizes = {reason: len(nodes) for reason, nodes in groups.items()}
    if idle := len(candidates) - sum(node in candidates for node in cohort):
        groups[NOT_DRAWN] = list(islice((node for node in candidates if node not in cohort), LEFT_OUT_NAMED))
        sizes[NOT_DRAWN] = idle
    named: dict[NodeId, str] = {}
    unnamed: Counter[str] = Counter()
    for reason in sorted(groups, key=lambda reason: (sizes[reason], reason)):
        chosen = nsmallest(LEFT_OUT_NAMED - len(named), groups[reason])  # of thousands, a hundred are sorted
        named.update(dict.fromkeys(chosen, reason))
        if rest := sizes[reason] - len(chosen):
            unnamed[reason] = rest
    more = dict(unnamed.most_common(LEFT_OUT_REASONS))
    others = unnamed.total() - sum(more.values())
    return dict(sorted(named.items())), {**more, "other reasons": others} if others else more


def _submit_update(state: Job, command: c.SubmitUpdate, now: float) -> list[JobEvent]:
    """Who may submit what, in the order in which a person would ask."""
    round, node = state.round, command.node
    if round is None:
        raise Conflict(f"no round of job {state.id} is open: round {command.round} is over")

    def refuse(reason: str, *, final: bool = False) -> list[JobEvent]:
        return _refuse(round, node, reason, now, final=final)

    member = round.members.get(node)
    if member is None:
        return refuse(f"{node} was not asked in round {round.number}")
    task = round.task_of(node)
    asked_for = (task.round, task.attempt)
    if (command.round, command.attempt) != asked_for:
        return refuse(
            f"the update is for round {command.round} attempt {command.attempt}, "
            f"round {asked_for[0]} attempt {asked_for[1]} is open"
        )
    if member.update is not None:
        again = (
            "the same update came again" if member.update.digest == command.digest else "a second, other update came"
        )
        return refuse(f"{again}; the first one, {member.update.digest[:12]}, is counted, once")
    if member.part is Part.REFUSED:
        return refuse(f"an update of {node} was refused in this round already: {member.reason}")
    if (verdict := due(round, now)) is not None:
        if round.opened.overlaps and verdict.succeeds:
            raise Conflict(f"round {round.number} is closing, the update counts in the next one")
        return refuse(f"too late, round {round.number} is closing: {verdict.reason}")
    if command.fault is not None:
        return refuse(command.fault, final=True)
    if command.weight < 1:
        return refuse(f"the weight is {command.weight}, expected a whole number of examples, 1 or more", final=True)
    if not 0 <= command.seconds <= LONGEST:
        return refuse(f"the work took {command.seconds:g} s, expected 0 to {LONGEST:g} s", final=True)
    if (fault := fault_of(command.metrics)) is not None:
        return refuse(fault, final=True)
    rules = state.spec.cohort
    return [
        e.UpdateAccepted(
            at=now,
            round=round.number,
            node=node,
            digest=command.digest if round.opened.task == "train" else "",
            weight=min(command.weight, rules.largest_weight),
            base=task.round if task is not round.opened else None,
            facts=command.facts,
            metrics=command.metrics,
            seconds=command.seconds,
            bytes=command.bytes,
            codec=command.codec,
            received=command.received,
            signed=command.signed,
        )
    ]


def _refuse(round: Round, node: NodeId, reason: str, now: float, *, final: bool = False) -> list[JobEvent]:
    if not final and sum(refusal.node == node for refusal in round.refusals) >= REFUSALS_KEPT:
        raise Conflict(reason)
    return [e.UpdateRefused(at=now, round=round.number, node=node, reason=reason, final=final)]


def _extend(state: Job, reason: str, now: float) -> list[JobEvent]:
    if state.round is None:
        return []
    opened = state.round.opened
    deadline = now + (opened.deadline - opened.at)
    return [e.RoundExtended(at=now, round=opened.round, deadline=deadline, reason=reason)]


def _close(state: Job, command: c.Close, now: float) -> list[JobEvent]:
    round = state.round
    if round is None or (round.number, round.opened.attempt) != (command.round, command.attempt):
        return []  # closed already: the instruction was carried out twice
    verdict = due(round, now)
    expected = {update.node: update.weight for update in round.accepted}
    if verdict is None or not verdict.succeeds or dict(command.counted) != expected:
        raise Conflict(f"round {round.number} of job {state.id} is not ready to close with these updates")
    most = state.spec.cohort.max_weight
    closed: list[JobEvent] = [
        e.RoundClosed(
            at=now,
            round=round.number,
            attempt=round.opened.attempt,
            reason=verdict.reason,
            model=command.model,
            state=command.state,
            counted=expected,
            shares=dict(command.shares),
            step=command.step,
            metrics=average(round.accepted, "train_", max_weight=most),
            aggregation_seconds=command.seconds,
        )
    ]
    fresh = [update for update in round.accepted if update.base is None]  # others have measured an older model
    if measured := average(fresh, "eval_", max_weight=most):
        closed.append(e.ModelEvaluated(at=now, round=round.number - 1, by="nodes", metrics=measured))
    return closed


def _tick(state: Job, now: float) -> list[JobEvent]:
    if state.round is not None:
        verdict = due(state.round, now)
        if verdict is None or verdict.succeeds:
            return []
        opened = state.round.opened
        failed = e.RoundFailed(at=now, round=opened.round, attempt=opened.attempt, reason=verdict.reason)
        if opened.task == "train" and state.failures + 1 > state.spec.cohort.retries:
            reason = f"round {opened.round} failed {state.failures + 1} times, last: {verdict.reason}"
            return [failed, e.JobFailed(at=now, reason=reason)]
        return [failed]
    if state.status is not Status.WAITING or pending_evaluation(state) is not None:
        return []
    if next_task(state) is None:
        return [_completed(state, now)]
    wait = state.spec.cohort.wait
    if wait is not None and state.paused is None and now >= state.waiting_since + wait:
        rules = state.spec.cohort
        return [e.JobFailed(at=now, reason=f"too few nodes: {rules.min_nodes} are needed, waited {wait:g} s")]
    return []


def _completed(state: Job, now: float, note: str = "") -> e.JobCompleted:
    best = state.best[0] if state.best else state.rounds_done
    model = state.model_of(best) if state.spec.early_stopping else None
    reason = state.stop_early or f"{state.rounds_done} rounds done"
    return e.JobCompleted(at=now, reason=reason + note, model=model or state.model, best_round=best)


# -- what the state implies --------------------------------------------------------------------------


def pending_evaluation(state: Job) -> int | None:
    """The round whose model the coordinator still has to measure before anything else happens."""
    rules, number = state.spec.evaluation, state.rounds_done
    if rules.data is None or "coordinator" in state.evaluations.get(number, {}):
        return None
    last = number >= state.spec.rounds or state.stop_early is not None
    return number if number % rules.every == 0 or last else None


def next_task(state: Job) -> Literal["train", "evaluate"] | None:
    """What the next round is for; None when the job is done."""
    if state.rounds_done < state.spec.rounds and state.stop_early is None:
        return "train"
    measured = state.measured_at_end or not state.spec.evaluation.nodes
    return None if measured else "evaluate"


def nodes_evaluate(state: Job) -> bool:
    """Whether the nodes of the open round measure the model they receive."""
    round, rules = state.round, state.spec.evaluation
    if round is None or not rules.nodes:
        return False
    return round.opened.task == "evaluate" or (round.number - 1) % rules.every == 0


def _steer(state: Job, number: int, metrics: Metrics) -> Job:
    """Early stopping by target and patience (Prechelt 1998), one evaluation at a time."""
    rule = state.spec.early_stopping or EarlyStopping()
    value = metrics.get(rule.metric)
    if value is None:
        return state
    ahead = value if rule.mode == "max" else -value
    best = None if state.best is None else (state.best[1] if rule.mode == "max" else -state.best[1])
    stale = 0 if best is None or ahead > best + rule.min_delta else state.stale + 1
    if best is None or ahead > best:
        state = msgspec.structs.replace(state, best=(number, value))
    return msgspec.structs.replace(
        state, stale=stale, stop_early=state.stop_early or _reason_to_stop(state, rule, number, value, stale)
    )


def _reason_to_stop(state: Job, rule: EarlyStopping, number: int, value: float, stale: int) -> str | None:
    assert state.best is not None
    if rule.target is not None and (value >= rule.target if rule.mode == "max" else value <= rule.target):
        return f"{rule.metric} reached {value:.4g} in round {number}, the target is {rule.target:g}"
    if rule.patience is not None and stale >= rule.patience:
        return f"{rule.metric} has not improved on {state.best[1]:.4g} for {stale} evaluations"
    return None


# -- what the shell owes the job ----------------------------------------------------------------------


def react(state: Job, *, now: float) -> c.Instruction | None:
    """What the shell owes the job now. Asking twice gives the same answer."""
    if state.final:
        return None
    if state.status is Status.INITIALISING:
        return c.MakeInitialModel()
    if state.round is not None:
        verdict = due(state.round, now)
        if verdict is None:
            return c.Assign(state.round.waiting_for)
        return c.Aggregate(state.round.accepted) if verdict.succeeds else None  # a tick records the failure
    if (number := pending_evaluation(state)) is not None:
        return c.EvaluateModel(number, state.model)
    task = next_task(state)
    if task is None or state.paused is not None:
        return None
    return c.GatherCohort(task, state.rounds_done + 1)


def wake_at(state: Job) -> float | None:
    """When time alone changes the job next; None if it never does."""
    if state.round is not None:
        return state.round.deadline
    if state.status is Status.WAITING and state.spec.cohort.wait is not None and state.paused is None:
        return state.waiting_since + state.spec.cohort.wait
    return None


# -- evolve ------------------------------------------------------------------------------------------


class OutOfOrder(AssertionError):
    """An event that the life cycle does not allow here: our own mistake, or a log that somebody edited."""


def begin(event: e.JobSubmitted) -> Job:
    return Job(
        id=event.job,
        spec=event.spec,
        data=event.data,
        submitted_at=event.at,
        by=event.by,
        waiting_since=event.at,
    )


def evolve(state: Job, event: JobEvent) -> Job:
    """The state after an event; raises OutOfOrder for one that STATUS_AFTER does not hold."""
    status = STATUS_AFTER.get((state.status, type(event)))
    if status is None:
        raise OutOfOrder(f"job {state.id} is {state.status}, and {type(event).__name__} came")
    state = msgspec.structs.replace(state, status=status)
    match event:
        case e.JobInitialised(model=model):
            return msgspec.structs.replace(
                state,
                model=model,
                initial_model=model,
                state=event.state,
                parameters=event.parameters,
                waiting_since=event.at,
            )
        case e.RoundOpened():
            working = state.working if event.task == "evaluate" else {}
            return msgspec.structs.replace(state, round=open_round(event, state.working), working=working)
        case e.UpdateAccepted() | e.UpdateRefused() | e.UpdateLost() | e.NodeDropped() | e.RoundExtended():
            assert state.round is not None
            return msgspec.structs.replace(state, round=evolve_round(state.round, event))
        case e.RoundClosed():
            return _after_close(state, event)
        case e.RoundFailed():
            return _after_failure(state, event)
        case e.ModelEvaluated(round=number, by=by, metrics=metrics):
            found = {**state.evaluations.get(number, {}), by: metrics}
            state = msgspec.structs.replace(state, evaluations={**state.evaluations, number: found})
            return _steer(state, number, metrics) if by == state.steered_by else state
        case e.JobPaused(reason=reason):
            return msgspec.structs.replace(state, paused=reason)
        case e.JobResumed():
            return msgspec.structs.replace(state, paused=None, failures=0, waiting_since=event.at)
        case e.JobCompleted(reason=reason, model=model):
            return msgspec.structs.replace(state, outcome=reason, model=model)
        case e.JobStopped() | e.JobFailed():
            return msgspec.structs.replace(_end_round(state, event), outcome=event.reason)
        case e.JobSubmitted():
            raise OutOfOrder(f"job {state.id} was submitted twice")
    assert_never(event)


def _after_close(state: Job, event: e.RoundClosed) -> Job:
    assert state.round is not None
    trained, working, steps = state.round.opened.task == "train", state.working, state.steps
    if trained:
        taken = ModelStep(state.round.opened.model, event.step)
        steps = (*steps, taken)[-most_steps(state.spec) :] if event.step else ()
    if state.round.opened.overlaps and state.rounds_done + 1 < state.spec.rounds:
        working = {node: state.round.task_of(node) for node in state.round.waiting_for}
    state = _end_round(state, event)
    return msgspec.structs.replace(
        state,
        working=working,
        steps=steps,
        contributions=credit(state.contributions, state.past[-1]),
        model=event.model,
        state=event.state,
        rounds_done=state.rounds_done + trained,
        failures=0,
        measured_at_end=state.measured_at_end or not trained,
        waiting_since=event.at,
    )


def most_steps(spec: JobSpec) -> int:
    """As many as are fewer bytes than the model itself."""
    return max(1, min(STEPS_KEPT, int(ratio_of(spec.model_codec)) - 1))


def _after_failure(state: Job, event: e.RoundFailed) -> Job:
    """A failed evaluation is not repeated: the model is there, only its measure is missing."""
    assert state.round is not None
    trained = state.round.opened.task == "train"
    return msgspec.structs.replace(
        _end_round(state, event),
        failures=state.failures + 1 if trained else 0,
        measured_at_end=state.measured_at_end or not trained,
        waiting_since=event.at,
    )


def _end_round(state: Job, event: RoundEnd) -> Job:
    """The state without its open round, if there is one: it is past, and the next deadline goes by its pace."""
    if state.round is None:
        return state
    pace = pace_of(state.round, event.at)
    prefers = state.spec.cohort.prefer_fast and state.round.opened.task == "train"
    return msgspec.structs.replace(
        state,
        turns=take_turns(state.turns, state.round, event.at) if prefers else state.turns,
        round=None,
        past=remember(state.past, finish(state.round, event)),
        paces=(*state.paces, pace)[-PACES_KEPT:] if pace else state.paces,
    )


def archived(state: Job, archive: Digest, events: int, *, now: float) -> e.JobArchived:
    """The fact that a job's events are in a blob; raises Conflict for a job that is not over."""
    if not state.final:
        raise Conflict(f"job {state.id} is {state.status}: only what is over is archived")
    past = tuple(msgspec.structs.replace(each, detail=None, shares={}) for each in state.past)
    kept = msgspec.structs.replace(state, past=past, turns={}, archive=archive)
    return e.JobArchived(at=now, archive=archive, events=events, snapshot=msgspec.json.encode(kept).decode())


def restored(event: e.JobArchived) -> Job:
    """The job as it was archived."""
    return msgspec.json.decode(event.snapshot, type=Job)


def replay(events: Sequence[JobEvent]) -> Job:
    """A job's state from all its events."""
    first, *rest = events
    if not isinstance(first, e.JobSubmitted):
        raise OutOfOrder(f"a job's log begins with JobSubmitted, came {type(first).__name__}")
    state = begin(first)
    for event in rest:
        state = evolve(state, event)
    return state
