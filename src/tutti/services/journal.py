"""The state of everything, always one step behind the log: decide, write, and only then evolve."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

from tutti.core.errors import NotFound
from tutti.domain import commands, jobs, nodes
from tutti.domain import events as e
from tutti.domain.events import AnyEvent, Digest, JobEvent, MarketEvent, NodeEvent, RewardEvent, SessionEvent
from tutti.domain.jobs import Job
from tutti.domain.spec import DataSchema, JobSpec
from tutti.ports import EventLog, Recorded
from tutti.services.finish import to_the_end

NODES = "nodes"
REPLAY_BATCH = 5000


def stream_of(job_id: str) -> str:
    return f"job:{job_id}"


def rewards_of(job_id: str) -> str:
    return f"rewards:{job_id}"


@dataclass(slots=True, eq=False)
class _Wish:
    """A command that waits for its turn; then what came of it: events, or an error."""

    command: commands.Command
    outcome: list[JobEvent] | Exception | None = None


class Journal:
    """Holds every job and the register of nodes, rebuilt from the log and changed through it alone.

    Commands to one stream run one after another; those that wait while the log writes share the next write.
    When the log cannot write, the callers get its StorageError and the state stays as it was.
    """

    def __init__(self, log: EventLog, clock: Callable[[], float]) -> None:
        self.log = log
        self.clock = clock
        self.jobs: dict[str, Job] = {}
        self.register = nodes.Register()
        self.joined_at: dict[str, float] = {}
        self.offset = 0
        self.openings: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        """Of each job, the rounds that were opened, in order, and at which offset of the log."""
        self.projections: list[Callable[[Recorded], None]] = []
        """Told every event in order, from the first on: functions that return at once and never raise."""
        self.watchers: list[Callable[[Recorded], None]] = []
        """Likewise, but told only of what happens from now on, not of what is replayed."""
        self._loading = asyncio.Lock()
        self._submitting = asyncio.Lock()
        self._versions: defaultdict[str, int] = defaultdict(int)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._wishes: defaultdict[str, list[_Wish]] = defaultdict(list)

    async def load(self) -> None:
        """Replay the log, from where an earlier call ended."""
        async with self._loading:
            while batch := await self.log.read(self.offset, limit=REPLAY_BATCH):
                for recorded in batch:
                    self._apply(recorded)

    async def submit(
        self,
        job_id: str,
        spec: JobSpec,
        data: DataSchema,
        *,
        by: str,
        paused: bool,
        admit: Callable[[], None] = lambda: None,
    ) -> Job:
        """Record a new job, paused from the start if asked; one that has this id already stays as it is.

        `admit` is called in the turn of this job among all new ones, and raises if it is one too many.
        """
        now = self.clock()
        events: list[AnyEvent] = [jobs.submit(job_id, spec, data, now=now, by=by)]
        if paused:
            events.append(e.JobPaused(at=now, reason="not started yet"))
        async with self._submitting, self._locks[stream_of(job_id)]:
            if job_id not in self.jobs:
                admit()
                await self._record(stream_of(job_id), events)
        return self.jobs[job_id]

    async def job(self, job_id: str, command: commands.Command) -> list[JobEvent]:
        """Carry out a command on a job; returns the new events, raises Conflict with the reason for a refusal."""
        if job_id not in self.jobs:
            raise NotFound(f"there is no job {job_id!r}")
        wish, waiting = _Wish(command), self._wishes[job_id]
        waiting.append(wish)
        try:
            async with self._locks[stream_of(job_id)]:
                if wish.outcome is None:
                    wishes = waiting.copy()
                    waiting.clear()
                    await to_the_end(self._fulfil(job_id, wishes))
        finally:
            if wish in waiting:  # cancelled before its turn
                waiting.remove(wish)
        if isinstance(wish.outcome, Exception):
            raise wish.outcome
        assert wish.outcome is not None
        return wish.outcome

    async def _fulfil(self, job_id: str, wishes: list[_Wish]) -> None:
        """Decide on each as if what comes of those before it had happened already, and write all of it at once."""
        state, now, news = self.jobs[job_id], self.clock(), list[JobEvent]()
        for wish in wishes:
            try:
                wish.outcome = events = jobs.decide(state, wish.command, now=now)
                state = reduce(jobs.evolve, events, state)
                news += events
            except Exception as refusal:
                wish.outcome = refusal
        try:
            await self._write(stream_of(job_id), news)
        except Exception as error:
            for wish in wishes:
                wish.outcome = error

    async def archive(self, job_id: str, archive: Digest, events: int) -> None:
        """Record that a job's events are in a blob, all so many that there are; raises Conflict if it is not over."""
        async with self._locks[stream_of(job_id)]:
            event = jobs.archived(self.jobs[job_id], archive, events, now=self.clock())
            await self._record(stream_of(job_id), [event])

    def archived_at(self, job_id: str) -> int:
        """The version of its stream at which a job was archived: its last."""
        return self._versions[stream_of(job_id)]

    async def nodes(self, command: nodes.Command, admit: Callable[[], None] = lambda: None) -> list[NodeEvent]:
        """Carry out a command on the register of nodes; `admit` is called in its turn, and raises if it may not be."""
        async with self._locks[NODES]:
            admit()
            events = nodes.decide(self.register, command, now=self.clock())
            await self._record(NODES, events)
        return events

    async def note(self, event: NodeEvent) -> None:
        """Record something that happened, such as a connection, which nothing can refuse."""
        async with self._locks[NODES]:
            await self._record(NODES, [event])

    async def reward(self, event: RewardEvent) -> None:
        """Record what the nodes of a job have earned."""
        stream = rewards_of(event.job)
        async with self._locks[stream]:
            await self._record(stream, [event])

    async def session(self, event: SessionEvent) -> None:
        """Record the beginning or the end of a session."""
        stream = f"session:{event.session}"
        async with self._locks[stream]:
            await self._record(stream, [event])

    async def market(self, stream: str, decide: Callable[[], Sequence[MarketEvent]]) -> Sequence[MarketEvent]:
        """Record what is decided about the market, in the turn of its stream; returns the new events."""
        async with self._locks[stream]:
            events = decide()
            await self._record(stream, events)
        return events

    async def _record(self, stream: str, events: "Sequence[AnyEvent]") -> None:
        await to_the_end(self._write(stream, events))

    async def _write(self, stream: str, events: "Sequence[AnyEvent]") -> None:
        if events:
            for recorded in await self.log.append(stream, self._versions[stream], events):
                self._apply(recorded)
                for told in self.watchers:
                    told(recorded)

    def _apply(self, recorded: Recorded) -> None:
        event, stream = recorded.event, recorded.stream
        self._versions[stream] = recorded.version
        self.offset = max(self.offset, recorded.offset)
        if isinstance(event, e.JobSubmitted):
            self.jobs[event.job] = jobs.begin(event)
        elif isinstance(event, e.JobArchived):
            job = jobs.restored(event)
            self.jobs[job.id] = job
            self.openings.pop(job.id, None)
        elif isinstance(event, RewardEvent | MarketEvent | SessionEvent):
            pass  # it changes neither jobs nor nodes
        elif stream == NODES:
            self._apply_to_nodes(event)  # type: ignore[arg-type]  # a stream holds events of its own kind
        else:
            job_id = stream.removeprefix("job:")
            if isinstance(event, e.RoundOpened):
                self.openings[job_id].append((event.round, recorded.offset))
            self.jobs[job_id] = jobs.evolve(self.jobs[job_id], event)  # type: ignore[arg-type]  # likewise
        for told in self.projections:
            told(recorded)

    def _apply_to_nodes(self, event: NodeEvent) -> None:
        self.register = nodes.evolve(self.register, event)
        if isinstance(event, e.NodeJoined):
            self.joined_at[event.node] = event.at
