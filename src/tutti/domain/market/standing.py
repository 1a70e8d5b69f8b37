"""What is known of workers and clients: a fold over events, changed in place by `apply` and `note_forgery` alone."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from tutti.domain.market import events as e
from tutti.domain.market.jobs import ComputeJob, at_risk, begin, evolve
from tutti.domain.market.reputation import Record
from tutti.domain.market.rules import RULES, Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """`offer` is its newest registration, `by` who made the first; `records` are by kind of job, `overall` of all.

    `base` is the record at a kind that it has not done yet: empty, but for forged updates of models.
    """

    offer: e.WorkerRegistered
    by: str
    since: float
    gflops: float = 0.0
    gpu_gflops: float = 0.0
    records: dict[str, Record] = field(default_factory=dict)
    overall: Record = field(default_factory=Record)
    base: Record = field(default_factory=Record)
    completed: int = 0
    failed: int = 0
    lost: int = 0

    @property
    def name(self) -> str:
        return self.offer.worker

    @property
    def owner(self) -> str:
        """Whose machine it says it is: its own, unless it says otherwise."""
        return self.offer.owner or self.name

    def unsupported(self, rules: Rules) -> list[str]:
        """Which of its claims no measurement supports, in words."""
        said = list[str]()
        if self.offer.gpu and self.gpu_gflops < rules.gpu:
            said.append(
                f"the GPU {self.offer.gpu!r} is unverified: {self.gpu_gflops:g} GFLOP/s were measured on it, "
                f"{rules.gpu:g} would show one"
            )
        best = max(self.gflops, self.gpu_gflops)
        if self.offer.claimed and best < rules.supports * self.offer.claimed:
            said.append(f"{self.offer.claimed:g} GFLOP/s are unverified: {best:g} were measured")
        return said

    def record(self, kind: str) -> Record:
        return self.records.get(kind, self.base)

    def after(self, kind: str, *, success: float = 0.0, failure: float = 0.0) -> "Worker":
        records = {**self.records, kind: self.record(kind).after(success=success, failure=failure)}
        return replace(self, records=records, overall=self.overall.after(success=success, failure=failure))

    def after_forgery(self) -> "Worker":
        """A forged update of a model: who does that would do so at any kind of job."""
        records = {kind: record.after(failure=1) for kind, record in self.records.items()}
        base, overall = self.base.after(failure=1), self.overall.after(failure=1)
        return replace(self, records=records, base=base, overall=overall, failed=self.failed + 1)


@dataclass(slots=True, eq=False)
class Market:
    """Everything that is known. `open`: jobs that are not settled.

    `busy`: which job and attempt each worker is at; `owes`: all those whose result it has not shown yet, also such as
    only wait for the commitments of others, which keep nobody from other work.
    """

    rules: Rules = RULES
    workers: dict[str, Worker] = field(default_factory=dict)
    clients: dict[str, e.ClientRegistered] = field(default_factory=dict)
    jobs: dict[str, ComputeJob] = field(default_factory=dict)
    coordinating: bool = True
    busy: dict[str, tuple[str, int]] = field(default_factory=dict)
    owes: dict[str, set[tuple[str, int]]] = field(default_factory=dict)
    open: dict[str, None] = field(default_factory=dict)
    locked: dict[str, int] = field(default_factory=dict)
    """Of each worker's stake, what is at risk with the jobs that are not settled."""
    forgeries: Counter[str] = field(default_factory=Counter)
    """Of each node, whether it is a worker yet or not, the updates of models that audits found to be made up."""

    def apply(self, event: e.MarketEvent, job_id: str = "") -> None:
        match event:
            case e.WorkerRegistered(worker=name):
                known = self.workers.get(name)
                self.workers[name] = replace(known, offer=event) if known else self._newcomer(event)
            case e.WorkerMeasured(worker=name, gflops=gflops, gpu=gpu):
                worker = self.workers[name]
                self.workers[name] = replace(worker, gpu_gflops=gflops) if gpu else replace(worker, gflops=gflops)
            case e.ClientRegistered(client=client):
                self.clients.setdefault(client, event)
            case e.CoordinationStopped() | e.CoordinationStarted():
                self.coordinating = isinstance(event, e.CoordinationStarted)
            case e.ComputeSubmitted():
                self.jobs[event.job] = begin(event)
                self.open[event.job] = None
            case _:
                self._evolve(self.jobs[job_id], event)

    def _newcomer(self, offer: e.WorkerRegistered) -> Worker:
        worker = Worker(offer=offer, by=offer.by, since=offer.at)
        for _ in range(self.forgeries[offer.worker]):
            worker = worker.after_forgery()
        return worker

    def note_forgery(self, node: str) -> None:
        """An audit of this node's training found an update that it did not compute."""
        self.forgeries[node] += 1
        if node in self.workers:
            self.workers[node] = self.workers[node].after_forgery()

    def _evolve(self, before: ComputeJob, event: e.ComputeEvent) -> None:
        job = self.jobs[before.id] = evolve(before, event)
        self._lock(before, -1)
        self._lock(job, +1)
        self._note(job, event)
        for attempt in before.attempts:
            self._done(attempt.worker, (job.id, attempt.number))
        for attempt in [] if job.final else job.live:
            if attempt.holds is None and not attempt.result:
                self.owes.setdefault(attempt.worker, set()).add((job.id, attempt.number))
                if not attempt.commitment:
                    self.busy[attempt.worker] = job.id, attempt.number
        if job.settled:
            self.open.pop(job.id, None)

    def _done(self, worker: str, attempt: tuple[str, int]) -> None:
        if self.busy.get(worker) == attempt:
            del self.busy[worker]
        if attempt in (owed := self.owes.get(worker, set())):
            owed.discard(attempt)
            if not owed:
                del self.owes[worker]

    def _lock(self, job: ComputeJob, sign: int) -> None:
        for attempt in at_risk(job):
            self.locked[attempt.worker] = self.locked.get(attempt.worker, 0) + sign * attempt.bond

    def _note(self, job: ComputeJob, event: e.ComputeEvent) -> None:
        """What an event does to the reputation of a worker. A result that is judged again counts again only if it
        turns out wrong; one for which next to nothing was paid counts next to nothing: who has jobs done for itself
        must not get a name by a thousand of them at a token each."""
        kind = job.submitted.kind.name
        match event:
            case e.ComputeJudged(attempt=number, holds=holds):
                worker = self.workers[job.attempt(number).worker]
                if not holds:
                    self.workers[worker.name] = replace(worker.after(kind, failure=1), failed=worker.failed + 1)
                elif not job.disputed or job.attempt(number).slot == job.slots[-1]:
                    success = min(1.0, job.share(job.attempt(number).slot) / self.rules.earnest)
                    worker = worker.after(kind, success=success)
                    self.workers[worker.name] = replace(worker, completed=worker.completed + 1)
            case e.ComputeReleased(attempt=number, ours=False):
                worker = self.workers[job.attempt(number).worker]
                worker = worker.after(kind, failure=self.rules.lost)
                self.workers[worker.name] = replace(worker, lost=worker.lost + 1)
            case _:
                pass

    def waiting(self) -> Iterator[tuple[ComputeJob, int]]:
        """Slots that want a worker, those of the oldest job first."""
        for job_id in self.open:
            job = self.jobs[job_id]
            for slot in job.open_slots(self.rules):
                yield job, slot
