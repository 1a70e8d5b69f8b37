"""The coordinator: one process that owns the log, reaches nodes through a fabric, and drives every job.

Kill it at any moment: `start` replays the log, and each job goes on from what was recorded. Aggregates and
connections are all that is lost, and both come back: updates are stored before they count, nodes reconnect.
"""

import asyncio
import logging
import secrets
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hmac import compare_digest
from itertools import islice

from blake3 import blake3

from tutti.core.errors import Conflict, Forbidden, NotFound, StorageError, TuttiError
from tutti.core.registry import Choice
from tutti.core.schedules import schedules
from tutti.core.strategy import compose
from tutti.domain import commands, nodes
from tutti.domain import events as e
from tutti.domain.events import Digest, JobEvent, NodeEvent, NodeId
from tutti.domain.jobs import Job
from tutti.domain.spec import BadSpec, DataSchema, JobSpec, check_composition
from tutti.ports import Arrived, BlobStore, EventLog, Fabric, FabricEvent, Left, Said, Workbench
from tutti.ports.training import datasets, models
from tutti.services.driver import JobDriver, kept_blobs
from tutti.services.history import attempts_of
from tutti.services.journal import NODES, Journal
from tutti.services.manifest import Manifest, manifest_of_job
from tutti.services.preflight import Preflight, Told, with_normalization
from tutti.services.presence import Presence
from tutti.version import __version__
from tutti.wire.messages import Described, Failure, Heartbeat, Progress, Registration, Submission, Verdict

log = logging.getLogger(__name__)

SUBMISSIONS_AT_ONCE = 32
SUBMISSIONS_OF_ONE = 4
"""Submissions of one node that wait for a verdict; an honest node has one or, after a reconnect, two."""

HELD_BYTES = 64 << 20
"""Bytes of updates that came with submissions and wait for a verdict; a node with one more is asked again."""

NOTED_BURST, NOTED_EVERY = 10.0, 10.0
"""How often a node's coming is logged: so many times at once, and then once in so many seconds."""

TURNED_AWAY_EVERY = 10.0
TURNED_AWAY_BURST = 20.0
UPLOADS_PER_TASK = 256
SWEEP_SECONDS = 60.0
UPDATE_OVERHEAD = 64 * 1024
ON_THEIR_WAY_SECONDS = 20.0


