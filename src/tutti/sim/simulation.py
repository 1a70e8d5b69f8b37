"""Drives one job through its own machine (domain.jobs), synchronously: asks `react` what is owed, and does it.

Everything that decides is the deployment's: the job machine, the strategy and its exact reducer, the seeds of
nodes and cohorts, the schedules and the trainers. So the same job on the same parts gives the same model, bit for
bit, as long as the engine computes what the trainer computes (see `tutti.sim.engines`).

Simulated time stands still while a cohort works: nobody is late, and no deadline passes. Where more nodes work than
a round wants updates, who comes first is drawn by the job's seed; in overlapping rounds the others go on.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
import numpy as np

from tutti.adapters._imports import importable, listed
from tutti.adapters.workbench import own_update, rows_of_own
from tutti.core.codec import AUTO
from tutti.core.errors import UserError
from tutti.core.local import Demand, Handed, Memory, Request
from tutti.core.params import Params
from tutti.core.reduce import BadUpdate, Reducer, Update
from tutti.core.sampling import Pool, node_seed
from tutti.core.schedules import schedules
from tutti.core.strategy import ServerState, folded
from tutti.domain import commands as c
from tutti.domain import events as e
from tutti.domain import jobs
from tutti.domain.events import Digest, NodeId
from tutti.domain.jobs import Job
from tutti.domain.spec import BadSpec, JobSpec, Metrics, check_composition, load_spec, strategy_of
from tutti.ports.training import Task, models
from tutti.services.driver import own_task
from tutti.services.work import Diverged, check_finite, measure, reported
from tutti.sim import checkpoint as saved
from tutti.sim.engines.choose import DEMANDS, choose
from tutti.sim.engines.port import Engine, Failed, Trained
from tutti.sim.federation import Federation
from tutti.sim.halves import NodeHalves, Order
from tutti.sim.history import Header, History, RoundRecord, measured, record, records
from tutti.wire import tensors

DEFAULT_BATCH = 32
SAVE_SECONDS = 1.0
"""An interrupted run loses about this much work, or more where saving would take over a twentieth of the time."""


def simulate(
    job: JobSpec | Mapping[str, Any],
    federation: Federation,
    *,
    engine: str | Engine = "auto",
    batch_size: int = DEFAULT_BATCH,
    checkpoint: Path | None = None,
    watch: Callable[[RoundRecord], None] | None = None,
    allow_modules: Sequence[str] = (),
) -> History:
    """Run a job on a simulated federation.

    Args:
        engine: A name with its options (`tutti.sim.engines.engines`), or an Engine; `auto` takes the fastest that fits.
        batch_size: What nodes choose where the job leaves it to them.
        checkpoint: A file from which an interrupted run goes on, and which is written now and then.
        watch: Called with every round, the initial model (round 0) first, once it is measured: where only nodes do
            that, they do it in the next round.
        allow_modules: Glob patterns of Python modules that the job's model may name to be imported.

    Raises UserError for a job that cannot run on this federation.
    """
    spec = job if isinstance(job, JobSpec) else load_spec(job)
    with importable((*listed(), *allow_modules)):
        simulation = Simulation(spec, federation, engine, batch_size, watch or (lambda _: None))
        try:
            return simulation.run(checkpoint)
        finally:
            simulation.engine.close()


@dataclass(slots=True)
class _Fold:
    """The accumulator of the open attempt, when it was opened, and what nodes keep of it if it closes."""

    accumulator: Any
    began: float
    kept: dict[NodeId, Memory] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Sound:
    """Where an interrupted run goes on: how many events, and what there was then."""

    events: int
    server: ServerState | None
    models: dict[Digest, Params]
    memory: dict[NodeId, Memory]


class Simulation:
    """One run. `events` are all that happened so far, `server` is the strategy's state after the last round."""

    def __init__(
        self,
        spec: JobSpec,
        federation: Federation,
        engine: str | Engine,
        batch_size: int,
        watch: Callable[[RoundRecord], None],
    ) -> None:
        _check(spec, federation)
        federation = federation.normalized() if spec.normalize else federation
        self.spec, self.federation = spec, federation
        self._pool = Pool.of(federation.nodes)
        self._strategy = strategy_of(spec)
        self._factor = schedules.build(spec.training.lr_schedule)
        self._trainer = models.build(spec.model, data=federation.schema)
        self._batch_size = spec.training.batch_size or batch_size
        self.engine = choose(engine, spec, self._trainer, federation) if isinstance(engine, str) else engine
        _check_engine(self.engine, spec, self._strategy.local.demand)
        self._local = NodeHalves(self._strategy, spec.codec, self.engine, self._trainer, federation)
        self._watch, self._watched = watch, -1
        self._late = spec.evaluation.nodes and spec.evaluation.data is None
        self._unmeasured: RoundRecord | None = None
        self._before, self._began, self._now = 0.0, perf_counter(), 0.0
        self._seconds: dict[int, float] = {}
        self._fold: _Fold | None = None
        self._models: dict[Digest, Params] = {}
        self._server: ServerState | None = None
        self._memory: dict[NodeId, Memory] = {}
        self._sound = _Sound(1, None, {}, {})
        submitted = jobs.submit(spec.name, spec, federation.schema, now=0.0)
        self.events: list[e.JobEvent] = [submitted]
        self.job: Job = jobs.begin(submitted)

    @property
    def server(self) -> ServerState:
        assert self._server is not None, "the job is initialised first"
        return self._server

    def run(self, checkpoint: Path | None) -> History:
        """To the end of the job, going on from the checkpoint if there is one."""
        if checkpoint is not None and checkpoint.exists():
            self._restore(saved.load(checkpoint, self._identity()))
        due = perf_counter() + SAVE_SECONDS
        try:
            while not self.job.final:
                self._step()
                if self.job.round is None:
                    self._sound = _Sound(len(self.events), self._server, dict(self._models), dict(self._memory))
                if checkpoint is not None and (began := perf_counter()) >= due:
                    saved.save(checkpoint, self._progress())
                    due = perf_counter() + max(SAVE_SECONDS, 20 * (perf_counter() - began))
        finally:
            if checkpoint is not None:
                saved.save(checkpoint, self._progress())
        self._tell()
        return self._history()

    # -- the machine -------------------------------------------------------------------------------------

    def _step(self) -> None:
        if self._command(c.Tick()):
            return
        match jobs.react(self.job, now=self._now):
            case c.MakeInitialModel():
                self._initialise()
            case c.EvaluateModel(round=number):
                self._evaluate(number)
            case c.GatherCohort():
                self._open()
            case c.Assign(nodes=nodes):
                self._work(nodes)
            case c.Aggregate(updates=updates):
                self._close(updates)
            case None:
                raise AssertionError(f"job {self.job.id} is {self.job.status} and waits for nothing")

    def _command(self, command: c.Command) -> bool:
        """Carry out a command; False if nothing came of it."""
        events = jobs.decide(self.job, command, now=self._now)
        self._record(events)
        return bool(events)

    def _record(self, events: Iterable[e.JobEvent]) -> None:
        for event in events:
            self.events.append(event)
            self.job = jobs.evolve(self.job, event)

    # -- what react asks for -----------------------------------------------------------------------------

    def _initialise(self) -> None:
        params = self._trainer.init(self.spec.seed)
        self._zero(params, 1)  # raises if they cannot be summed
        self._server = self._strategy.init(params)
        digest = self._keep(params)
        self._command(c.Initialise(model=digest, state=digest, parameters=params.layout.size))

    def _evaluate(self, number: int) -> None:
        source = self.spec.evaluation.data
        assert source is not None
        metrics = self._trainer.evaluate(
            self.server.params, rows_of_own("evaluation.data", source, self.federation.schema)
        )
        self._command(c.RecordEvaluation(round=number, metrics=metrics))

    def _open(self) -> None:
        self._tell()
        began, self._now = perf_counter(), self._elapsed()
        wish = c.Open(
            candidates=self._pool,
            settings=self._strategy.configure(self.server),
            shares_state=self._strategy.shares_slots,
            in_turn=self._strategy.in_turn,
            buffer=self._strategy.asynchrony.buffer if self._strategy.asynchrony else None,
        )
        opened, *_ = jobs.decide(self.job, wish, now=self._now)
        assert isinstance(opened, e.RoundOpened)
        self._record([_without_bystanders(opened)])
        self._fold = _Fold(self._zero(self.server.params, len(opened.cohort)), began)

    def _zero(self, params: Params, updates: int) -> Any:
        layout = params.layout.with_vectors(self._strategy.local.vectors)
        return self._strategy.reducer.zero(layout, updates, self.spec.cohort.largest_weight)

    def _work(self, nodes: tuple[NodeId, ...]) -> None:
        assert self.job.round is not None
        opened = self.job.round.opened
        if opened.task == "evaluate":
            for node in nodes:
                self._submit(node, len(self.federation.held_out[node]), self._measured(node))
            return
        wanted = _in_seeded_order(opened, self.spec.seed, nodes)[: opened.wanted - self.job.round.came]
        tasks = {node: self.job.round.task_of(node) for node in wanted}
        for task in sorted({id(task): task for task in tasks.values()}.values(), key=lambda task: task.round):
            mine = [node for node in wanted if tasks[node] is task]
            server = self.server if task is opened else replace(self.server, params=self._models[task.model])
            for result, handed in self._local.work(self._orders(task, mine), server):
                self._receive(result, handed)

    def _orders(self, told: e.RoundOpened, nodes: list[NodeId]) -> dict[NodeId, Order]:
        lr, batch = self.spec.training.lr * self._factor(told.round, self.spec.rounds), self._batch_size
        return {
            node: Order(
                Task(self.spec.training, node_seed(self.spec.seed, told.round, node), batch, lr),
                told.settings,
                self._memory.get(node, {}),
            )
            for node in nodes
        }

    def _receive(self, result: Trained | Failed, handed: Handed | None) -> None:
        """Fold an update in, or record why not."""
        if isinstance(result, Failed) or handed is None:
            assert isinstance(result, Failed)
            self._command(c.Drop(node=result.node, reason=result.reason))
            return
        trained = reported(result.metrics, result.examples, self._batch_size)
        metrics = {**self._measured(result.node), **trained}
        self._submit(result.node, result.examples, metrics, handed, result.seconds)

    def _measured(self, node: NodeId) -> Metrics:
        """What the node measures on its held-out rows before it trains."""
        if not jobs.nodes_evaluate(self.job):
            return {}
        model, personal = self.server.params, self._strategy.local.personal
        if personal is not None:
            model = personal(Request(model, memory=self._memory.get(node, {})))
        return measure(model, self.federation.measured_on(node), self._trainer)

    def _submit(
        self, node: NodeId, weight: int, metrics: Metrics, handed: Handed | None = None, seconds: float = 0.0
    ) -> None:
        assert self.job.round is not None
        opened = self.job.round.opened
        told = self.job.round.task_of(node)
        if opened.task == "evaluate" and not metrics:
            self._command(c.Drop(node=node, reason="holds out no rows to measure a model on"))
            return

        def judged(fault: str | None = None) -> list[e.JobEvent]:
            command = c.SubmitUpdate(
                round=told.round,
                attempt=told.attempt,
                node=node,
                digest="",
                weight=weight,
                facts=dict(handed.facts) if handed else {},
                metrics={name: float(value) for name, value in metrics.items() if isfinite(value)},
                seconds=seconds,
                bytes=_bytes(handed) if handed else 0,
                fault=fault,
            )
            return jobs.decide(self.job, command, now=self._now)

        events = judged()
        if handed is not None and isinstance(events[0], e.UpdateAccepted):
            try:
                self._add(node, handed, events[0])
            except Diverged as diverged:
                events = jobs.decide(self.job, c.Drop(node=node, reason=str(diverged)), now=self._now)
            except BadUpdate as bad:
                events = judged(str(bad))
        self._record(events)

    def _add(self, node: NodeId, handed: Handed, accepted: e.UpdateAccepted) -> None:
        """Raises BadUpdate or Diverged; the accumulator is then as it was."""
        assert self._fold is not None
        reducer, delta = self._strategy.reducer, handed.joined()
        if not reducer.linear:  # it may keep the update, and the engine may use the buffer again
            delta = Params(delta.layout, delta.buffer.copy())
        try:
            if (asynchrony := self._strategy.asynchrony) is not None:
                delta = asynchrony.discounted(delta, accepted.staleness)
            reducer.add(self._fold.accumulator, Update(delta, accepted.weight, node))
        except BadUpdate:
            check_finite(delta)
            raise
        self._fold.kept[node] = handed.memory

    def _close(self, updates: tuple[e.UpdateAccepted, ...]) -> None:
        assert self.job.round is not None
        assert self._fold is not None
        opened, began = self.job.round.opened, perf_counter()
        server, digest, shares = self.server, self.job.model, dict[NodeId, float]()
        if opened.task == "train":
            reducer, layout = self._reducer(opened), server.params.layout
            mean = reducer.finish(self._fold.accumulator)
            shares.update(reducer.shares(self._fold.accumulator))
            given = [(update.weight, update.facts) for update in updates]
            server = self._strategy.finish(server, folded(mean, layout, self._strategy.local, given, opened.candidates))
            digest = self._keep(server.params)
            self._seconds[opened.round] = perf_counter() - self._fold.began
        counted = {update.node: update.weight for update in updates}
        self._command(
            c.Close(
                round=opened.round,
                attempt=opened.attempt,
                counted=counted,
                model=digest,
                state=digest,
                shares=shares,
                seconds=perf_counter() - began,
            )
        )
        self._memory.update({node: memory for node, memory in self._fold.kept.items() if memory})
        self._server, self._fold = server, None

    def _reducer(self, opened: e.RoundOpened) -> Reducer:
        """What ends the fold: with the coordinator's own update, where the strategy's reducer compares with it."""
        reducer, source = self._strategy.reducer, self.spec.trusted
        if reducer.rooted is None or source is None:
            return reducer
        rows = rows_of_own("trusted", source, self.federation.schema)
        return reducer.rooted(own_update(self._trainer, self.server.params, rows, own_task(self.spec, opened)))

    def _keep(self, params: Params) -> Digest:
        """Remember a model by its digest: the newest two, those that somebody still works on, and the best where
        the job may end with it."""
        digest = tensors.digest(tensors.encode(params))
        best = self.job.best and self.spec.early_stopping and self.job.model_of(self.job.best[0])
        round = self.job.round
        worked_on = {round.task_of(node).model for node in round.waiting_for} if round else set()
        wanted = {self.job.model, best, *worked_on}
        self._models = {name: kept for name, kept in self._models.items() if name in wanted}
        self._models[digest] = params
        return digest

    # -- what others see ---------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Show the watcher the last round, once, or the one before if nodes have yet to measure the last."""
        if self._watched < self.job.rounds_done and self.job.initial_model:
            self._show()
            self._watched = self.job.rounds_done
            self._unmeasured = self._newest()
        if self.job.final or not self._late:
            self._show()

    def _show(self) -> None:
        if self._unmeasured is not None:
            self._watch(measured(self.job, self._unmeasured))
        self._unmeasured = None

    def _newest(self) -> RoundRecord:
        if self._watched == 0:
            return records(self.job, (), {})[0]
        past = next(past for past in reversed(self.job.past) if past.succeeded)
        return record(self.job, past, self._seconds.get(past.round.number, 0.0))

    def _elapsed(self) -> float:
        return self._before + perf_counter() - self._began

    def _history(self) -> History:
        job = self.job
        header = Header(
            spec=self.spec,
            engine=self.engine.name,
            batch_size=self._batch_size,
            nodes=len(self.federation.train),
            parameters=job.parameters,
            status=str(job.status),
            outcome=job.outcome,
            model=job.model,
            best=job.best[0] if job.best else None,
            seconds=self._elapsed(),
        )
        return History(
            header=header,
            rounds=records(job, self.events, self._seconds),
            params=self._models[job.model],
            data=job.data,
        )

    # -- interruption ------------------------------------------------------------------------------------

    def _identity(self) -> saved.Identity:
        return saved.Identity(self.spec, self.federation.fingerprint(), self._batch_size)

    def _progress(self) -> saved.Progress:
        """Where an interrupted run goes on: before the open round, which starts anew with the same result."""
        sound = self._sound
        return saved.Progress(
            self._identity(),
            self.events[: sound.events],
            self._seconds,
            self._elapsed(),
            sound.server,
            sound.models,
            sound.memory,
        )

    def _restore(self, progress: saved.Progress) -> None:
        self.events, self._seconds, self._server = progress.events, progress.seconds, progress.server
        self._models, self._memory, self._before = progress.models, dict(progress.memory), progress.elapsed
        self.job = jobs.replay(self.events)
        self._watched = self.job.rounds_done - (self._late and not self.job.final)
        self._now = self._elapsed()


