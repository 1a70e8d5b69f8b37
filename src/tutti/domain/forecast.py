"""What a job will take, before it starts: time, bytes, memory, energy; and what it took, in the same terms.

The cohorts of a forecast are those that the job's seed will draw, as long as the same nodes are there. A round takes as
long as its last wanted update. Failures are not foreseen: a forecast is for a job that goes well.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, inf, prod
from statistics import median
from typing import Literal, TypeAlias

import msgspec

from tutti.core.codec import NONE, ratio_of
from tutti.core.reduce import reducers
from tutti.core.sampling import Pool, cohort_size, sample
from tutti.domain.events import NodeId
from tutti.domain.jobs import Job, most_steps
from tutti.domain.spec import DataSchema, JobSpec, Training

WATTS = 10.0
"""What a node draws while it computes, where nobody has said: a laptop's processor core."""

JOULES_PER_MEGABYTE = 1.0
"""What moving data takes, where nobody has said; estimates of fixed networks range from 0.2 to 20 J/MB."""

OVERHEAD_SECONDS = 0.05
"""What a task takes beside computing and transfers, where nothing was measured."""

WORK_PER_SECOND = 2e9
"""Parameters times examples that a node trains in a second, where nothing was measured; and at most MOST_EXAMPLES."""

MOST_EXAMPLES = 20_000.0
BYTES_PER_PARAMETER = 4
UPDATES_AT_ONCE = 16
SAMPLED_ROUNDS = 64
"""Rounds whose cohorts are drawn; of a longer job every n-th stands for those around it."""