def fingerprint(secret: str) -> str:
    """What is kept of a token: its hash. Tokens are random 192 bits or more, so no salt is needed."""
    return blake3(secret.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """One registered node, as people want to see it. Times are seconds since the epoch."""

    node: NodeId
    connected: bool
    joined_at: float
    last_seen: float | None = None
    registration: Registration | None = None
    heartbeat: Heartbeat | None = None
    progress: Progress | None = None
    task: str = ""
    drained: bool = False


@dataclass(slots=True)
class Stats:
    """Counters since this process started, for the metrics page."""

    rounds_completed: int = 0
    updates_accepted: int = 0
    updates_refused: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    aggregation_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    training_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    aggregation_total: float = 0.0
    training_total: float = 0.0

    def count(self, event: JobEvent, *, training: bool) -> None:
        """Evaluation rounds are not training, and nothing is aggregated in them."""
        if not training:
            return
        match event:
            case e.UpdateAccepted(seconds=seconds):
                self.updates_accepted += 1
                self.training_seconds.append(seconds)
                self.training_total += seconds
            case e.UpdateRefused():
                self.updates_refused += 1
            case e.RoundClosed(aggregation_seconds=seconds):
                self.rounds_completed += 1
                self.aggregation_seconds.append(seconds)
                self.aggregation_total += seconds
            case _:
                pass


@dataclass(slots=True)
class Door:
    """How much of the log strangers may fill: an event in ten seconds for each name, one a second for all."""

    tokens: float = TURNED_AWAY_BURST
    at: float = 0.0
    noted: dict[str, float] = field(default_factory=dict)

    def may_note(self, name: str, now: float) -> bool:
        self.tokens = min(TURNED_AWAY_BURST, self.tokens + max(0.0, now - self.at))
        self.at = now
        self.noted = {known: at for known, at in self.noted.items() if now - at < TURNED_AWAY_EVERY}
        if name in self.noted or self.tokens < 1:
            return False
        self.tokens -= 1
        self.noted[name] = now
        return True


class BackgroundFailure(TuttiError):
    """Background work of the coordinator died of something unforeseen; what is recorded is sound: start it again."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"the coordinator ended, for a part of it died ({what}): "
            "what is recorded is sound, start it again and it goes on; please report the lines above"
        )


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
    ) -> None:
        self.log = event_log
        self.blobs = blobs
        self.fabric = fabric
        self.workbench = workbench
        self.clock = clock
        self.stats = Stats()
        self.failed: asyncio.Future[BackgroundFailure] = asyncio.get_running_loop().create_future()
        """Done once background work has died, which is never meant to happen: end this process and start anew."""
        self.journal = Journal(event_log, clock)
        self.presence = Presence(clock())
        self.preflight = Preflight(fabric)
        self.retained: Callable[[], set[Digest]] = set
        """Further blobs that must stay for now, such as updates that are still to be scored."""
        self._known_schema = known_schema
        self._drivers: dict[str, JobDriver] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()
        self._kept_by_final: dict[str, set[Digest]] = {}
        self._pinned: Counter[Digest] = Counter()
        self._uploads: Counter[tuple[NodeId, str, int, int]] = Counter()
        self._door = Door()
        self._waiting: Counter[NodeId] = Counter()
        self._submissions: asyncio.Queue[tuple[NodeId, Submission | Failure, bytes]] = asyncio.Queue()
        self._held = 0  # bytes of updates in that queue and in the hands of those who take from it
        self._noted: dict[NodeId, tuple[float, float]] = {}

    # -- life ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Replay the log, give open rounds their time back, and go on."""
        await self.journal.load()
        self.presence = Presence(self.clock())
        await self.blobs.delete(*set(await self.blobs.digests()) - self.needed_blobs())
        await self.journal.note(e.CoordinatorStarted(at=self.clock(), version=__version__))
        for job in list(self.journal.jobs.values()):
            if not job.final:
                await self.journal.job(job.id, commands.Extend(reason="the coordinator was restarted"))
                self._drive(job.id)
        self.spawn(self._listen())
        self.spawn(self._sweep())
        for _ in range(SUBMISSIONS_AT_ONCE):
            self.spawn(self._receive_all())

    async def stop(self) -> None:
        """End the background work; what is in the log goes on at the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.workbench.close()
        await self.log.close()

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Work in the background, which ends with the coordinator."""
        task = asyncio.create_task(work, name=getattr(work, "__qualname__", None))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("a background task of the coordinator died", exc_info=error)
            if not self.failed.done():
                self.failed.set_result(BackgroundFailure(f"{task.get_name()}: {type(error).__name__}: {error}"))

    def _drive(self, job_id: str) -> None:
        driver = self._drivers[job_id] = JobDriver(self, job_id)
        self.spawn(driver.run())

    # -- jobs ----------------------------------------------------------------------------------------------

    def job(self, job_id: str) -> Job:
        if job_id not in self.journal.jobs:
            raise NotFound(f"there is no job {job_id!r}")
        return self.journal.jobs[job_id]

    @property
    def jobs(self) -> dict[str, Job]:
        return self.journal.jobs

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
            if spec.normalize:
                await self._until_held(spec.dataset, spec.cohort.min_nodes)
            data = self.check(spec)
            if spec.normalize:
                data = with_normalization(data, await self.describe(spec.dataset))
            job = await self.journal.submit(job_id, spec, data, by=by, paused=paused)
        if job.spec != spec:
            raise Conflict(f"the key {key!r} was used for another job, {job_id}: choose a new key")
        if not job.final and job_id not in self._drivers:
            self._drive(job_id)
        return job

    def check(self, spec: JobSpec) -> DataSchema:
        """What the job's data look like, if it can be run as written; raises a UserError that names what is wrong."""
        check_composition(spec)
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
        if self._known_schema(source) is None:
            raise BadSpec(
                f"{name} may be a bundled data set such as digits:split=test, came {source}: "
                "without evaluation.data the nodes measure the model on their own held-out rows"
            )

    def _schema(self, spec: JobSpec) -> DataSchema:
        """What the job's data look like: known for bundled sets, else as the connected nodes describe theirs."""
        if holders := self._holders(spec.dataset):
            return nodes.common_schema(spec.dataset, {node: summary.data for node, summary in holders.items()})
        known = self._known_schema(Choice(spec.dataset))
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
        holders = self._holders(dataset)
        if not holders:
            raise NotFound(f"no connected node holds {dataset!r}: see `tutti nodes ls`")
        schema = nodes.common_schema(dataset, {node: summary.data for node, summary in holders.items()})
        return await self.preflight.ask(dataset, schema, {n: s.examples for n, s in holders.items()})

    def _holders(self, dataset: str) -> dict[NodeId, nodes.DataSummary]:
        """What the connected nodes that hold this data set say of it, by name."""
        return {
            node: seen.registration.data
            for node, seen in sorted(self.presence.connected().items())
            if seen.registration is not None and seen.registration.data.name == dataset
        }

    async def _until_held(self, dataset: str, least: int) -> None:
        """Wait a moment for nodes that are on their way: those who come later are not in the statistics."""
        try:
            async with asyncio.timeout(ON_THEIR_WAY_SECONDS), self._changed:
                await self._changed.wait_for(lambda: len(self._holders(dataset)) >= least)
        except TimeoutError:
            raise BadSpec(
                f"normalize needs the data of all nodes when the job is submitted: cohort.min_nodes is {least}, "
                f"{len(self._holders(dataset))} that hold {dataset!r} are connected"
            ) from None

    async def manifest(self, job_id: str) -> Manifest:
        """What it takes to make a job's model again, from the log; raises NotFound."""
        job = self.job(job_id)
        attempts = await attempts_of(self.log, job, range(1, job.rounds_done + 2))
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

    async def invite(self, *, uses: int = 1, seconds: float = 86_400.0, by: str = "") -> str:
        """Issue a join token for so many joins within so many seconds; only its hash is kept."""
        token = secrets.token_urlsafe(24)
        expires = self.clock() + seconds
        await self.journal.nodes(nodes.IssueInvite(token=fingerprint(token), uses=uses, expires=expires, by=by))
        return token

    def check_invite(self, token: str) -> None:
        """Raises Forbidden, as `admit` would, if this token lets nobody in; does not use it up."""
        join = nodes.Join(invite=fingerprint(token), node="", secret="")
        nodes.decide(self.register, join, now=self.clock())

    async def admit(self, token: str, node: NodeId, secret: str | None = None) -> str:
        """Take a node in; returns the secret it shows from now on (its own choice, if it made one).

        A node that chose its secret may ask again after a lost answer, and is let in once.
        """
        secret = secret or secrets.token_urlsafe(32)
        known = self.register.nodes.get(node)
        if known is not None and compare_digest(known, fingerprint(secret)):
            return secret
        await self.journal.nodes(nodes.Join(invite=fingerprint(token), node=node, secret=fingerprint(secret)))
        return secret

    def authenticate(self, node: NodeId, secret: str) -> None:
        known = self.register.nodes.get(node)
        if known is None:
            raise Forbidden(f"no node {node!r} has joined here, or it was removed: join again with a new link")
        if not compare_digest(known, fingerprint(secret)):
            raise Forbidden(f"the token is not that of node {node!r}")

    async def remove_node(self, node: NodeId, reason: str = "asked") -> None:
        await self.journal.nodes(nodes.Remove(node=node, reason=reason))
        self.fabric.disconnect(node, f"removed: {reason}")
        self.presence.forget(node)
        for job_id, driver in list(self._drivers.items()):
            with suppress(Conflict):  # the job has ended meanwhile
                await self._steer(job_id, commands.Drop(node=node, reason=f"removed: {reason}"))
            driver.nodes_changed()

    async def drain_node(self, node: NodeId, *, on: bool = True, by: str = "") -> None:
        """Let a node finish what it does and give it no more work; `on` False gives it work again."""
        await self.journal.nodes(nodes.Drain(node=node, on=on, by=by))
        self._nodes_changed()

    async def turn_away(self, node: str, reason: str) -> None:
        """Record that somebody was refused at the door, as far as strangers may fill the log."""
        if self._door.may_note(node, self.clock()):
            await self.journal.note(e.NodeTurnedAway(at=self.clock(), node=node[:64], reason=reason[:200]))

    def node_statuses(self) -> list[NodeStatus]:
        """All registered nodes, by name."""
        return [self._status(node) for node in sorted(self.register.nodes)]

    def _status(self, node: NodeId) -> NodeStatus:
        seen, task = self.presence.get(node), self.task_of(node)
        joined, drained = self.journal.joined_at[node], node in self.register.drained
        if seen is None:
            return NodeStatus(node=node, connected=False, joined_at=joined, drained=drained)
        return NodeStatus(
            node=node,
            drained=drained,
            connected=seen.connected,
            joined_at=joined,
            last_seen=seen.heard_at,
            registration=seen.registration,
            heartbeat=seen.heartbeat,
            progress=seen.progress,
            task=f"{task[0]}/{task[1]}" if task else "",
        )

    def task_of(self, node: NodeId) -> tuple[str, int] | None:
        """The job and round for which a node owes an update, if any."""
        for job_id in self._drivers:
            if (task := self.journal.jobs[job_id].task_of(node)) is not None:
                return job_id, task.round
        return None

    def someone_waits_longer(self, job_id: str) -> bool:
        """Whether another job that could open a round now has waited longer for it: first come, first served."""
        mine = self.job(job_id)
        for other_id, driver in self._drivers.items():
            other = driver.job
            if other_id == job_id or other.waiting_since >= mine.waiting_since or not driver.wants_nodes:
                continue
            if driver.can_open(driver.candidates()[0]):
                driver.poke()
                return True
        return False

    def update_limit(self, node: NodeId) -> int:
        """The largest blob in bytes that a node may store now; 0 when no update of it is expected.

        Asking counts as one upload begun, of which a task has a few, so that nobody fills the disk.
        """
        for job_id in self._drivers:
            task = self.job(job_id).task_of(node)
            if task is None or task.task != "train":
                continue
            self._uploads[node, job_id, task.round, task.attempt] += 1
            if self._uploads[node, job_id, task.round, task.attempt] <= UPLOADS_PER_TASK:
                vectors = 1 + len(self._drivers[job_id].aggregation.strategy.local.vectors)
                return 4 * self.job(job_id).parameters * vectors + UPDATE_OVERHEAD + 256 * self._entries(job_id)
        return 0

    def may_read(self, node: NodeId, digest: Digest) -> bool:
        """Whether a node may fetch a blob: the models of rounds that it takes part in, and nothing else."""
        for job_id in self._drivers:
            job = self.job(job_id)
            task = job.round.task_of(node) if job.round and node in job.round.members else job.working.get(node)
            if task is not None and task.fetched == digest:
                return True
        return False

    def _entries(self, job_id: str) -> int:
        server = self._drivers[job_id].aggregation.server
        return len(server.params.layout.entries) if server else 1000

    # -- what nodes do -------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        async for event in self.fabric.events():
            try:
                await self._on(event)
            except TuttiError as error:
                log.error("%s: %s", event.node, error)
            except Exception:
                log.exception("%s: cannot deal with %s", event.node, type(event).__name__)

    async def _on(self, event: FabricEvent) -> None:
        """Never waits for the disk: what one node does must not keep the others' heartbeats waiting."""
        now = self.clock()
        match event:
            case Arrived(node=node, registration=registration):
                self.presence.arrived(node, registration, now)
                self._nodes_changed()
                async with self._changed:
                    self._changed.notify_all()
                if self._may_note(node, now):
                    self.spawn(self._note(_arrival(node, registration, now)))
            case Left(node=node, reason=reason, took_leave=took_leave):
                self.presence.left(node, now, took_leave=took_leave)
                self.preflight.left(node)
                self._nodes_changed()
                self.spawn(self._note(e.NodeDisconnected(at=now, node=node, reason=reason[:200])))
            case Said(node=node, message=message, blob=blob):
                if self.presence.heard(node, message, now):
                    self._poke_waiting()
                self._on_message(node, message, blob)

    def _may_note(self, node: NodeId, now: float) -> bool:
        """A node that comes and goes all the time must not fill the log."""
        left, at = self._noted.get(node, (NOTED_BURST, now))
        left = min(NOTED_BURST, left + (now - at) / NOTED_EVERY)
        self._noted[node] = (left - 1 if left >= 1 else left, now)
        return left >= 1

    async def _note(self, event: NodeEvent) -> None:
        try:
            await self.journal.note(event)
        except StorageError as error:
            log.error("not recorded: %s: %s", type(event).__name__, error)

    def _on_message(self, node: NodeId, message: object, blob: bytes) -> None:
        match message:
            case Submission() if self._held + len(blob) > HELD_BYTES:
                self._answer(node, message, "too many updates wait here: send it again", resend=True)
            case Submission() | Failure():
                if self._waiting[node] < SUBMISSIONS_OF_ONE:
                    self._waiting[node] += 1
                    self._held += len(blob)
                    self._submissions.put_nowait((node, message, blob))
                elif isinstance(message, Submission):
                    self._answer(node, message, f"{SUBMISSIONS_OF_ONE} submissions already wait for a verdict")
            case Described():
                self.preflight.heard(node, message)
            case _:
                pass

    async def _receive_all(self) -> None:
        """One of a few workers; each takes the next submission or failure."""
        while True:
            node, message, blob = await self._submissions.get()
            try:
                if isinstance(message, Submission):
                    await self._receive(node, message, blob)
                else:
                    await self._drop(node, message)
            except Exception:
                log.exception("%s of %s", type(message).__name__, node)
                if isinstance(message, Submission):
                    self._answer(node, message, "the coordinator failed to deal with it")
            finally:
                self._held -= len(blob)
                self._waiting[node] -= 1
                if not self._waiting[node]:
                    del self._waiting[node]

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

    async def _receive(self, node: NodeId, submission: Submission, blob: bytes) -> None:
        """Hand a submission to its job; one that names a wrong job is recorded where the node was asked."""
        driver = self._drivers.get(submission.job)
        try:
            if driver is not None:
                await driver.receive(node, submission, blob)
            else:
                await self._refuse_stray(node, submission)
        except TuttiError as error:
            log.error("submission of %s: %s", node, error)
            if driver is not None and isinstance(error, StorageError):
                driver.trouble = str(error)
            self._answer(node, submission, f"could not be recorded, send it again: {error}", resend=True)

    async def _refuse_stray(self, node: NodeId, submission: Submission) -> None:
        reason = f"there is no running job {submission.job!r}"
        if (owed := self.task_of(node)) is not None:
            reason = f"{reason}; {node} was asked by job {owed[0]!r}"
            await self._steer(owed[0], commands.RefuseUpdate(node=node, reason=reason))
        self._answer(node, submission, reason)

    def _answer(self, node: NodeId, said: Submission, reason: str, *, resend: bool = False) -> None:
        verdict = Verdict(
            job=said.job, round=said.round, attempt=said.attempt, accepted=False, reason=reason, resend=resend
        )
        self.fabric.send(node, verdict)

    def _nodes_changed(self) -> None:
        for driver in self._drivers.values():
            driver.nodes_changed()

    def _poke_waiting(self, but: str = "") -> None:
        for job_id, driver in self._drivers.items():
            if job_id != but and driver.wants_nodes:
                driver.poke()

    # -- what jobs report ----------------------------------------------------------------------------------

    def _is_training(self, job_id: str) -> bool:
        """Whether the open round, or the one that has just ended, is for training."""
        job = self.job(job_id)
        round = job.round or (job.past[-1].round if job.past else None)
        return round is None or round.opened.task == "train"

    async def on_events(self, job_id: str, events: list[JobEvent]) -> None:
        for event in events:
            self.stats.count(event, training=self._is_training(job_id))
        if any(isinstance(event, e.RoundClosed | e.RoundFailed | e.NodeDropped) for event in events):
            self._poke_waiting(but=job_id)  # nodes have become free
        async with self._changed:
            self._changed.notify_all()

    async def on_final(self, job_id: str) -> None:
        """A job is over: its driver goes, whoever waits for it hears."""
        self._kept_by_final[job_id] = kept_blobs(self.job(job_id))
        del self._drivers[job_id]
        self._poke_waiting()
        async with self._changed:
            self._changed.notify_all()

    def needed_blobs(self) -> set[Digest]:
        """Every blob that some job still refers to, or is about to."""
        needed: set[Digest] = set(self._pinned) | self.retained()
        for job_id, job in self.journal.jobs.items():
            if job.final and job_id not in self._drivers:
                needed |= self._kept_by_final.setdefault(job_id, kept_blobs(job))
            else:
                needed |= kept_blobs(job)
        return needed

    @contextmanager
    def pinned(self, digests: Iterable[Digest]) -> Iterator[None]:
        """Keep blobs from being cleared away between their being stored and the event that names them."""
        pinned = list(digests)
        self._pinned.update(pinned)
        try:
            yield
        finally:
            self._pinned -= Counter(pinned)

    async def _sweep(self) -> None:
        """Clear away what nobody refers to: updates that came late, or were never handed in.

        A blob goes when two looks, a while apart, find it unneeded, so that an update on its way is not hit.
        """
        before: set[Digest] = set()
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                before = await self.look_for_unneeded(before)
            except StorageError as error:
                log.error("cannot clear away old blobs: %s", error)
            self._uploads = Counter({key: n for key, n in self._uploads.items() if self._is_task(*key)})

    def _is_task(self, node: NodeId, job_id: str, number: int, attempt: int) -> bool:
        """Whether the node still owes this task."""
        job = self.journal.jobs.get(job_id)
        task = job.task_of(node) if job is not None else None
        return task is not None and (task.round, task.attempt) == (number, attempt)

    async def look_for_unneeded(self, before: set[Digest]) -> set[Digest]:
        """Delete the blobs that nobody needs now nor did at the look before; returns those unneeded since this look."""
        unneeded = set(await self.blobs.digests()) - self.needed_blobs()
        await self.blobs.delete(*(unneeded & before) - self.needed_blobs())
        return unneeded - before


def _arrival(node: NodeId, registration: Registration, now: float) -> e.NodeConnected:
    machine = registration.capabilities
    return e.NodeConnected(
        at=now,
        node=node,
        cpus=machine.cpus,
        memory=machine.memory,
        gpus=len(machine.gpus),
        examples=registration.data.examples,
        dataset=registration.data.name,
        version=machine.versions.get("tutti", "")[:32],
        held_out=registration.data.held_out,
        digest=registration.data.digest[:64],
        source=registration.data.source[:500],
        versions={name[:32]: version[:32] for name, version in islice(machine.versions.items(), 20)},
    )
