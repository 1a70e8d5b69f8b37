"""A ring that trains, on virtual time: the real replicas and the real job machine, and a network that does its worst.

Every process keeps on its disk what it must (chain, promise and vote, updates) and loses the rest when it crashes. The
network delays, loses, doubles and cuts. Models and updates are only digests here: a model is the digest of its base and
of the updates in it, so two models are equal if and only if the same updates made them.
"""

import heapq
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count
from random import Random

import msgspec

from tutti.core.errors import Conflict
from tutti.domain import commands as c
from tutti.domain import events as e
from tutti.domain import jobs
from tutti.domain.spec import DataSchema, load_spec
from tutti.ring import consensus
from tutti.ring.consensus import Append, Follow, Lead, Send, Verify
from tutti.ring.record import Record, Seat

EVENTS = tuple[e.JobEvent, ...]
SILENT = 1.5
DATA = DataSchema("classification", (4,), 2)


def digest(*parts: object) -> str:
    return sha256(repr(parts).encode()).hexdigest()


def update_of(node: str, round: int, base: str) -> tuple[str, int]:
    """What a node makes of a model: the same whenever it is asked, and its weight."""
    return digest("update", node, round, base), 1 + int(digest(node)[:2], 16)


def model_of(base: str, manifest: dict[str, tuple[str, int]]) -> str:
    return digest("model", base, sorted(manifest.items()))


def events_of(record: Record) -> EVENTS:
    return msgspec.json.decode(record.body, type=EVENTS) if record.body else ()


def job_of(chain: list[Record]) -> jobs.Job | None:
    job = None
    for event in (event for record in chain for event in events_of(record)):
        job = jobs.begin(event) if isinstance(event, e.JobSubmitted) else jobs.evolve(job, event)
    return job


@dataclass
class Disk:
    chain: list[Record] = field(default_factory=list)
    durable: consensus.Durable = consensus.NOTHING
    updates: dict[tuple[int, str], set[str]] = field(default_factory=dict)
    """By round and node the updates of it that were stored here: more than one only if its base was another."""


@dataclass
class Coordinator:
    """What the leader does: the job machine, whose events wait until a round is closed. Lost when it crashes."""

    job: jobs.Job | None
    waiting: list[e.JobEvent] = field(default_factory=list)
    proposed: bool = False
    seen: dict[str, float] = field(default_factory=dict)
    told: dict[str, float] = field(default_factory=dict)


