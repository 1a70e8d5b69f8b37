"""Drives one job: asks the state what is owed (`react`), does it, and waits until something has changed."""

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from tutti.core.errors import Conflict, CorruptBlob, NotFound, StorageError, TuttiError, UserError
from tutti.core.params import Params
from tutti.core.sampling import node_seed
from tutti.core.schedules import schedules
from tutti.domain import commands, jobs
from tutti.domain import events as e
from tutti.domain.events import Digest, JobEvent, NodeId
from tutti.domain.jobs import Job
from tutti.domain.rounds import due
from tutti.domain.spec import JobSpec
from tutti.ports import Kept
from tutti.ports.training import Task
from tutti.services.aggregation import Aggregation, Fold, UnreadableUpdate
from tutti.services.inbox import answer
from tutti.services.judging import command_of, counts, equivocation, signature_fault, signed_by, still_owed, would_count
from tutti.services.kept import KeptUpdates
from tutti.services.site import Site
from tutti.services.telling import announce, assign, halt_last, halt_working, owed
from tutti.wire import tensors
from tutti.wire.messages import Submission
from tutti.wire.updates import Examined

log = logging.getLogger(__name__)

STORAGE_RETRY_SECONDS = 2.0
OWN_BATCH = 32


def own_task(spec: JobSpec, opened: e.RoundOpened) -> Task:
    """The work of a node in this round, for the coordinator's own rows."""
    training = spec.training
    lr = training.lr * schedules.build(training.lr_schedule)(opened.round, spec.rounds)
    seed = node_seed(spec.seed, opened.round, "coordinator")
    return Task(training, seed, training.batch_size or OWN_BATCH, lr)


