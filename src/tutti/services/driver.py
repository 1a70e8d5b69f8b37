"""Drives one job: asks the state what is owed (`react`), does it, and waits until something has changed."""

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from tutti.core.errors import Conflict, CorruptBlob, NotFound, StorageError, TuttiError, UserError
from tutti.core.params import Params
from tutti.core.schedules import schedules
from tutti.core.strategy import compose
from tutti.domain import commands, jobs
from tutti.domain import events as e
from tutti.domain.events import Digest, NodeId
from tutti.domain.jobs import Job
from tutti.domain.nodes import why_not
from tutti.domain.rounds import due
from tutti.domain.spec import JobSpec, Metrics
from tutti.ports.training import Task
from tutti.services.aggregation import Aggregation, Fold, UnreadableUpdate
from tutti.services.presence import Owed
from tutti.wire import tensors
from tutti.wire.messages import GlobalWeights, Halt, Start, Submission, Verdict

if TYPE_CHECKING:
    from tutti.services.coordinator import Coordinator

log = logging.getLogger(__name__)

STORAGE_RETRY_SECONDS = 2.0
MODELS_KEPT = 20
"""Newest models of a job that stay in the store, beside the first and the best."""


def node_seed(seed: int, round: int, node: NodeId) -> int:
    """A node's own seed for one round, the same however often the round is tried."""
    digest = blake2b(f"{seed}/{round}/{node}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def kept_blobs(job: Job) -> set[Digest]:
    """Blobs that a job still needs: recent models, the first, the best, the checkpoint, accepted updates."""
    recent = [summary.model for summary in job.past[-MODELS_KEPT:]]
    kept = {*recent, job.initial_model, job.model, job.state}
    if job.best is not None and (model := job.model_of(job.best[0])) is not None:
        kept.add(model)
    if job.round is not None:
        kept.update(update.digest for update in job.round.accepted)
        kept.add(job.round.opened.model)
        kept.update(member.base.fetched for member in job.round.members.values() if member.base is not None)
    kept.update(task.fetched for task in job.working.values())
    return kept - {""}


OWN_BATCH = 32


def own_task(spec: JobSpec, opened: e.RoundOpened) -> Task:
    """The work of a node in this round, for the coordinator's own rows."""
    training = spec.training
    lr = training.lr * schedules.build(training.lr_schedule)(opened.round, spec.rounds)
    seed = node_seed(spec.seed, opened.round, "coordinator")
    return Task(training, seed, training.batch_size or OWN_BATCH, lr)


class JobDriver:
    """One task per live job. Everything it does may be done twice: the state decides whether it still counts."""

    def __init__(self, coordinator: "Coordinator", job_id: str) -> None:
        self._coordinator = coordinator
        self._journal = coordinator.journal
        self._id = job_id
        spec = self.job.spec
        strategy = compose(spec.strategy, spec.reducer)
        self.aggregation = Aggregation(strategy, coordinator.blobs, spec.cohort.largest_weight)
        self._changed = asyncio.Event()
        self._look_at_nodes = True
        self._first_expiry = 0.0
        self.trouble = ""
        """What keeps the job from going on, in words for a person; empty when nothing does."""

    @property
    def job(self) -> Job:
        return self._journal.jobs[self._id]

    @property
    def wants_nodes(self) -> bool:
        """Whether the job waits for nothing but nodes."""
        return isinstance(jobs.react(self.job, now=self._journal.clock()), commands.GatherCohort)

    def poke(self) -> None:
        """Something changed: look again."""
        self._changed.set()

    def nodes_changed(self) -> None:
        """A node came or went: somebody may have to be told of the work, or waited for differently."""
        self._look_at_nodes, self._first_expiry = True, 0.0
        self._changed.set()

    async def run(self) -> None:
        """Until the job is over. Storage trouble is waited out; our own mistakes fail the job, loudly."""
        while not self.job.final:
            self._changed.clear()
            try:
                busy = await self._step()
            except Exception as error:
                busy = await self._on_error(error)
            if not busy:
                await self._wait()
        await self._coordinator.on_final(self._id)

    async def _on_error(self, error: Exception) -> bool:
        """Draw the consequence; False to wait first, as for a consequence that cannot be recorded either."""
        try:
            match error:
                case CorruptBlob() | NotFound():
                    return await self._command(commands.Pause(reason=f"{error}; restore the file and resume the job"))
                case UserError():
                    return await self._command(commands.Fail(reason=str(error)))
                case TuttiError():  # a full disk, a workbench that died: not the job's fault
                    self._wait_out(error)
                    return False
                case _:
                    log.error("job %s: internal error", self._id, exc_info=error)
                    return await self._command(commands.Fail(reason=f"internal error: {error!r}"))
        except TuttiError as worse:
            self._wait_out(worse)
            return False

    def _wait_out(self, error: TuttiError) -> None:
        if self.trouble != str(error):
            log.error("job %s waits: %s", self._id, error)
        self.trouble = str(error)

    async def _wait(self) -> None:
        until = self._wake_at()
        timeout = None if until is None else max(0.0, until - self._journal.clock())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):  # wait_for of Python 3.11 can swallow a cancellation
                await self._changed.wait()

    def _wake_at(self) -> float | None:
        times = [at for at in (jobs.wake_at(self.job),) if at is not None]
        if self.trouble:
            times.append(self._journal.clock() + STORAGE_RETRY_SECONDS)
        if self.job.status is jobs.Status.WAITING:
            times.extend(self._returning().values())
        if self.job.round is not None:
            times.append(self._first_expiry)
        return min(times, default=None)

    async def _drop_lost(self) -> None:
        """Go on without the nodes whose grace or lease has run out. Looks at all of them only when one can have."""
        round, now = self.job.round, self._journal.clock()
        if round is None or now < self._first_expiry:
            return
        rules, presence = self.job.spec.cohort, self._coordinator.presence
        expiries = {
            node: presence.expiry(node, self._owed(round.task_of(node)), rules, round.opened.at)
            for node in round.waiting_for
        }
        for node, (at, reason) in expiries.items():
            if now >= at:
                await self._command(commands.Drop(node=node, reason=reason))
        self._first_expiry = min((at for at, _ in expiries.values() if at > now), default=now + rules.lease)

    def _owed(self, task: e.RoundOpened) -> Owed:
        return self._id, task.round, task.attempt

    async def _step(self) -> bool:
        """One thing; True if the state should be asked again at once."""
        await self._drop_lost()
        if await self._command(commands.Tick()):
            return True
        round = self.job.round
        if round is not None and not self._look_at_nodes and due(round, self._journal.clock()) is None:
            return False  # an update more or less: nobody has to be told anything
        match jobs.react(self.job, now=self._journal.clock()):
            case commands.MakeInitialModel():
                await self._initialise()
            case commands.EvaluateModel(round=number, model=model):
                await self._evaluate(number, model)
            case commands.GatherCohort(task=task):
                return await self._open(task)
            case commands.Assign(nodes=nodes):
                self._assign(nodes)
                self._look_at_nodes, self._first_expiry = False, 0.0
                await self._drop_lost()
                return False
            case commands.Aggregate(updates=updates):
                await self._close(updates)
            case None:
                return False
        self.trouble = ""
        return True

    async def _command(self, command: commands.Command) -> bool:
        """Carry out a command; False if nothing came of it."""
        try:
            events = await self._journal.job(self._id, command)
        except Conflict as conflict:
            log.debug("job %s: %s", self._id, conflict)
            return False
        await self.after(events)
        return bool(events)

    # -- what react asks for ---------------------------------------------------------------------------

    async def _initialise(self) -> None:
        spec = self.job.spec
        with tempfile.TemporaryDirectory(prefix="tutti-") as folder:
            path = Path(folder) / "initial.safetensors"
            await self._coordinator.workbench.initial(spec.model, self.job.data, spec.seed, path)
            result = await self.aggregation.initialise(path)
        with self._coordinator.pinned(result.blobs):
            await self.aggregation.store(result)
            parameters = result.server.params.layout.size
            await self._command(commands.Initialise(model=result.model, state=result.state, parameters=parameters))

    async def _evaluate(self, number: int, model: Digest) -> None:
        source = self.job.spec.evaluation.data
        assert source is not None
        it = self._coordinator
        try:
            async with it.blobs.file(model) as path:
                metrics = await it.workbench.evaluate(self.job.spec.model, self.job.data, source, path)
        except UserError as error:  # the training itself is sound
            await self._command(commands.Pause(reason=f"the model cannot be measured: {error}; mend it and resume"))
            return
        await self._command(commands.RecordEvaluation(round=number, metrics=metrics))

    async def _open(self, task: str) -> bool:
        if (task == "train" and self._coordinator.presence.here < self.job.spec.cohort.min_nodes) or self._returning():
            return False
        candidates, left_out = self.candidates()
        if task == "evaluate" and not candidates:
            return await self._command(commands.SkipEvaluation(reason="no node was there to measure the final model"))
        if not self.can_open(candidates) or self._coordinator.someone_waits_longer(self._id):
            return False
        await self.restore()
        assert self.aggregation.server is not None
        strategy = self.aggregation.strategy
        wish = commands.Open(
            candidates=candidates,
            left_out=left_out,
            settings=strategy.configure(self.aggregation.server),
            shares_state=strategy.shares_slots,
            in_turn=strategy.in_turn,
            buffer=strategy.asynchrony.buffer if strategy.asynchrony else None,
        )
        self._look_at_nodes, self._first_expiry = True, 0.0
        return await self._command(wish)

    def can_open(self, candidates: Sequence[NodeId]) -> bool:
        """Whether these nodes are enough for the next round."""
        needed = self.job.spec.cohort.min_nodes if jobs.next_task(self.job) == "train" else 1
        return len(candidates) + len(self.job.working) >= needed

    def _returning(self) -> dict[NodeId, float]:
        """Nodes of the last cohort that may be back in a moment, and when the job stops waiting for them.

        A node or a coordinator that is killed and restarted between two rounds then changes no cohort.
        """
        if not self.job.past:
            return {}
        presence, rules, now = self._coordinator.presence, self.job.spec.cohort, self._journal.clock()
        last = [node for node in self.job.past[-1].round.opened.cohort if node in self._journal.register.nodes]
        back = {node: presence.back_by(node, rules.grace) for node in last}
        return {node: at for node, at in back.items() if at is not None and at > now}

    def candidates(self) -> tuple[list[NodeId], dict[NodeId, str]]:
        """The nodes that could take part now, and of each of the others why it could not."""
        job, left_out, free = self.job, {}, []
        for node in self._journal.register.nodes:
            reason = self._unavailable(node, job)
            if reason is None:
                free.append(node)
            else:
                left_out[node] = reason
        return free, left_out

    def _unavailable(self, node: NodeId, job: Job) -> str | None:
        seen = self._coordinator.presence.get(node)
        if seen is None or not seen.connected or seen.registration is None:
            return "not connected"
        if node in self._journal.register.drained:
            return "drained: it is given no more work"
        registration = seen.registration
        if not seen.is_open:
            return "outside its owner's hours"
        rules = job.spec.cohort
        expected = rules.size or rules.min_nodes
        reason = why_not(job.spec, job.data, registration.data, registration.terms, expected)
        if reason is None and (busy := self._coordinator.task_of(node)):
            return f"busy with job {busy[0]} round {busy[1]}"
        return reason

    async def restore(self) -> None:
        job = self.job
        await self.aggregation.restore(job.model, job.state, job.rounds_done)

    def _assign(self, nodes: tuple[NodeId, ...]) -> None:
        round, presence = self.job.round, self._coordinator.presence
        if round is None:
            return
        for node in nodes:
            task = round.task_of(node)
            owed, blob = self._owed(task), self.aggregation.blob if task is round.opened else b""
            seen = presence.get(node)
            if seen is None or not seen.connected or presence.was_told(node, owed):
                continue
            presence.tell(node, owed, self._journal.clock())
            self._coordinator.fabric.send(node, self._start(node), blob)

    def _start(self, node: NodeId) -> Start:
        job = self.job
        assert job.round is not None
        opened = job.round.task_of(node)
        return Start(
            job=job.id,
            name=job.spec.name,
            round=opened.round,
            attempt=opened.attempt,
            rounds=job.spec.rounds,
            task=opened.task,
            model=job.spec.model,
            data=job.data,
            weights=opened.fetched,
            seed=node_seed(job.spec.seed, opened.round, node),
            cohort=len(opened.cohort),
            training=job.spec.training,
            strategy=job.spec.strategy,
            settings=opened.settings,
            counted=job.contributions[node].round if node in job.contributions else 0,
            evaluate=jobs.nodes_evaluate(job),
        )

    async def _fold_of(self, opened: e.RoundOpened) -> Fold:
        await self.restore()
        return self.aggregation.begin((opened.round, opened.attempt), len(opened.cohort))

    async def _close(self, updates: tuple[e.UpdateAccepted, ...]) -> None:
        job, before = self.job, self.job.state
        assert job.round is not None
        opened = job.round.opened
        if opened.task == "evaluate":
            counted = {update.node: update.weight for update in updates}
            close = commands.Close(
                round=opened.round, attempt=opened.attempt, counted=counted, model=job.model, state=job.state
            )
            await self._command(close)
            return
        started = self._journal.clock()
        fold = await self._fold_of(opened)
        if not await self._add(fold, updates):
            return
        result = await self.aggregation.finish(fold, opened.candidates, await self._own_update(opened))
        with self._coordinator.pinned(result.blobs):
            await self.aggregation.store(result)
            close = commands.Close(
                round=opened.round,
                attempt=opened.attempt,
                counted=result.counted,
                model=result.model,
                state=result.state,
                seconds=self._journal.clock() - started,
            )
            closed = await self._command(close)
        if closed:
            self.aggregation.commit(result)
            self._coordinator.spawn(self._forget([before, *(update.digest for update in updates)]))

    async def _own_update(self, opened: e.RoundOpened) -> Params | None:
        """What the coordinator learns from its own rows in this round, if the reducer compares with that."""
        job = self.job
        if (source := job.spec.trusted) is None:
            return None
        it = self._coordinator
        with tempfile.TemporaryDirectory(prefix="tutti-") as folder:
            path = Path(folder) / "own.safetensors"
            task = own_task(job.spec, opened)
            async with it.blobs.file(opened.model) as weights:
                await it.workbench.train(job.spec.model, job.data, source, task, weights, path)
            return tensors.decode(path.read_bytes())

    async def _add(self, fold: Fold, updates: Iterable[e.UpdateAccepted]) -> bool:
        """Add updates to a fold; False if one of them was lost, which is then asked for again."""
        try:
            await self.aggregation.add(fold, updates)
        except UnreadableUpdate as lost:
            log.error("job %s: update of %s lost: %s", self._id, lost.node, lost)
            await self._command(commands.LoseUpdate(node=lost.node, reason=str(lost)))
            return False
        return True

    # -- what nodes send ---------------------------------------------------------------------------------

    async def receive(self, node: NodeId, submission: Submission, blob: bytes = b"") -> None:
        """Judge a submission, record the judgement, then tell the node. `blob`: the update, if it came along."""
        fault, size, fold = None, 0, None
        round = self.job.round
        if node not in self._journal.register.nodes:
            self._answer(node, submission, accepted=False, reason=f"{node} was removed")
            return
        if round is not None and round.opened.task == "train" and self._would_count(node, submission):
            try:
                fold = await self._fold_of(round.opened)
                fault, size = await self.aggregation.examine(
                    fold, submission.digest, submission.weight, submission.facts, blob
                )
            except UnreadableUpdate as lost:
                self._answer(node, submission, accepted=False, reason=str(lost), resend=True)
                return
            except TuttiError as error:  # our own disk or model: not the update's fault, so it is asked for again
                await self._on_error(error)
                raise
            except MemoryError as error:
                raise StorageError(f"no memory to examine the update of {node}") from error
            except Exception as error:
                log.exception("job %s: the update of %s cannot be examined", self._id, node)
                fault = f"the coordinator could not examine the update: {error!r}"
        try:
            events = await self._journal.job(self._id, self._submission(node, submission, size, fault))
        except Conflict as conflict:
            self._answer(
                node, submission, accepted=False, reason=str(conflict), resend=self._still_owed(node, submission)
            )
            return
        refused = next((event for event in events if isinstance(event, e.UpdateRefused)), None)
        counts = refused is None or self._counts(node, submission)
        again = refused is not None and not counts and self._still_owed(node, submission)
        self._answer(node, submission, accepted=counts, reason=refused.reason if refused else "", resend=again)
        await self.after(events)
        self.poke()
        if fault is not None and submission.digest:
            await self._forget([submission.digest])
        if fold is not None:
            await self._add(fold, [event for event in events if isinstance(event, e.UpdateAccepted)])

    def _submission(self, node: NodeId, said: Submission, size: int, fault: str | None) -> commands.SubmitUpdate:
        return commands.SubmitUpdate(
            round=said.round,
            attempt=said.attempt,
            node=node,
            digest=said.digest,
            weight=said.weight,
            facts=said.facts,
            metrics=said.metrics,
            seconds=said.seconds,
            bytes=size,
            fault=fault,
        )

    def _would_count(self, node: NodeId, submission: Submission) -> bool:
        """Whether the update is wanted at all, before its bytes are looked at."""
        try:
            command = self._submission(node, submission, 0, None)
            events = jobs.decide(self.job, command, now=self._journal.clock())
        except Conflict:
            return False
        return any(isinstance(event, e.UpdateAccepted) for event in events)

    def _counts(self, node: NodeId, said: Submission) -> bool:
        """Whether this very update is in already: its first answer was lost, and the node asks again."""
        round = self.job.round
        member = round.members.get(node) if round else None
        return member is not None and member.update is not None and member.update.digest == said.digest

    def _still_owed(self, node: NodeId, said: Submission) -> bool:
        """Whether the update will count in the next of overlapping rounds, so that the node should not forget it."""
        strategy, task = self.aggregation.strategy, self.job.task_of(node)
        return (
            strategy.asynchrony is not None
            and task is not None
            and (task.round, task.attempt)
            == (
                said.round,
                said.attempt,
            )
        )

    def _answer(
        self, node: NodeId, said: Submission, *, accepted: bool, reason: str = "", resend: bool = False
    ) -> None:
        verdict = Verdict(
            job=said.job, round=said.round, attempt=said.attempt, accepted=accepted, reason=reason, resend=resend
        )
        self._coordinator.fabric.send(node, verdict)

    # -- what follows from events ------------------------------------------------------------------------

    async def after(self, events: list[e.JobEvent]) -> None:
        """Tell the nodes what they should know; losing such a message costs a node some vain work, nothing else."""
        for event in events:
            match event:
                case e.UpdateLost(round=number, node=node):
                    self._on_lost(number, node)
                case e.RoundClosed() | e.RoundFailed() | e.JobStopped() | e.JobFailed():
                    await self._on_round_over(event)
                case e.JobCompleted():
                    self._halt_working(event.reason)
                    self._announce(event.model, final=True)
                case _:
                    pass
        if events:
            await self._coordinator.on_events(self._id, events)

    def _on_lost(self, number: int, node: NodeId) -> None:
        self._look_at_nodes = True
        if (round := self.job.round) is None:
            return
        self._coordinator.presence.untell(node, self._owed(round.task_of(node)))

    async def _on_round_over(self, event: e.RoundClosed | e.RoundFailed | e.JobStopped | e.JobFailed) -> None:
        if not self.job.past:
            return
        round = self.job.past[-1].round
        opened = round.opened
        for node in round.waiting_for:
            if node not in self.job.working:
                self._halt(node, round.task_of(node), event.reason)
        if self.job.final:
            self._halt_working(event.reason)
        if isinstance(event, e.RoundClosed) and opened.task == "train":
            self._announce(event.model, event.metrics)
        else:
            await self._forget([update.digest for update in round.accepted])

    def _halt_working(self, reason: str) -> None:
        for node, task in self.job.working.items():
            self._halt(node, task, reason)

    def _halt(self, node: NodeId, task: e.RoundOpened, reason: str) -> None:
        if self._coordinator.presence.was_told(node, self._owed(task)):
            halt = Halt(job=self._id, round=task.round, attempt=task.attempt, reason=reason)
            self._coordinator.fabric.send(node, halt)

    def _announce(self, model: Digest, metrics: Metrics | None = None, *, final: bool = False) -> None:
        """Tell the last cohort of a new model, but for those who go on with an older one."""
        opened = self.job.past[-1].round.opened
        news = GlobalWeights(job=self._id, round=opened.round, weights=model, metrics=metrics or {}, final=final)
        for node in opened.cohort:
            if final or node not in self.job.working:
                self._coordinator.fabric.send(node, news)

    # -- tidying up --------------------------------------------------------------------------------------

    async def _forget(self, digests: list[Digest]) -> None:
        """Delete blobs that no job needs any more: these, and models that have grown old.

        Nothing waits for it; what is left over, because the disk failed or the process died, is swept up later.
        """
        past = [summary.model for summary in self.job.past[-MODELS_KEPT - 4 : -MODELS_KEPT]]
        needed = self._coordinator.needed_blobs()
        with contextlib.suppress(TuttiError):
            await self._coordinator.blobs.delete(*{*digests, *past} - needed - {""})