class Process:
    def __init__(self, world: "World", name: str) -> None:
        self.world, self.name, self.disk, self.life = world, name, Disk(), 0
        self.up = False

    def start(self) -> None:
        if self.up:
            return
        self.up, self.coordinator = True, None
        self.life += 1
        self.replica = consensus.restored(Seat(self.name), self.disk.chain, self.disk.durable, self.world.now)
        self.verifying: consensus.Vote | None = None
        self.world.after(0.0, self._tick, self)

    def crash(self) -> None:
        self.up, self.coordinator = False, None
        self.life += 1

    def tell(self, event: consensus.Event) -> None:
        self.replica, wishes = self.world.handle(self.replica, event, self.world.now)
        for wish in wishes:
            if isinstance(wish, Append):
                self.disk.chain = [*self.replica.chain]
        self.disk.durable = self.replica.durable
        for wish in wishes:
            if self.world.rng.random() < self.world.fragile:  # it dies with half of it done
                self.crash()
                self.world.after(self.world.rng.choice([0.01, 0.5, 3.0]), self.start, self)
            if self.up:
                self._carry_out(wish)

    def _carry_out(self, wish: consensus.Instruction) -> None:
        match wish:
            case Send(to, message):
                self.world.send(self.name, to, ("ring", message))
            case Verify(vote):
                self.verifying = vote
                self._verify()
            case Lead():
                self.coordinator = Coordinator(job_of(self.disk.chain))
            case Follow():
                self.coordinator = None
            case Append(records):
                self.world.committed(self, records)
                if self.coordinator is not None and self.coordinator.proposed:
                    mine = self.coordinator
                    mine.waiting, mine.proposed = [], False

    # -- verification: compute the model again ----------------------------------------------------------------

    def _verify(self) -> None:
        vote, self.verifying = self.verifying, None
        if vote is None or vote.record.previous != self.disk.chain[-1].digest:
            return  # another record came first
        fault, job = "", job_of(self.disk.chain)
        for event in events_of(vote.record):
            if isinstance(event, e.RoundClosed) and event.counted:
                assert job is not None
                accepted = {update.node: (update.digest, update.weight) for update in job.round.accepted}
                lacking = [n for n, (d, _) in accepted.items() if d not in self.disk.updates.get((event.round, n), ())]
                if lacking:
                    for node in lacking:
                        self.world.send(self.name, node, ("want", event.round, job.round.opened.model))
                    self.verifying = vote
                    return
                if event.model != model_of(job.round.opened.model, accepted):
                    fault = "another model"
            job = jobs.begin(event) if isinstance(event, e.JobSubmitted) else jobs.evolve(job, event)
        self.tell(consensus.Verified(vote, fault))

    # -- time and messages --------------------------------------------------------------------------------------

    def _tick(self) -> None:
        if self.name not in (self.disk.chain[-1].addresses if self.disk.chain else ()):
            self.tell(consensus.Seek(self.world.rng.choice(self.world.names)))
        self.tell(consensus.Tick())
        for candidate in self.replica.order:
            self.world.send(self.name, candidate, ("here",))
        self._verify()
        self._coordinate()
        self.world.after(0.2, self._tick, self)

    def receive(self, sender: str, message: tuple) -> None:
        match message:
            case ("ring", said):
                self.tell(consensus.Received(said))
            case ("here",) if self.coordinator is not None:
                self.coordinator.seen[sender] = self.world.now
            case ("start", round, attempt, base):
                seconds = self.world.rng.uniform(0.01, self.world.work)
                self.world.after(seconds, self._work, self, sender, round, attempt, base)
            case ("want", round, base):
                self.world.send(self.name, sender, ("store", round, update_of(self.name, round, base)[0]))
            case ("store", round, update):
                self.disk.updates.setdefault((round, sender), set()).add(update)
                self._verify()
            case ("submit", round, attempt, update, weight) if self.coordinator is not None:
                self._submitted(sender, round, attempt, update, weight)
        self._coordinate()

    def _work(self, asker: str, round: int, attempt: int, base: str) -> None:
        update, weight = update_of(self.name, round, base)
        for candidate in self.replica.order:
            self.world.send(self.name, candidate, ("store", round, update))
        self.world.send(self.name, asker, ("submit", round, attempt, update, weight))

    # -- what the leader does -------------------------------------------------------------------------------------

    def _submitted(self, sender: str, round: int, attempt: int, update: str, weight: int) -> None:
        if update in self.disk.updates.get((round, sender), ()):
            self._command(
                c.SubmitUpdate(round=round, attempt=attempt, node=sender, digest=update, weight=weight, metrics={})
            )

    def _command(self, command: c.Command) -> bool:
        mine = self.coordinator
        if mine is None or mine.job is None or mine.proposed:
            return False
        try:
            events = self.world.decide(mine.job, command, now=self.world.now)
        except Conflict:
            return False
        for event in events:
            mine.job = jobs.evolve(mine.job, event)
        mine.waiting += events
        return bool(events)

    def _coordinate(self) -> None:
        mine = self.coordinator
        if mine is None or mine.proposed:
            return
        if mine.job is None:
            submitted = jobs.submit("job", self.world.spec, DATA, now=self.world.now)
            mine.job = jobs.begin(submitted)
            mine.waiting.append(submitted)
            self._command(c.Initialise(model=digest("first"), state=digest("first"), parameters=4))
            self._propose()
            return
        while self._step():
            pass

    def _step(self) -> bool:
        mine = self.coordinator
        assert mine is not None
        if mine.proposed or mine.job is None or mine.job.final:
            if not mine.proposed and self._roster() != mine_roster(self.disk.chain):
                self._propose()
            return False
        here = [node for node, at in mine.seen.items() if self.world.now - at < SILENT]
        if mine.job.round is not None:
            for node in mine.job.round.waiting_for:
                if node not in here:
                    self._command(c.Drop(node=node, reason="silent"))
        if self._command(c.Tick()):
            return self._closed()
        match jobs.react(mine.job, now=self.world.now):
            case c.GatherCohort():
                return self._command(c.Open(candidates=here, settings={}, shares_state=False))
            case c.Assign(nodes=nodes):
                opened = mine.job.round.opened
                for node in nodes:
                    if self.world.now - mine.told.get(node, -9.0) > 0.5:
                        mine.told[node] = self.world.now
                        self.world.send(self.name, node, ("start", opened.round, opened.attempt, opened.model))
            case c.Aggregate(updates=updates):
                manifest = {update.node: (update.digest, update.weight) for update in updates}
                opened = mine.job.round.opened
                model = self.world.aggregate(self.name, opened.model, manifest)
                counted = {node: weight for node, (_, weight) in manifest.items()}
                close = c.Close(round=opened.round, attempt=opened.attempt, counted=counted, model=model, state=model)
                if self._command(close):
                    self._command(c.Tick())
                    return self._closed()
        return False

    def _closed(self) -> bool:
        """What ends a round is agreed on before anything else is done."""
        ends = (e.RoundClosed, e.RoundFailed, e.JobCompleted, e.JobFailed)
        if any(isinstance(event, ends) for event in self.coordinator.waiting):
            self._propose()
            return False
        return True

    def _propose(self) -> None:
        mine = self.coordinator
        mine.proposed, mine.told = True, {}
        self.tell(consensus.Propose(self._roster(), msgspec.json.encode(tuple(mine.waiting))))

    def _roster(self) -> tuple[Seat, ...]:
        """Who was on it, and whoever else says that it is here."""
        return tuple(sorted({*mine_roster(self.disk.chain), *(Seat(node) for node in self.coordinator.seen)}))


