"""A ring that trains, on virtual time: members' chains and logs as they are shipped, and a network that does its worst.

ChainMember, Agreed, ChainLog and Journal are the real ones. Of a member here are only its disk, its network, who it
believes is there, and a leader that asks the job machine what is next. Models and updates are only digests: a model is
the digest of its base and of the updates in it, so two models are equal if and only if the same updates made them.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import sha256
from random import Random

import msgspec
import pytest

from tutti.adapters.logs.chain import Agreed, ChainLog, events_of
from tutti.adapters.thrift.training import message_from
from tutti.core.errors import Conflict, StorageError, UserError
from tutti.domain import commands as c
from tutti.domain import events as e
from tutti.domain import jobs
from tutti.domain.spec import DataSchema, load_spec
from tutti.ring import consensus
from tutti.ring.record import Record, Seat, after, first
from tutti.ring.record import cut as cut_of_ring
from tutti.services.chain import BadRecord, ChainMember, LostLead
from tutti.services.journal import Journal, stream_of
from tutti.sim.worlds.clock import VirtualLoop, run

SILENT = 1.5
BATCH, FRAME = 4_000, 10_000
"""Bytes of records that are sent together, and of one message; small, so that chains come in many parts."""

JOB, DATA = "job", DataSchema("classification", (4,), 2)
Message = tuple[object, ...]


def digest(*parts: object) -> str:
    return sha256(repr(parts).encode()).hexdigest()


def update_of(node: str, round: int, base: str) -> tuple[str, int]:
    """What a node makes of a model: the same whenever it is asked, and its weight."""
    return digest("update", node, round, base), 1 + int(digest(node)[:2], 16)


def model_of(base: str, manifest: dict[str, tuple[str, int]]) -> str:
    return digest("model", base, sorted(manifest.items()))


def job_events(record: Record) -> list[e.AnyEvent]:
    return [event for stream, event in events_of(record) if stream == stream_of(JOB)]


def loop() -> VirtualLoop:
    running = asyncio.get_running_loop()
    assert isinstance(running, VirtualLoop)
    return running


class Disk:
    """What outlives a process: its chain, and what it has promised."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.durable = consensus.NOTHING


class Store:
    """The ChainStore of one process. Writing takes a while, and a process may die before it or after it."""

    def __init__(self, process: "Process", disk: Disk) -> None:
        self._process, self.disk = process, disk

    def load(self) -> tuple[list[Record], consensus.Durable]:
        return [*self.disk.records], self.disk.durable

    def save(self, records: "list[Record]", durable: consensus.Durable) -> None:
        world = self._process.world
        self._live()
        loop().spend(world.rng.uniform(0.0, world.slow_disk))
        if records:
            self.disk.records = [*self.disk.records[: records[0].height], *records]
            world.committed(self.disk.records, records)
        self.disk.durable = durable
        self._live()

    def _live(self) -> None:
        if self._process.up and self._process.world.rng.random() < self._process.world.fragile:
            self._process.crash()
            self._process.world.restart_soon(self._process)
        if not self._process.up:
            raise StorageError("the process was killed")

    def close(self) -> None:
        pass