Basis: TypeAlias = Literal["measured", "scaled", "assumed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast one node is, for one model.

    Attributes:
        speed: Examples a second that it trains on; it measures three times as fast.
        overhead: Seconds that a task takes beside computing, and beside transfers at `up` and `down` bytes a second.
        basis: Whether this model was timed on this node, another one was, or none.
    """

    examples: int
    held_out: int = 0
    speed: float
    overhead: float = OVERHEAD_SECONDS
    up: float = inf
    down: float = inf
    basis: Basis = "measured"


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """What a job will take.

    Attributes:
        seconds: From its first round to its end.
        updates: How many will count.
        bytes_up: Parameters sent by nodes, in bytes, about as few as their codec makes of them; `bytes_down`, to them,
            by the steps that those will hold whose turn comes again in time. Headers and messages come on top.
        coordinator_memory: Bytes that aggregation needs at most, beside what the coordinator itself takes.
        node_memory: Bytes for parameters, optimizer and rows on the largest node; activations come on top.
        joules: Of computing at `watts` and moving data.
        nodes: How many could take part; `measured` of them have trained this model before, `scaled` another one.
        notes: What the forecast had to assume.
    """

    seconds: float
    rounds: int
    updates: int
    parameters: int
    bytes_up: int
    bytes_down: int
    coordinator_memory: int
    node_memory: int
    joules: float
    watts: float
    nodes: int
    measured: int
    scaled: int
    notes: list[str] = []


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a job took so far, in the terms of its forecast."""

    seconds: float
    updates: int
    bytes_up: int
    bytes_down: int
    joules: float


def forecast(
    spec: JobSpec,
    data: DataSchema,
    parameters: int,
    paces: Mapping[NodeId, Pace],
    *,
    watts: float = WATTS,
    joules: float = JOULES_PER_MEGABYTE,
    slots: int = 0,
) -> Forecast:
    """What a job with so many parameters takes on these nodes; `slots` is that of its strategy's state.

    Where the job waits for more nodes than there are, the others are taken to be like the middle of these.
    """
    notes = []
    if (short := spec.cohort.min_nodes - len(paces)) > 0:
        notes.append(f"{spec.cohort.min_nodes} nodes are needed, {len(paces)} are ready: the others are assumed")
        paces = {**paces, **{f"assumed-{number}": _middle(paces, parameters) for number in range(1, short + 1)}}
    if assumed := sum(pace.basis == "assumed" for pace in paces.values()):
        notes.append(f"of {assumed} nodes no speed is known: it is assumed")
    size = BYTES_PER_PARAMETER * parameters
    sent = ceil(size / ratio_of(spec.codec))
    wanted = cohort_size(len(paces), spec.cohort.size, spec.cohort.fraction)
    asked = min(len(paces), ceil(wanted * (1 + spec.cohort.over_select)))
    fetched = _fetched(spec, size, asked / len(paces))
    each = {node: _Task(spec, fetched, sent, pace) for node, pace in paces.items()}
    seconds, computing = _training(spec, each, wanted, asked)
    down = size * asked + fetched * (spec.rounds - 1) * asked
    if spec.evaluation.nodes:  # the last model is measured by all
        seconds += max(task.measuring for task in each.values())
        computing += sum(task.measured for task in each.values())
        down += fetched * len(each)
    if asked > wanted:
        notes.append(f"{asked - wanted} more nodes are asked in each round: what they send in vain is not counted")
    if spec.cohort.prefer_fast:
        notes.append("cohorts will prefer nodes that answer fast: here they are drawn by chance")
    updates = spec.rounds * wanted
    return Forecast(
        seconds=seconds,
        rounds=spec.rounds,
        updates=updates,
        parameters=parameters,
        bytes_up=sent * updates,
        bytes_down=round(down),
        coordinator_memory=_coordinator_memory(spec, parameters, asked, slots),
        node_memory=_node_memory(spec.training, data, parameters, max(pace.examples for pace in paces.values())),
        joules=watts * computing + joules * (sent * updates + down) / 1e6,
        watts=watts,
        nodes=len(paces),
        measured=sum(pace.basis == "measured" for pace in paces.values()),
        scaled=sum(pace.basis == "scaled" for pace in paces.values()),
        notes=notes,
    )


class _Task:
    """Seconds of one node's tasks: `training` and `measuring` in all, `trained` and `measured` of computing."""

    def __init__(self, spec: JobSpec, fetched: float, sent: int, pace: Pace) -> None:
        batch = spec.training.batch_size or 32
        self.trained = trained_rows(pace.examples, spec.training, batch) / pace.speed
        self.measured = pace.held_out / (3 * pace.speed)
        if spec.evaluation.nodes:
            self.trained += self.measured / spec.evaluation.every
        self.training = pace.overhead + fetched / pace.down + self.trained + sent / pace.up
        self.measuring = pace.overhead + fetched / pace.down + self.measured


def _fetched(spec: JobSpec, size: int, share: float) -> float:
    """Bytes of a model that a node is sent in a round, of which `share` take part: after j rounds, j steps or all."""
    if spec.model_codec == NONE:
        return size
    step = size / ratio_of(spec.model_codec)
    again = [share * (1 - share) ** (j - 1) for j in range(1, most_steps(spec) + 1)]  # after exactly j rounds
    return sum(chance * min(size, j * step) for j, chance in enumerate(again, start=1)) + (1 - sum(again)) * size


def _training(spec: JobSpec, each: Mapping[NodeId, _Task], wanted: int, asked: int) -> tuple[float, float]:
    """Seconds of all training rounds, and of computing in them."""
    step = max(1, spec.rounds // SAMPLED_ROUNDS)
    drawn, pool = range(1, spec.rounds + 1, step), Pool.of(each)
    seconds = computing = 0.0
    for round in drawn:
        tasks = [each[node] for node in sample(pool, asked, seed=spec.seed, round=round, attempt=0)]
        in_order = sorted(tasks, key=lambda task: task.training)
        seconds += min(spec.cohort.deadline, in_order[wanted - 1].training)
        computing += sum(task.trained for task in in_order[:wanted])
    share = spec.rounds / len(drawn)
    return seconds * share, computing * share


def trained_rows(examples: int, training: Training, batch_size: int) -> int:
    """How many rows go through the model in one task."""
    rows = examples * training.epochs
    return rows if training.max_steps is None else min(rows, training.max_steps * batch_size)


def assumed_speed(parameters: int) -> float:
    """Examples a second of a node that nobody has timed."""
    return min(MOST_EXAMPLES, WORK_PER_SECOND / max(1, parameters))


def _middle(paces: Mapping[NodeId, Pace], parameters: int) -> Pace:
    if not paces:
        return Pace(examples=1000, speed=assumed_speed(parameters), basis="assumed")
    known = list(paces.values())
    return Pace(
        examples=round(median(pace.examples for pace in known)),
        held_out=round(median(pace.held_out for pace in known)),
        speed=median(pace.speed for pace in known),
        overhead=median(pace.overhead for pace in known),
        up=median(pace.up for pace in known),
        down=median(pace.down for pace in known),
        basis="assumed",
    )


def _coordinator_memory(spec: JobSpec, parameters: int, cohort: int, slots: int) -> int:
    """Sums in 64 bits; the strategy's state before and after, and its files; the updates that are being added.

    A reducer that is not linear keeps every update of the cohort.
    """
    state = 4 * (1 + slots)
    linear = reducers.build(spec.reducer).linear
    updates = 4 * (min(cohort, UPDATES_AT_ONCE) if linear else cohort)
    return parameters * (8 + 4 + 2 * state + 4 + state + updates)


def _node_memory(training: Training, data: DataSchema, parameters: int, examples: int) -> int:
    """The file received and its parameters, the local model, gradients, optimizer, update and its file; the rows."""
    moments = 2 if training.optimizer == "adam" else int(training.momentum > 0)
    rows = examples * (4 * prod(data.shape) + (8 if data.task == "classification" else 4 * data.outputs))
    return BYTES_PER_PARAMETER * parameters * (6 + moments) + rows


def usage(job: Job, *, watts: float = WATTS, joules: float = JOULES_PER_MEGABYTE) -> Usage:
    """What a job took so far, from its own events. Work that did not count is in `bytes_down` only.

    Nodes say how many bytes of models they were sent; of those that do not, a whole model is counted.
    """
    size = BYTES_PER_PARAMETER * job.parameters
    up = sum(past.bytes for past in job.past)
    down = sum(past.received + size * past.untold for past in job.past)
    computing = sum(given.seconds for given in job.contributions.values())
    began = min((past.opened_at for past in job.past), default=0.0)
    ended = max((past.closed_at for past in job.past), default=0.0)
    return Usage(
        seconds=ended - began,
        updates=sum(past.accepted for past in job.past if past.made_model),
        bytes_up=up,
        bytes_down=down,
        joules=watts * computing + joules * (up + down) / 1e6,
    )