def mine_roster(chain: list[Record]) -> tuple[Seat, ...]:
    return chain[-1].roster


class World:
    """Everything that happens follows from `seed`. `handle`, `decide` and `aggregate` can be replaced by mutants."""

    def __init__(self, seed: int, members: int, rounds: int = 3) -> None:
        self.rng, self.now, self._order = Random(seed), 0.0, count()
        self._due: list = []
        self._trace = sha256()
        self.names = [f"10.0.0.{number}:5001" for number in range(members)]
        self.processes = {name: Process(self, name) for name in self.names}
        self.spec = load_spec(
            {
                "name": "job",
                "dataset": "toy",
                "model": "linear",
                "rounds": rounds,
                "evaluation": {"nodes": False},
                "cohort": {"min_nodes": 1, "deadline": 5.0, "floor": 2.0, "retries": 100},
            }
        )
        self.handle, self.decide = consensus.handle, jobs.decide
        self.wrong: set[str] = set()
        self.lied = 0
        self.sides: dict[str, int] = {}
        self.loss = self.double = self.fragile = 0.0
        self.slow, self.work = 0.05, 0.4
        self.chosen: dict[tuple[int, int], str] = {}

    @property
    def trace(self) -> str:
        return self._trace.hexdigest()

    def aggregate(self, by: str, base: str, manifest: dict[str, tuple[str, int]]) -> str:
        if by in self.wrong:
            self.lied += 1
            return digest("wrong")
        return model_of(base, manifest)

    def committed(self, process: Process, records: tuple[Record, ...]) -> None:
        """Two members must never take different records for chosen."""
        for record in records:
            before = self.chosen.setdefault((record.generation, record.height), record.digest)
            assert before == record.digest, f"two records have height {record.height}"

    def after(self, delay: float, act, process: Process, *arguments: object) -> None:
        entry = (self.now + delay, next(self._order), act, process, process.life, arguments)
        heapq.heappush(self._due, entry)

    def send(self, sender: str, to: str, message: tuple) -> None:
        if to not in self.processes or self.rng.random() < self.loss:
            return
        for _ in range(2 if self.rng.random() < self.double else 1):
            delay = 0.0 if sender == to else self.rng.uniform(0.001, self.slow)
            heapq.heappush(
                self._due, (self.now + delay, next(self._order), None, self.processes[to], 0, (sender, message))
            )

    def run(self, until: float) -> None:
        while self._due and self._due[0][0] <= until:
            self.now, _, act, process, life, arguments = heapq.heappop(self._due)
            if act is not None:
                if process.life == life:
                    act(*arguments)
                continue
            sender, message = arguments
            if process.up and self.sides.get(sender, 0) == self.sides.get(process.name, 0):
                self._trace.update(repr((round(self.now, 6), sender, process.name, message[0])).encode())
                process.receive(sender, message)
        self.now = until

    def begin(self) -> None:
        """Found the ring; the others ask for its chain with every tick."""
        for process in self.processes.values():
            process.start()
        founder = self.processes[self.names[0]]
        founder.tell(consensus.Found(Seat(founder.name)))

    def misbehave(self, seconds: float) -> None:
        """Crashes, restarts, cuts, losses, duplicates and delays, one after the other, for so long."""
        end = self.now + seconds
        self.loss, self.double = self.rng.choice([0.0, 0.05, 0.2]), self.rng.choice([0.0, 0.1])
        self.slow, self.work = self.rng.choice([0.01, 0.2, 1.5]), self.rng.choice([0.02, 0.4])
        self.fragile = self.rng.choice([0.0, 0.003, 0.02])
        while self.now < end:
            name = self.rng.choice(self.names)
            process = self.processes[name]
            match self.rng.randrange(4):
                case 0 if process.up:
                    process.crash()
                case 1 | 0 if not process.up:
                    process.start()
                case 2:
                    self.sides = {name: self.rng.randrange(2) for name in self.names}
                case 3:
                    self.sides = {}
            self.run(self.now + self.rng.uniform(0.05, 1.2))

    def mend(self) -> None:
        self.loss = self.double = self.fragile = 0.0
        self.slow, self.sides = 0.02, {}
        for process in self.processes.values():
            if not process.up:
                process.start()

    def settle(self, limit: float = 120.0) -> None:
        """Until the job is over and all have the same chain, which must not take long once nothing fails."""
        end = self.now + limit
        while self.now < end:
            self.run(self.now + 0.5)
            if self.settled():
                return
        raise AssertionError(f"not settled: {self.state()}")

    def settled(self) -> bool:
        chains = {tuple(record.digest for record in process.disk.chain) for process in self.processes.values()}
        first = self.processes[self.names[0]].disk.chain
        job = job_of(first) if len(chains) == 1 else None
        return job is not None and job.final

    def state(self) -> list[str]:
        return [
            f"{name}: up={p.up} {len(p.disk.chain)} records, {p.replica.role}, {p.replica.durable.promised}"
            for name, p in self.processes.items()
        ]
