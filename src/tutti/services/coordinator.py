"""The coordinator: one process that owns the log, reaches nodes through a fabric, and drives every job.

Kill it at any moment: `start` replays the log, and each job goes on from what was recorded. Aggregates and
connections are all that is lost, and both come back: updates are stored before they count, nodes reconnect.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress

from tutti.core.errors import Conflict, NotFound, StorageError, TuttiError
from tutti.core.registry import Choice
from tutti.core.schedules import schedules
from tutti.core.strategy import compose
from tutti.domain import commands, nodes
from tutti.domain import events as e
from tutti.domain.events import JobEvent, NodeId
from tutti.domain.jobs import Job
from tutti.domain.quotas import Kind, Used, used
from tutti.domain.signing import Domain, Verify
from tutti.domain.spec import BadSpec, DataSchema, JobSpec, check_composition
from tutti.ports import Arrived, BlobStore, EventLog, Fabric, FabricEvent, Kept, Left, Said, Summing, Workbench
from tutti.ports.training import datasets, models
from tutti.services.access import Access
from tutti.services.archive import Archivist
from tutti.services.audit import Auditor
from tutti.services.background import Background
from tutti.services.driver import JobDriver
from tutti.services.errands import Errands, Several
from tutti.services.history import attempts_of
from tutti.services.inbox import HandedIn, Inbox, answer
from tutti.services.journal import NODES, Journal
from tutti.services.keeping import BlobKeeper
from tutti.services.maintenance import Maintenance
from tutti.services.manifest import Manifest, manifest_of_job
from tutti.services.members import Members, NodeStatus, arrival, fingerprint
from tutti.services.preflight import Preflight, Told, with_normalization
from tutti.services.presence import Offer, Presence
from tutti.services.proofs import Proofs
from tutti.services.scheduling import Scheduler
from tutti.services.site import Site
from tutti.services.stats import Stats
from tutti.version import __version__
from tutti.wire.messages import Described, Failure, Refusal, Submission

log = logging.getLogger(__name__)

ON_THEIR_WAY_SECONDS = 20.0


class Coordinator:
    """Jobs, nodes and what connects them. Every public method is safe to call at any time after `start`."""

    def __init__(
        self,
        *,
        event_log: EventLog,
        blobs: BlobStore,
        fabric: Fabric,
        workbench: Workbench,
        known_schema: Callable[[Choice], DataSchema | None],
        clock: Callable[[], float],
        audited: float = 0.0,
        pays: bool = True,
        domain: Domain = Domain(),  # noqa: B008 - frozen
        verify: Verify = lambda key, digest, signature: False,
        summing: Summing | None = None,
    ) -> None:
        """`pays`: whether there is a ledger that lasts, as rewards need it.

        Nodes' signatures are to hold in `domain`, and are checked by `verify`: who has none takes no node that signs.
        `summing`: other replicas, which keep updates of their own nodes.
        """
        self.log = event_log
        self.blobs = blobs
        self.fabric = fabric
        self.workbench = workbench
        self.clock = clock
        self._pays = pays
        self.stats = Stats()
        self.background = Background()
        self.journal = Journal(event_log, clock)
        self.keeper = BlobKeeper(blobs, self.journal)
        self.presence = Presence(clock())
        self.preflight = Preflight(fabric)
        self.members = Members(self.journal, self.presence, Proofs(verify, clock))
        self.known_schema = known_schema
        self._drivers: dict[str, JobDriver] = {}
        self.access = Access(self.journal, self._drivers)
        self._scheduler = Scheduler(self.journal, self.presence, self._drivers)
        self.maintenance = Maintenance(self.journal, self._steer)
        self._admit: Callable[[str, Kind], None] = lambda by, one_more: None
        self._inbox = Inbox(fabric, self._deal)
        self._changed = asyncio.Condition()
        self._site = Site(
            journal=self.journal,
            keeper=self.keeper,
            fabric=fabric,
            presence=self.presence,
            scheduler=self._scheduler,
            workbench=workbench,
            background=self.background,
            auditor=Auditor(workbench, self.keeper, self.presence, known_schema, self._quarantine, audited),
            domain=domain,
            verify=verify,
            accuse=self._accuse,
            summing=summing,
        )
        if summing is not None:
            summing.watch(self._nodes_changed)

    # -- life ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Replay the log, give open rounds their time back, and go on."""
        await self.journal.load()
        self.presence.started = self.clock()
        await self.keeper.clear()
        await self.journal.note(e.CoordinatorStarted(at=self.clock(), version=__version__))
        for job in list(self.journal.jobs.values()):
            if not job.final:
                await self.journal.job(job.id, commands.Extend(reason="the coordinator was restarted"))
                self._drive(job.id)
        await self.maintenance.settle()
        self.background.spawn(self._listen())
        self.background.spawn(self.keeper.sweep(Archivist(self.journal, self.keeper).tidy))
        self._inbox.start(self.background)

    async def stop(self) -> None:
        """End the background work; what is in the log goes on at the next start."""
        await self.background.close()
        await self.workbench.close()
        await self.log.close()

    def _drive(self, job_id: str) -> None:
        driver = self._drivers[job_id] = JobDriver(self._site, job_id, self._on_events)
        self.background.spawn(self._run(job_id, driver))

    async def _run(self, job_id: str, driver: JobDriver) -> None:
        """A job until it is over: its driver goes, whoever waits for it hears."""
        await driver.run()
        del self._drivers[job_id]
        self.access.over(job_id)
        self._scheduler.poke_waiting()
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # -- jobs ----------------------------------------------------------------------------------------------

    def job(self, job_id: str) -> Job:
        if job_id not in self.journal.jobs:
            raise NotFound(f"there is no job {job_id!r}")
        return self.journal.jobs[job_id]

    @property
    def jobs(self) -> dict[str, Job]:
        return self.journal.jobs

    def admit_by(self, check: Callable[[str, Kind], None]) -> None:
        """Before somebody's new job or invited node is taken on, call `check`; it raises a TuttiError if it may not."""
        self._admit = self.members.admits = check

    def used(self, theirs: Callable[[str], bool]) -> Used:
        """What some people have, in the terms of a quota."""
        return used(theirs, self.jobs.values(), self.register.invited, self.keeper.size_of, self.clock())

    @property
    def register(self) -> nodes.Register:
        return self.journal.register

    async def submit(self, spec: JobSpec, *, by: str = "", paused: bool = False, key: str = "") -> Job:
        """Check a job and take it on; raises a UserError that names what is wrong with it.

        Asking again with the same `key` gives the same job, also after a restart; Conflict if the job differs.
        """
        suffix = fingerprint(key)[:16] if key else secrets.token_hex(4)
        job_id = f"{spec.name.lower().replace('_', '-').replace('.', '-')[:40]}-{suffix}"
        job = self.jobs.get(job_id)
        if job is None:
            self.maintenance.check()
            self._admit(by, "job")  # and once more in its turn: others may have come by then
            if spec.normalize:
                least = spec.cohort.min_nodes
                held = await self.until_held(spec.dataset, least)
                if len(held) < least:  # those who come later would not be in the statistics
                    raise BadSpec(
                        "normalize needs the data of all nodes when the job is submitted: cohort.min_nodes is "
                        f"{least}, {len(held)} that hold {spec.dataset!r} are connected"
                    )
            data = self.check(spec)
            if spec.normalize:
                data = with_normalization(data, await self.describe(spec.dataset))
            job = await self.journal.submit(
                job_id, spec, data, by=by, paused=paused, admit=lambda: self._admit(by, "job")
            )
        if job.spec != spec:
            raise Conflict(f"the key {key!r} was used for another job, {job_id}: choose a new key")
        if not job.final and job_id not in self._drivers:
            self._drive(job_id)
        return job

    def check(self, spec: JobSpec) -> DataSchema:
        """What the job's data look like, if it can be run as written; raises a UserError that names what is wrong."""
        check_composition(spec)
        if spec.rewards is not None and not self._pays:
            raise BadSpec(
                "expected no rewards, for coordinators that stand in for each other have no ledger's key in common: "
                "leave them out, or start each with --ledger-key-file"
            )
        compose(spec.strategy, spec.reducer)
        schedules.build(spec.training.lr_schedule)
        models.options(spec.model)
        self.workbench.check(spec.model)
        rewards = spec.rewards.data if spec.rewards is not None else None
        own = (("evaluation.data", spec.evaluation.data), ("trusted", spec.trusted), ("rewards.data", rewards))
        for name, source in own:
            if source is not None:
                self._check_own(name, source)
        return self._schema(spec)

    def _check_own(self, name: str, source: Choice) -> None:
        """Only bundled sets: a job must not make the coordinator read files or call code of its choice."""
        datasets.options(source)
        if self.known_schema(source) is None:
            raise BadSpec(
                f"{name} may be a bundled data set such as digits:split=test, came {source}: "
                "without evaluation.data the nodes measure the model on their own held-out rows"
            )

    def _schema(self, spec: JobSpec) -> DataSchema:
        """What the job's data look like: known for bundled sets, else as the connected nodes describe theirs."""
        if holders := self._scheduler.holders(spec.dataset):
            return nodes.common_schema(spec.dataset, {node: summary.data for node, summary in holders.items()})
        known = self.known_schema(Choice(spec.dataset))
        if known is None:
            raise BadSpec(
                f"no connected node holds {spec.dataset!r}, and it is not a bundled data set: "
                f"start a node that holds it first (`tutti join <link> --data …`)"
            )
        return known

    async def describe(self, dataset: str) -> Told:
        """Statistics of every connected node that holds this data set, as far as its owner tells them.

        Raises BadSpec if the nodes' data do not belong together, NotFound if no node holds such data.
        """
        holders = self._scheduler.holders(dataset)
        if not holders:
            raise NotFound(f"no connected node holds {dataset!r}: see `tutti nodes ls`")
        schema = nodes.common_schema(dataset, {node: summary.data for node, summary in holders.items()})
        return await self.preflight.ask(dataset, schema, {n: s.examples for n, s in holders.items()})

    async def until_held(self, dataset: str, least: int, seconds: float = ON_THEIR_WAY_SECONDS) -> set[NodeId]:
        """Wait for nodes that are on their way, but no longer than so; those that hold the data set then."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(lambda: len(self._scheduler.holders(dataset)) >= least)
        return set(self._scheduler.holders(dataset))

    async def manifest(self, job_id: str) -> Manifest:
        """What it takes to make a job's model again, from the log; raises NotFound."""
        job = self.job(job_id)
        attempts = await attempts_of(self.journal, self.blobs, job, range(1, job.rounds_done + 2))
        arrivals: list[e.NodeConnected] = []
        after = 0
        while batch := await self.log.read(after, stream=NODES):
            after = batch[-1].offset
            arrivals += [recorded.event for recorded in batch if isinstance(recorded.event, e.NodeConnected)]
        return manifest_of_job(job, attempts, arrivals)

    async def pause(self, job_id: str, *, by: str = "") -> Job:
        return await self._steer(job_id, commands.Pause(reason=f"asked by {by}" if by else "asked"))

    async def resume(self, job_id: str, *, by: str = "") -> Job:
        return await self._steer(job_id, commands.Resume())

    async def stop_job(self, job_id: str, reason: str = "asked", *, by: str = "") -> Job:
        return await self._steer(job_id, commands.Stop(reason=f"{reason} by {by}" if by else reason))

    async def _steer(self, job_id: str, command: commands.Command) -> Job:
        events = await self.journal.job(job_id, command)
        if (driver := self._drivers.get(job_id)) is not None:
            await driver.after(events)
            driver.poke()
        return self.job(job_id)

    async def wait_for(self, job_id: str, condition: Callable[[Job], bool]) -> Job:
        """The job, as soon as an event has made the condition true."""
        async with self._changed:
            await self._changed.wait_for(lambda: condition(self.job(job_id)))
        return self.job(job_id)

    async def wait_final(self, job_id: str) -> Job:
        """The job, once it is completed, stopped or failed."""
        return await self.wait_for(job_id, lambda job: job.final and job_id not in self._drivers)

    def trouble(self, job_id: str) -> str:
        """What keeps a job from going on, such as a full disk; empty when nothing does."""
        driver = self._drivers.get(job_id)
        return driver.trouble if driver else ""

    # -- nodes ---------------------------------------------------------------------------------------------

    async def remove_node(self, node: NodeId, reason: str = "asked") -> None:
        await self.journal.nodes(nodes.Remove(node=node, reason=reason))
        self.fabric.disconnect(node, f"removed: {reason}")
        self.presence.forget(node)
        self.members.proofs.forget(node)
        for job_id, driver in list(self._drivers.items()):
            with suppress(Conflict):  # the job has ended meanwhile
                await self._steer(job_id, commands.Drop(node=node, reason=f"removed: {reason}"))
            driver.nodes_changed()

    async def drain_node(self, node: NodeId, *, on: bool = True, by: str = "", forged: str = "") -> None:
        """Let a node finish what it does and give it no more work; `on` False gives it work again."""
        await self.journal.nodes(nodes.Drain(node=node, on=on, by=by, forged=forged))
        self._nodes_changed()

    def offers(self) -> Mapping[Offer, int]:
        """What the connected nodes that may be given work offer, and how many offer the same."""
        return self.presence.offers(but=self.register.drained)

    async def _quarantine(self, node: NodeId, fault: str) -> None:
        await self.drain_node(node, by="an audit of its update", forged=fault)

    def node_statuses(self) -> list[NodeStatus]:
        """All registered nodes, by name."""
        return self.members.statuses(self._scheduler.busy())

    def node_status(self, node: NodeId) -> NodeStatus:
        """One of them; raises NotFound."""
        return self.members.status(node, self._scheduler.task_of(node))

    # -- what nodes do -------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        async for event in self.fabric.events():
            try:
                await self._on(event)
            except TuttiError as error:
                log.error("%s: %s", event.node, error)
            except Exception:
                log.exception("%s: cannot deal with %s", event.node, type(event).__name__)

    def lend(self, *errands: Errands) -> None:
        """Let others work with the nodes, too."""
        self.access.errands = Several(*errands)

    async def _on(self, event: FabricEvent) -> None:
        """Never waits for the disk: what one node does must not keep the others' heartbeats waiting."""
        now = self.clock()
        self.access.errands.on(event)
        match event:
            case Arrived(node=node, registration=registration):
                self.presence.arrived(node, registration, now)
                if registration.key != self.register.keys.get(node, ""):
                    self.background.spawn(self._pin(node, registration.key))
                self._nodes_changed()
                await self._notify()
                if self.members.may_note(node, now):
                    self.background.spawn(self.members.note(arrival(node, registration, now)))
            case Left(node=node, reason=reason, took_leave=took_leave):
                self.presence.left(node, now, took_leave=took_leave)
                self.preflight.left(node)
                self._nodes_changed()
                self.background.spawn(self.members.note(e.NodeDisconnected(at=now, node=node, reason=reason[:200])))
            case Said(node=node, message=message, blob=blob, kept=kept):
                if self.presence.heard(node, message, now):
                    self._scheduler.poke_waiting()
                if isinstance(message, Submission | Failure):
                    self._inbox.put(node, message, blob, kept)
                elif isinstance(message, Described):
                    self.preflight.heard(node, message)

    async def _accuse(self, proof: e.NodeEquivocated) -> None:
        if await self.journal.nodes(nodes.Accuse(proof)):
            log.error("%s is given no more work: it has signed two updates under one number", proof.node)
            self._nodes_changed()

    async def _pin(self, node: NodeId, key: str) -> None:
        """Note with which key a node signs; one that comes with another is sent away."""
        try:
            await self.journal.nodes(nodes.Pin(node=node, key=key))
        except Conflict as conflict:
            self.fabric.send(node, Refusal(code="key", detail=str(conflict), fatal=True))
            self.fabric.disconnect(node, str(conflict))
        except StorageError as error:  # its submissions are checked by what it says, until it comes again
            log.error("the key of %s was not recorded: %s", node, error)

    async def _deal(self, node: NodeId, message: HandedIn, blob: bytes, kept: Kept | None) -> None:
        if isinstance(message, Submission):
            await self._receive(node, message, blob, kept)
        else:
            await self._drop(node, message)

    async def _drop(self, node: NodeId, failed: Failure) -> None:
        """A node says that it will not deliver; one whose failure cannot be recorded is dropped when its lease ends."""
        job_id, said = failed.job, (failed.round, failed.attempt)
        task = self.job(job_id).task_of(node) if job_id in self._drivers else None
        if task is None or (task.round, task.attempt) != said:
            return
        if self.job(job_id).round is None:  # asked again once the next of overlapping rounds is open
            self.presence.untell(node, (job_id, *said))
            return
        try:
            await self._steer(job_id, commands.Drop(node=node, reason=failed.reason))
        except TuttiError as error:
            log.error("failure of %s: %s", node, error)

    async def _receive(self, node: NodeId, submission: Submission, blob: bytes, kept: Kept | None) -> None:
        """Hand a submission to its job; one that names a wrong job is recorded where the node was asked."""
        driver = self._drivers.get(submission.job)
        try:
            if driver is not None:
                await driver.receive(node, submission, blob, kept)
            else:
                await self._refuse_stray(node, submission)
        except TuttiError as error:
            log.error("submission of %s: %s", node, error)
            if driver is not None and isinstance(error, StorageError):
                driver.trouble = str(error)
            reason = f"could not be recorded, send it again: {error}"
            answer(self.fabric, node, submission, reason=reason, resend=True)

    async def _refuse_stray(self, node: NodeId, submission: Submission) -> None:
        reason = f"there is no running job {submission.job!r}"
        if (owed := self._scheduler.task_of(node)) is not None:
            reason = f"{reason}; {node} was asked by job {owed[0]!r}"
            await self._steer(owed[0], commands.RefuseUpdate(node=node, reason=reason))
        answer(self.fabric, node, submission, reason=reason)

    def _nodes_changed(self) -> None:
        for driver in self._drivers.values():
            driver.nodes_changed()

    # -- what jobs report ----------------------------------------------------------------------------------

    async def _on_events(self, job: Job, events: list[JobEvent]) -> None:
        round = job.round or (job.past[-1].round if job.past else None)
        training = round is None or round.opened.task == "train"
        for event in events:
            self.stats.count(event, training=training)
        if any(isinstance(event, e.RoundClosed | e.RoundFailed | e.NodeDropped) for event in events):
            self._scheduler.poke_waiting(but=job.id)  # nodes have become free
        await self._notify()