class JobDriver:
    """One task per live job. Everything it does may be done twice: the state decides whether it still counts.

    `on_events` hears what came of its commands, after the nodes were told.
    """

    def __init__(self, site: Site, job_id: str, on_events: Callable[[Job, list[JobEvent]], Awaitable[None]]) -> None:
        self._site = site
        self._journal = site.journal
        self._id = job_id
        self._on_events = on_events
        self.aggregation = Aggregation(self.job.spec, site.keeper.store)
        self._kept = KeptUpdates(site.summing)
        self._changed = asyncio.Event()
        self._look_at_nodes = True
        self._first_expiry = 0.0
        self.trouble = ""
        """What keeps the job from going on, in words for a person; empty when nothing does."""

    @property
    def job(self) -> Job:
        return self._journal.jobs[self._id]

    @property
    def largest_update(self) -> int:
        return self.aggregation.largest_update(self.job.parameters)

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
            times.extend(self._site.scheduler.returning(self.job).values())
        if self.job.round is not None:
            times.append(self._first_expiry)
        return min(times, default=None)

    async def _drop_lost(self) -> None:
        """Go on without the nodes whose grace or lease has run out. Looks at all of them only when one can have."""
        round, now = self.job.round, self._journal.clock()
        if round is None or now < self._first_expiry:
            return
        rules, presence = self.job.spec.cohort, self._site.presence
        expiries = {
            node: presence.expiry(node, owed(self.job, round.task_of(node)), rules, round.opened.at)
            for node in round.waiting_for
        }
        for node, (at, reason) in expiries.items():
            if now >= at:
                await self._command(commands.Drop(node=node, reason=reason))
        self._first_expiry = min((at for at, _ in expiries.values() if at > now), default=now + rules.lease)

    async def _step(self) -> bool:
        """One thing; True if the state should be asked again at once."""
        await self._drop_lost()
        if self._look_at_nodes:
            await self._lose_gone()
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
                assign(self._site, self.job, nodes, self.aggregation.blob)
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
            await self._site.workbench.initial(spec.model, self.job.data, spec.seed, path)
            result = await self.aggregation.initialise(path)
        with self._site.keeper.pinned(result.blobs):
            await self.aggregation.store(result)
            parameters = result.server.params.layout.size
            await self._command(commands.Initialise(model=result.model, state=result.state, parameters=parameters))

    async def _evaluate(self, number: int, model: Digest) -> None:
        source = self.job.spec.evaluation.data
        assert source is not None
        it = self._site
        try:
            async with it.keeper.store.file(model) as path:
                metrics = await it.workbench.evaluate(self.job.spec.model, self.job.data, source, path)
        except UserError as error:  # the training itself is sound
            await self._command(commands.Pause(reason=f"the model cannot be measured: {error}; mend it and resume"))
            return
        await self._command(commands.RecordEvaluation(round=number, metrics=metrics))

    async def _open(self, task: str) -> bool:
        job, scheduler = self.job, self._site.scheduler
        if (task == "train" and self._site.presence.here < job.spec.cohort.min_nodes) or scheduler.returning(job):
            return False
        candidates, left_out = scheduler.candidates(job)
        if task == "evaluate" and not candidates:
            return await self._command(commands.SkipEvaluation(reason="no node was there to measure the final model"))
        if not scheduler.can_open(job, candidates) or scheduler.someone_waits_longer(job):
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

    async def restore(self) -> None:
        job = self.job
        await self.aggregation.restore(job.model, job.state, job.rounds_done)

    async def _fold_of(self, opened: e.RoundOpened) -> Fold:
        await self.restore()
        return self.aggregation.begin((opened.round, opened.attempt), len(opened.cohort))

    async def _close(self, updates: tuple[e.UpdateAccepted, ...]) -> None:
        job, before = self.job, [self.job.state, *(each.step for each in self.job.steps)]
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
        partials, gone = await self._kept.merge(job, self.aggregation, fold, updates)
        if gone:
            await self._lose(gone, "the replica that kept it has not given its sum")
        if gone or not await self._add(fold, updates):
            return
        result = await self.aggregation.finish(fold, opened.candidates, await self._own_update(opened))
        with self._site.keeper.pinned(result.blobs):
            await self.aggregation.store(result)
            close = commands.Close(
                round=opened.round,
                attempt=opened.attempt,
                counted=result.counted,
                model=result.model,
                state=result.state,
                shares=result.shares,
                step=result.step,
                seconds=self._journal.clock() - started,
            )
            closed = await self._command(close)
        if closed:
            self.aggregation.commit(result)
            self._site.background.spawn(self._forget([*before, *partials, *(update.digest for update in updates)]))

    async def _own_update(self, opened: e.RoundOpened) -> Params | None:
        """What the coordinator learns from its own rows in this round, if the reducer compares with that."""
        job = self.job
        if (source := job.spec.trusted) is None:
            return None
        it = self._site
        with tempfile.TemporaryDirectory(prefix="tutti-") as folder:
            path = Path(folder) / "own.safetensors"
            task = own_task(job.spec, opened)
            async with it.keeper.store.file(opened.model) as weights:
                await it.workbench.train(job.spec.model, job.data, source, task, weights, path)
            return tensors.decode(path.read_bytes())

    async def _lose_gone(self) -> None:
        """Ask for updates again whose replica is gone, now rather than at the end of the round."""
        round = self.job.round
        if round is not None and (gone := self._kept.gone(round.accepted, self.aggregation.counted)):
            await self._lose(gone)

    async def _lose(self, gone: Iterable[e.UpdateAccepted], reason: str = "the replica that kept it is gone") -> None:
        for update in gone:
            self._kept.note(update.digest, None)
            await self._command(commands.LoseUpdate(node=update.node, reason=reason))

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

    async def receive(self, node: NodeId, said: Submission, blob: bytes = b"", kept: Kept | None = None) -> None:
        """Judge a submission, record the judgement, then tell the node.

        `blob`: the update, if it came along; `kept`: where it is, if another replica has looked at it.
        """
        seen, fold, round, signed = Examined(), None, self.job.round, None
        if node not in self._journal.register.nodes:
            self._answer(node, said, reason=f"{node} was removed")
            return
        wanted = would_count(self.job, node, said, self._journal.clock())
        if (proof := equivocation(self.job, node, said, self._site.verify, self._journal.clock())) is not None:
            await self._site.accuse(proof)
        if round is not None and round.opened.task == "train" and wanted:
            try:
                fold = await self._fold_of(round.opened)
                signed = signed_by(self._site.key_of(node), round.task_of(node), said, self._site.domain)
                seen = Examined(signature_fault(said, signed, self._site.verify))
                if seen.fault is None:
                    seen = kept.seen if kept is not None else await self._examine(fold, node, said, blob)
                if seen.fault is None:
                    self._kept.note(said.digest, kept)
            except UnreadableUpdate as lost:
                self._answer(node, said, reason=str(lost), resend=True)
                return
            except TuttiError as error:  # our own disk or model: not the update's fault, so it is asked for again
                await self._on_error(error)
                raise
        try:
            events = await self._journal.job(self._id, command_of(node, said, seen, signed))
        except Conflict as conflict:
            self._answer(node, said, reason=str(conflict), resend=self._still_owed(node, said))
            return
        self._tell_verdict(node, said, events)
        await self.after(events)
        self.poke()
        if seen.fault is not None and said.digest:
            await self._forget([said.digest])
        if fold is not None and kept is None:
            await self._add(fold, [event for event in events if isinstance(event, e.UpdateAccepted)])

    async def _examine(self, fold: Fold, node: NodeId, said: Submission, blob: bytes) -> Examined:
        """Look for what is wrong with the update, here and by an audit."""
        try:
            seen = await self.aggregation.examine(fold, said.digest, said.weight, said.facts, blob)
            task = self.job.task_of(node)
            if seen.fault is None and task is not None:
                seen = seen._replace(fault=await self._site.auditor.fault(self.job, task, node, said))
            return seen
        except TuttiError:
            raise
        except MemoryError as error:
            raise StorageError(f"no memory to examine the update of {node}") from error
        except Exception as error:
            log.exception("job %s: the update of %s cannot be examined", self._id, node)
            return Examined(f"the coordinator could not examine the update: {error!r}")

    def _tell_verdict(self, node: NodeId, said: Submission, events: list[JobEvent]) -> None:
        refused = next((event for event in events if isinstance(event, e.UpdateRefused)), None)
        if refused is None or counts(self.job, node, said):
            self._answer(node, said, accepted=True, reason=refused.reason if refused else "")
        else:
            self._answer(node, said, reason=refused.reason, resend=self._still_owed(node, said))

    def _still_owed(self, node: NodeId, said: Submission) -> bool:
        return self.aggregation.strategy.asynchrony is not None and still_owed(self.job, node, said)

    def _answer(
        self, node: NodeId, said: Submission, *, accepted: bool = False, reason: str = "", resend: bool = False
    ) -> None:
        answer(self._site.fabric, node, said, accepted=accepted, reason=reason, resend=resend)

    # -- what follows from events ------------------------------------------------------------------------

    async def after(self, events: list[JobEvent]) -> None:
        """Tell the nodes what they should know."""
        for event in events:
            match event:
                case e.UpdateLost(node=node):
                    self._on_lost(node)
                case e.RoundClosed() | e.RoundFailed() | e.JobStopped() | e.JobFailed():
                    await self._on_round_over(event)
                case e.JobCompleted():
                    halt_working(self._site, self.job, event.reason)
                    announce(self._site, self.job, event.model, final=True)
                case _:
                    pass
        if events:
            await self._on_events(self.job, events)

    def _on_lost(self, node: NodeId) -> None:
        self._look_at_nodes = True
        if (round := self.job.round) is not None:
            self._site.presence.untell(node, owed(self.job, round.task_of(node)))

    async def _on_round_over(self, event: e.RoundClosed | e.RoundFailed | e.JobStopped | e.JobFailed) -> None:
        self._kept.clear()
        if not self.job.past:
            return
        round = self.job.past[-1].round
        halt_last(self._site, self.job, event.reason)
        if self.job.final:
            halt_working(self._site, self.job, event.reason)
        if isinstance(event, e.RoundClosed) and round.opened.task == "train":
            announce(self._site, self.job, event.model, event.metrics)
        else:
            await self._forget([update.digest for update in round.accepted])

    async def _forget(self, digests: list[Digest]) -> None:
        await self._site.keeper.forget(self.job, digests)