def _bytes(handed: Handed) -> int:
    """Of an update's values as they would travel."""
    return len(handed.code) or handed.delta.buffer.nbytes * (1 + len(handed.vectors))


def _check(spec: JobSpec, federation: Federation) -> None:
    check_composition(spec)
    if spec.codec == AUTO:
        raise BadSpec("codec auto chooses by a node's link, and a simulation has none: name one, such as int8")
    if spec.cohort.by_speed or spec.cohort.prefer_fast:
        which = "by_speed" if spec.cohort.by_speed else "prefer_fast"
        raise BadSpec(f"cohort.{which} goes by how fast nodes are, and all are equal here: try it by `tutti world run`")
    if spec.dataset != federation.name:
        raise BadSpec(f"the job trains on {spec.dataset!r}, the nodes of this federation hold {federation.name!r}")
    if empty := [node for node, rows in federation.train.items() if len(rows) == 0]:
        more = f" (nor has any of {len(empty) - 1} others)" if len(empty) > 1 else ""
        raise BadSpec(f"{empty[0]} has no rows to train on{more}: hold out less, or make fewer parts")
    needed, there = spec.cohort.min_nodes, len(federation.train)
    if there < needed:
        raise BadSpec(f"the job needs {needed} nodes, this federation has {there}: it could never start")


def _check_engine(engine: Engine, spec: JobSpec, demand: Demand) -> None:
    if DEMANDS.get(engine.name, Demand.ANY) < demand:
        raise UserError(f"engine {engine.name!r} cannot compute strategy {spec.strategy}: use engine 'auto'")


def _without_bystanders(opened: e.RoundOpened) -> e.RoundOpened:
    """Of thousands of nodes most are not drawn; to note that of each, in each round, would fill the memory."""
    return msgspec.structs.replace(opened, left_out={})


def _in_seeded_order(opened: e.RoundOpened, seed: int, nodes: tuple[NodeId, ...]) -> list[NodeId]:
    """The order in which equally fast nodes happen to answer; it matters only where more are asked than wanted."""
    if opened.wanted >= len(opened.cohort):
        return list(nodes)
    rng = np.random.Generator(np.random.PCG64([seed, opened.round, opened.attempt, 1]))
    return [nodes[i] for i in rng.permutation(len(nodes))]