class Process:
    """One life of a member."""

    def __init__(self, world: "World", name: str, disk: Disk) -> None:
        self.world, self.name, self.up, self.log = world, name, True, None
        world.lives += 1
        self.seat = Seat(name, world.lives)
        self.seen: dict[Seat, float] = {}
        self.arrived: dict[tuple[int, int, str], tuple[str, str, int]] = {}
        self.chain = ChainMember(
            self.seat, Store(self, disk), self, verify=self._verify, roster=self._roster, clock=loop().time
        )
        self.disk, self.agreed = disk, Agreed(self.chain)
        self._task = asyncio.create_task(self._live())
        self._task.add_done_callback(self._over)

    async def _live(self) -> None:
        founds = self.name == self.world.names[0] and not self.world.chosen
        async with asyncio.TaskGroup() as group:
            group.create_task(self.chain.run(founds=founds))
            group.create_task(self._lead())
            group.create_task(self._say_so())

    def _over(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and task.exception() is not None and self.up:
            self.world.failed.append(task.exception())

    def crash(self) -> None:
        """As by `kill -9`: nothing is written or sent from now on."""
        self.up = False
        if self.log is not None:
            self.log.give_up(StorageError("the process was killed"))
        self._task.cancel()

    # -- network, and who is there ----------------------------------------------------------------------------

    async def agree(self, address: str, message: consensus.AnyMessage) -> None:
        data = msgspec.msgpack.encode(message)
        if len(data) > FRAME:
            raise UserError(f"a call may have {FRAME} bytes, this has {len(data)}")
        self.world.send(self, address, data)

    def receive(self, sender: str, message: "bytes | Message") -> None:
        if isinstance(message, bytes):
            self.world.work(self, self._hear(message_from(message)))
            return
        match message:
            case ("here", seat):
                self.seen = {other: at for other, at in self.seen.items() if other.address != seat.address}
                self.seen[seat] = loop().time()
            case ("start", round, attempt, base):
                update, weight = update_of(self.name, round, base)
                said = ("submit", round, attempt, base, update, weight)
                loop().call_later(
                    self.world.rng.uniform(0.01, self.world.work_time), self.world.send, self, sender, said
                )
            case ("submit", round, attempt, base, update, weight):
                self.arrived[round, attempt, sender] = base, update, weight

    async def _hear(self, message: consensus.AnyMessage) -> None:
        with suppress(BadRecord):
            await self.chain.heard(message)

    async def _say_so(self) -> None:
        while True:
            for other in self.world.names:
                self.world.send(self, other, ("here", self.seat))
            await asyncio.sleep(0.25)

    def _roster(self) -> tuple[Seat, ...]:
        """Itself, and who was heard of lately."""
        now = loop().time()
        here = [seat for seat, at in self.seen.items() if now - at < SILENT and seat.address != self.name]
        return tuple(sorted((self.seat, *here)))

    # -- verification: compute the model again ----------------------------------------------------------------

    async def _verify(self, record: Record, asked_for: float) -> str | None:
        if self.name in self.world.unable or record.digest in self.world.lost:
            return None
        try:
            events = job_events(record)
        except BadRecord as error:
            return str(error)
        if self.name in self.world.odd and any(isinstance(event, e.RoundClosed) for event in events):
            return "it makes another model here"
        job = self.agreed.jobs.get(JOB)
        for event in events:
            if isinstance(event, e.RoundClosed) and event.counted:
                accepted = {update.node: (update.digest, update.weight) for update in job.round.accepted}
                if event.model != model_of(job.round.opened.model, accepted):
                    return "another model"
            job = jobs.begin(event) if isinstance(event, e.JobSubmitted) else jobs.evolve(job, event)
        return ""

    # -- leading ------------------------------------------------------------------------------------------------

    async def _lead(self) -> None:
        while True:
            await self.chain.until(lambda chain: chain.leading)
            term, self.arrived = self.chain.term, {}
            self.log = ChainLog(self.chain, self.agreed)
            working = asyncio.create_task(self._coordinate(Journal(self.log, loop().time)))
            working.add_done_callback(self._over)
            await self.chain.until(lambda chain: not chain.leading or chain.term != term)  # noqa: B023
            self.log.give_up(LostLead("another leads"))
            working.cancel()
            await asyncio.wait([working])

    async def _coordinate(self, journal: Journal) -> None:
        """Until the lead is lost."""
        with suppress(StorageError):
            await journal.load()
            if JOB not in journal.jobs:
                await journal.submit(JOB, self.world.spec, DATA, by="", paused=False)
            if journal.jobs[JOB].status is jobs.Status.INITIALISING:
                await journal.job(JOB, c.Initialise(model=digest("first"), state=digest("first"), parameters=4))
            if journal.jobs[JOB].round is not None:
                await journal.job(JOB, c.Extend(reason="another leads"))
            told: dict[tuple[int, int, str], float] = {}
            while True:
                if not await self._step(journal, told):
                    await asyncio.sleep(0.05)

    async def _step(self, journal: Journal, told: dict[tuple[int, int, str], float]) -> bool:
        """Whether anything has happened."""
        job, now = journal.jobs[JOB], loop().time()
        here = [seat.address for seat in self._roster()]
        if job.round is None and self.chain.replica.tip.roster != self._roster():
            await self.log.flush()
            return True
        if job.final:
            return False
        if await self._command(journal, c.Tick()):
            return True
        if job.round is not None:
            for node in job.round.waiting_for:
                if node not in here:
                    return await self._command(journal, c.Drop(node=node, reason="silent"))
            for (round, attempt, node), (base, update, weight) in list(self.arrived.items()):
                del self.arrived[round, attempt, node]
                if base != job.round.opened.model:
                    continue  # made in a history that gave way: the signature, under another model, does not hold
                submit = c.SubmitUpdate(
                    round=round, attempt=attempt, node=node, digest=update, weight=weight, metrics={}
                )
                if await self._command(journal, submit):
                    return True
        match jobs.react(job, now=now):
            case c.GatherCohort():
                return await self._command(journal, c.Open(candidates=here, settings={}, shares_state=False))
            case c.Assign(nodes=nodes):
                opened = job.round.opened
                for node in nodes:
                    key = (opened.round, opened.attempt, node)
                    if now - told.get(key, -9.0) > 0.5:
                        told[key] = now
                        self.world.send(self, node, ("start", opened.round, opened.attempt, opened.model))
            case c.Aggregate(updates=updates):
                manifest = {update.node: (update.digest, update.weight) for update in updates}
                opened = job.round.opened
                model = self.world.aggregate(self.name, opened.model, manifest)
                counted = {node: weight for node, (_, weight) in manifest.items()}
                close = c.Close(round=opened.round, attempt=opened.attempt, counted=counted, model=model, state=model)
                return await self._command(journal, close)
        return False

    async def _command(self, journal: Journal, command: c.Command) -> bool:
        with suppress(Conflict):
            return bool(await journal.job(JOB, command))
        return False


class World:
    """Everything that happens follows from `seed`."""

    def __init__(self, seed: int, members: int, rounds: int = 3) -> None:
        self.rng, self.lives = Random(seed), 0
        self._trace = sha256()
        self.names = [f"10.0.0.{number}:5001" for number in range(members)]
        self.disks = {name: Disk() for name in self.names}
        self.processes: dict[str, Process] = {}
        self.spec = load_spec(
            {
                "name": JOB,
                "dataset": "toy",
                "model": "linear",
                "rounds": rounds,
                "evaluation": {"nodes": False},
                "cohort": {"min_nodes": 1, "deadline": 5.0, "floor": 2.0, "retries": 100},
            }
        )
        self.wrong: set[str] = set()
        self.odd: set[str] = set()
        self.unable: set[str] = set()
        self.lost: set[str] = set()
        """Digests of records that nobody can look at any more: what they were made of is gone."""
        self.lied = self.forced = self.wiped = 0
        self.still: set[str] = set()
        """Who stands still."""
        self.sides: dict[str, int] = {}
        self.links: dict[tuple[str, str], float | None] = {}
        """Seconds that messages of agreement take from one to another, where that is fixed; None: for ever."""
        self.loss = self.double = self.fragile = self.breaks = 0.0
        self.slow, self.slow_disk, self.work_time = 0.05, 0.005, 0.4
        self.chosen: dict[str, str] = {}
        self.failed: list[BaseException | None] = []
        self._working: set[asyncio.Task[None]] = set()

    @property
    def trace(self) -> str:
        return self._trace.hexdigest()

    @property
    def now(self) -> float:
        return loop().time()

    def aggregate(self, by: str, base: str, manifest: dict[str, tuple[str, int]]) -> str:
        if by in self.wrong:
            self.lied += 1
            return digest("wrong")
        return model_of(base, manifest)

    def committed(self, chain: list[Record], records: list[Record]) -> None:
        """After one record there must never be two in one generation, whoever takes them for chosen."""
        for record in records:
            if record.height and record.generation != chain[record.height - 1].generation:
                continue  # somebody forced it
            before = self.chosen.setdefault(record.previous, record.digest)
            assert before == record.digest, f"two records have height {record.height}"

    # -- processes and network ----------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        if name not in self.processes or not self.processes[name].up:
            self.processes[name] = Process(self, name, self.disks[name])

    def restart_soon(self, process: Process) -> None:
        loop().call_later(self.rng.choice([0.01, 0.5, 3.0]), self.start, process.name)

    def work(self, process: Process, coroutine: object) -> None:
        """A call under way at this process; its caller may die, which cancels it."""
        task = asyncio.ensure_future(coroutine)
        self._working.add(task)

        def over(task: "asyncio.Task[None]") -> None:
            self._working.discard(task)
            if not task.cancelled() and task.exception() is not None and process.up:
                self.failed.append(task.exception())

        task.add_done_callback(over)
        if self.rng.random() < self.breaks:
            loop().call_later(self.rng.uniform(0.0, self.slow_disk), task.cancel)

    def send(self, process: Process, to: str, message: "bytes | Message") -> None:
        if not process.up or to not in self.names or self.rng.random() < self.loss:
            return
        for _ in range(2 if self.rng.random() < self.double else 1):
            by_chance = 0.0 if process.name == to else self.rng.uniform(0.001, self.slow)
            delay = self.links.get((process.name, to), by_chance) if isinstance(message, bytes) else by_chance
            if delay is not None:
                loop().call_later(delay, self.deliver, process.name, to, message)

    def deliver(self, sender: str, to: str, message: "bytes | Message") -> None:
        process = self.processes.get(to)
        if process is None or not process.up or self.sides.get(sender, 0) != self.sides.get(to, 0):
            return
        self._trace.update(repr((round(self.now, 6), sender, to, message)).encode())
        process.receive(sender, message)

    async def run(self, seconds: float) -> None:
        """Time passes; what is in memory and what is on disk is the same whenever nothing is being written."""
        end = self.now + seconds
        while self.now < end - 1e-9:
            await asyncio.sleep(min(0.1, end - self.now))
            if self.failed:
                raise AssertionError(f"a member ended: {self.failed[0]!r}") from self.failed[0]
            for process in self.up:
                if process.chain.records and not process.chain._turn.locked():
                    same = [*process.chain.records] == process.disk.records
                    assert same, f"{process.name}: disk and memory differ"
                    assert process.chain.replica.durable == process.disk.durable, process.name

    async def until(self, condition: Callable[[], bool], limit: float = 60.0) -> None:
        """Raises TimeoutError."""
        end = self.now + limit
        while not condition():
            if self.now > end:
                raise TimeoutError(f"it does not happen: {self.state()}")
            await self.run(0.01)

    def begin(self) -> None:
        """The first founds the ring; the others ask for its chain."""
        for name in self.names:
            self.start(name)

    @property
    def up(self) -> list[Process]:
        return [process for process in self.processes.values() if process.up]

    def longest(self) -> list[Record]:
        return max((disk.records for disk in self.disks.values()), key=len)

    # -- what goes wrong ------------------------------------------------------------------------------------------

    async def misbehave(self, seconds: float, *, harsh: bool = False) -> None:
        """One thing after the other, for so long; `harsh`: as much of everything as there is."""

        def one_of(*choices: float) -> float:
            return choices[-1] if harsh else self.rng.choice(choices)

        end = self.now + seconds
        self.loss, self.double = one_of(0.0, 0.05, 0.2), one_of(0.0, 0.1)
        self.slow, self.work_time = self.rng.choice([0.01, 0.2, 1.5]), one_of(0.4, 0.02)
        self.fragile, self.breaks, self.slow_disk = one_of(0.0, 0.003, 0.02), one_of(0.0, 0.1), one_of(0.001, 0.03)
        while self.now < end:
            name = self.rng.choice(self.names)
            process = self.processes[name]
            match self.rng.randrange(9):
                case 0 if process.up:
                    process.crash()
                case 1 | 0:
                    self.start(name)
                case 2:
                    self.sides = {name: self.rng.randrange(2) for name in self.names}
                case 3:
                    self.sides = {}
                case 4:
                    self.odd = {name} if self.rng.random() < 0.5 else set()
                case 5:
                    self.unable = {name} if self.rng.random() < 0.5 else set()
                case 6 if process.up:
                    self.strange(process)
                case 7 if process.up and self.now - process.chain.leader_heard_at > 4.0:
                    self.force(process)
                case 8:
                    self.wipe(name)
            await self.run(self.rng.uniform(0.05, 0.6 if harsh else 1.2))

    async def disturb(self, seconds: float, *, crashes: bool) -> None:
        """Agreement alone is disturbed: members stand still or are cut off, messages are late; the roster stays.

        With crashes it does not, and there are new records.
        """
        end = self.now + seconds
        while self.now < end:
            some = self.rng.sample(self.names, self.rng.randint(1, len(self.names)))
            match self.rng.randrange(5 if crashes else 4):
                case 0 | 1:
                    for name in some:
                        if self.processes[name].up and name not in self.still:
                            self.work(self.processes[name], self.stand_still(name, self.rng.uniform(0.8, 4.0)))
                case 2:
                    fate = self.rng.choice([None, 0.4, 1.2, 2.5])
                    self.links |= {(one, other): fate for one in some for other in self.names}
                case 3:
                    self.links = {}
                case 4:
                    self.processes[some[0]].crash()
                    self.start(some[0])
            await self.run(self.rng.uniform(0.05, 2.0))
        await self.until(lambda: not self.still)

    async def stand_still(self, name: str, seconds: float) -> None:
        """As by SIGSTOP: what comes has to wait, and the member first notices that time has passed."""
        self.still.add(name)
        async with self.processes[name].chain._turn:
            await asyncio.sleep(seconds)
        self.still.remove(name)

    def calm(self) -> bool:
        """One leads, everybody says so, and nobody would refuse it its vote."""
        leading = [process for process in self.up if process.chain.leading]
        if len(leading) != 1 or any(process.chain.fault for process in self.up):
            return False
        name, role = leading[0].name, leading[0].chain.replica.role
        promised = [process.disk.durable.promised for process in self.up]
        return {process.chain.leader for process in self.up} == {name} and max(promised) <= role.ballot

    def force(self, process: Process) -> None:
        """Somebody says that the others are lost."""
        self.forced += 1
        self.work(process, process.chain.reform())

    def wipe(self, name: str) -> None:
        """The disk of one that others can do without is lost, once."""
        tip = (self.longest() or [None])[-1]
        joined = [disk for disk in self.disks.values() if disk.records and len(disk.records[-1].roster) > 2]
        if self.wiped or tip is None or len(tip.roster) < 3 or len(joined) < 3:
            return
        self.wiped += 1
        if self.processes[name].up:
            self.processes[name].crash()
        self.disks[name] = Disk()
        self.start(name)

    def strange(self, process: Process) -> None:
        """Who is no member, or not sound, says something."""
        if not process.chain.records or not process.chain.replica.order:
            return
        tip, evil = process.chain.records[-1], Seat("evil:9")
        taken = after(tip, evil.address, [evil], b"")
        noise = after(tip, process.chain.replica.order[0], tip.roster, b"\xc1")
        whole = msgspec.structs.replace(first(evil), generation=10**9)
        sender = self.rng.choice([evil.address, noise.leader])
        header = {"sender": sender, "generation": tip.generation, "height": tip.height + 1}
        said = self.rng.choice(
            [
                consensus.Commit(**header, tip=taken.digest, record=taken),
                consensus.Commit(**header, tip=noise.digest, record=noise),
                consensus.Records(**header, tip=taken.digest, records=(taken,)),
                consensus.Records(sender=sender, generation=10**9, height=0, tip=whole.digest, records=(whole,)),
            ]
        )
        self.work(process, process._hear(said))

    def mend(self) -> None:
        self.loss = self.double = self.fragile = self.breaks = 0.0
        self.slow, self.slow_disk, self.sides, self.links = 0.02, 0.005, {}, {}
        self.odd, self.unable = set(), set()
        for name in self.names:
            self.start(name)

    async def settle(self, limit: float = 120.0) -> None:
        """Until the job is over and all have the same chain, which must not take long once nothing fails.

        A disk that was lost may have been the only voter's, or that of whose vote is needed beside one against: then a
        light is BAD, and somebody has to force it.
        """
        end = self.now + limit
        while self.now < end:
            await self.run(0.5)
            if self.settled():
                return
            stuck = not any(process.chain.leading and not process.chain.fault for process in self.up)
            if self.wiped and end - self.now < limit / 2 and stuck:
                self.force(max(self.up, key=lambda process: process.chain.height))
                await self.run(5.0)
        raise AssertionError(f"not settled: {self.state()}")

    def settled(self) -> bool:
        tips = {disk.records[-1].digest if disk.records else "" for disk in self.disks.values()}
        job = self.processes[self.names[0]].agreed.jobs.get(JOB) if self.processes[self.names[0]].up else None
        return len(tips) == 1 and job is not None and job.final and len(self.up) == len(self.names)

    def state(self) -> list[str]:
        return [
            f"{name}: up={p.up} {p.chain.height + 1} records, {p.chain.replica.role}"
            for name, p in self.processes.items()
        ]

    def stop(self) -> None:
        for process in self.up:
            process.crash()


@contextmanager
def small_batches() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(consensus.chain, "cut", partial(cut_of_ring, size=BATCH))
        yield


def play(schedule: "Callable[[World], object]", world: World) -> World:
    """Run a schedule on virtual time to its end."""

    async def main() -> None:
        try:
            await schedule(world)
        finally:
            world.stop()
            await asyncio.sleep(1.0)

    with small_batches():
        run(main())
    return world
