"""A node over the local fabric: real messages, transfers and training; the test plays the coordinator."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import count, islice
from pathlib import Path
from random import Random
from time import monotonic
from typing import TypeVar

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from tutti.adapters.blobs.directory import DirectoryBlobs
from tutti.adapters.fabrics.local import LocalFabric, LocalLink
from tutti.core.errors import CorruptBlob, Forbidden, UserError
from tutti.core.params import Params
from tutti.core.registry import Choice
from tutti.domain.nodes import Capabilities, DataSummary
from tutti.domain.policy import GB, Policy, load_policy
from tutti.domain.spec import DataSchema, Metrics, Training
from tutti.ports import Arrived, Cancelled, Data, Examples, LinkRefused, Report, Said, Task, Work
from tutti.ports.blobs import Buffer
from tutti.ports.machine import Load
from tutti.services.node import NodeRuntime
from tutti.services.runner import Assignment, TaskRunner, backoff, reconnects, turned_away
from tutti.wire import tensors
from tutti.wire.messages import (
    Failure,
    GlobalWeights,
    Halt,
    Heartbeat,
    Message,
    Progress,
    Refusal,
    Registration,
    Start,
    Submission,
    Verdict,
)

pytestmark = pytest.mark.timeout(60)

NODE = "ward-3"
SCHEMA = DataSchema("regression", (3,), 1)
NIGHT = datetime(2024, 1, 1, 23, 0)
DAY = datetime(2024, 1, 2, 12, 0)
M = TypeVar("M", bound=Message)


# -- the parts: data, a trainer, a machine ---------------------------------------------------------------


def examples(rows: int, seed: int) -> Examples:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 3)).astype(np.float32)
    return Examples(x, (x @ np.array([[1.0], [-2.0], [0.5]], np.float32) + np.float32(3.0)).astype(np.float32))


DATA = Data("wards", SCHEMA, train=examples(40, 1), held_out=examples(10, 2))


def model(value: float = 0.0) -> Params:
    return Params.from_arrays({"w": np.full((3, 1), value, np.float32), "b": np.full(1, value, np.float32)})


class LinearTrainer:
    """Least squares by mini-batch SGD. A closed `gate` holds training up; `tasks` and `ended` count the work."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.extra: Metrics = {}
        self.gate = threading.Event()
        self.gate.set()
        self.tasks: list[Task] = []
        self.ended: list[str] = []
        self._news = threading.Condition()
        self.loss_told: float | None = 1.0

    def init(self, seed: int) -> Params:
        return model()

    def train(self, params: Params, examples: Examples, task: Task, report: Report) -> Work:
        how = "done"
        with self._news:
            self.tasks.append(task)
            self._news.notify_all()
        try:
            with np.errstate(all="ignore"):
                return self._train(params, examples, task, report)
        except BaseException as error:
            how = type(error).__name__
            raise
        finally:
            with self._news:
                self.ended.append(how)
                self._news.notify_all()

    async def begin(self) -> None:
        """Wait until a training has begun."""
        await self._until(lambda: len(self.tasks) > 0)

    async def end(self) -> None:
        """Wait until a training has ended, one way or another."""
        await self._until(lambda: len(self.ended) > 0)

    async def _until(self, ready: Callable[[], bool]) -> None:
        def wait() -> bool:
            with self._news:
                return self._news.wait_for(ready, timeout=20)

        assert await asyncio.to_thread(wait), f"begun: {self.tasks}, ended: {self.ended}"

    def _train(self, params: Params, examples: Examples, task: Task, report: Report) -> Work:
        report(0.0, 0, self.loss_told)
        while not self.gate.wait(0.01):
            report(0.0, 0, self.loss_told)
        if self.error is not None:
            raise self.error
        local = Params(params.layout, params.buffer.copy())
        rng = np.random.default_rng(task.seed)
        for epoch in range(task.training.epochs):
            order = rng.permutation(len(examples))
            for begin in range(0, len(order), task.batch_size):
                rows = order[begin : begin + task.batch_size]
                x, y = examples.x[rows], examples.y[rows]
                error = x @ local["w"] + local["b"] - y
                local["w"][...] -= task.lr * (x.T @ error) / len(rows)
                local["b"][...] -= task.lr * error.mean(axis=0)
            report((epoch + 1) / task.training.epochs, epoch, float((error**2).mean()))
        steps = task.training.epochs * -(-len(examples) // task.batch_size)
        return Work(local, len(examples), {"loss": float((error**2).mean()), **self.extra}, steps)

    def evaluate(self, params: Params, examples: Examples) -> Metrics:
        error = self.predict(params, examples.x) - examples.y
        with np.errstate(over="ignore"):
            return {"loss": float((error**2).mean()), "mse": float((error**2).mean())}

    def predict(self, params: Params, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return x @ params["w"] + params["b"]


class SmallHost:
    def capabilities(self) -> Capabilities:
        return Capabilities(cpus=4, memory=8 * GB, platform="test")

    charge: float | None = None
    plugged = False

    def load(self) -> Load:
        return Load(cpu=0.25, memory=0.5, battery=self.charge, plugged=self.plugged)


# -- the coordinator's side, played by the test ----------------------------------------------------------


class WatchedLink(LocalLink):
    """Tells the test when a download is tried."""

    def __init__(self, fabric: LocalFabric | None) -> None:
        super().__init__(fabric)
        self.fetching = asyncio.Event()

    async def fetch(self, digest: str) -> Buffer:
        self.fetching.set()
        return await super().fetch(digest)


class Script:
    """Hears what nodes say, and lets the test wait for it."""

    def __init__(self, fabric: LocalFabric) -> None:
        self.fabric = fabric
        self.arrivals: list[Registration] = []
        self.said: list[object] = []
        self._news = asyncio.Condition()

    async def listen(self) -> None:
        async for event in self.fabric.events():
            async with self._news:
                if isinstance(event, Arrived):
                    self.arrivals.append(event.registration)
                elif isinstance(event, Said):
                    self.said.append(event.message)
                self._news.notify_all()

    async def _until(self, ready: Callable[[], bool]) -> None:
        async with self._news, asyncio.timeout(20):
            await self._news.wait_for(ready)

    async def arrived(self, count: int = 1) -> Registration:
        await self._until(lambda: len(self.arrivals) >= count)
        return self.arrivals[count - 1]

    def all(self, kind: type[M]) -> list[M]:
        return [message for message in self.said if isinstance(message, kind)]

    async def hear(self, kind: type[M], count: int = 1) -> M:
        """The `count`-th message of a kind, as soon as it is there."""
        await self._until(lambda: len(self.all(kind)) >= count)
        return self.all(kind)[count - 1]

    def tell(self, message: Message) -> None:
        assert self.fabric.send(NODE, message), f"the node was not there for {message}"  # type: ignore[arg-type]


@dataclass
class Bench:
    fabric: LocalFabric
    blobs: DirectoryBlobs
    link: WatchedLink
    script: Script
    trainer: LinearTrainer
    workdir: Path
    runtime: NodeRuntime = field(init=False)
    node: "asyncio.Task[None] | None" = None
    expected_to_end: bool = False
    clock: list[datetime] = field(default_factory=lambda: [NIGHT])

    async def publish(self, params: Params) -> str:
        """Store a model where the node can fetch it."""

        return await self.blobs.put(tensors.encode(params))

    async def start(self, value: float = 0.0, **changes: object) -> Start:
        fields: dict[str, object] = {
            "job": "job-1",
            "name": "wards",
            "round": 1,
            "attempt": 0,
            "rounds": 4,
            "task": "train",
            "model": Choice("linear"),
            "data": SCHEMA,
            "weights": await self.publish(model(value)),
            "seed": 7,
            "cohort": 2,
            "training": Training(epochs=2, lr=0.1),
        }
        return Start(**(fields | changes))  # type: ignore[arg-type]

    async def update(self, submission: Submission) -> Params:
        return tensors.decode(self.blobs.path(submission.digest).read_bytes())


def secret_is_right(node: str, token: str) -> None:
    if token != "secret":
        raise Forbidden(f"the token of {node} is wrong")


@asynccontextmanager
async def a_bench(
    root: Path,
    *,
    policy: Policy | None = None,
    data: Data = DATA,
    error: BaseException | None = None,
    here: bool = True,
) -> AsyncIterator[Bench]:
    """A node at work in a background task; `here`: its coordinator is there from the start."""
    blobs = DirectoryBlobs(root / "blobs")
    fabric = LocalFabric(secret_is_right, blobs)
    link = WatchedLink(fabric if here else None)
    bench = Bench(fabric, blobs, link, Script(fabric), LinearTrainer(error), root / "node")

    def trainer_for(choice: Choice, schema: DataSchema) -> LinearTrainer:
        if choice.name != "linear":
            raise UserError(f"there is no model {choice.name!r}")
        return bench.trainer

    bench.runtime = NodeRuntime(
        name=NODE,
        token="secret",
        link=link,
        data=data,
        policy=policy or Policy(),
        machine=SmallHost(),
        workdir=bench.workdir,
        trainer_for=trainer_for,
        now=lambda: bench.clock[0],
    )
    mishaps: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: mishaps.append(context))
    listening = asyncio.create_task(bench.script.listen())
    bench.node = asyncio.create_task(bench.runtime.run())
    try:
        if here:
            await bench.script.arrived()
        yield bench
    finally:
        bench.trainer.gate.set()
        for task in (listening, bench.node):
            task.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        if not bench.expected_to_end:
            with suppress(asyncio.CancelledError):
                await bench.node
        assert mishaps == []


# -- what a node does ------------------------------------------------------------------------------------


async def test_registers_with_machine_data_and_terms(tmp_path: Path) -> None:
    async with a_bench(tmp_path, policy=load_policy('max_cpus = 2\nmin_cohort = 2\nallow_jobs = ["w*"]')) as bench:
        registration = await bench.script.arrived()
        heartbeat = await bench.script.hear(Heartbeat)
    assert registration.node == NODE
    assert registration.capabilities == Capabilities(cpus=2, memory=8 * GB, platform="test")
    assert registration.data == DataSummary("wards", SCHEMA, 40, 10, DATA.digest())
    assert (registration.terms.jobs, registration.terms.min_cohort) == (("w*",), 2)
    assert heartbeat == Heartbeat(cpu=0.25, memory=0.5, open=True)


async def test_trains_and_hands_in_the_difference(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        training = Training(epochs=2, lr=0.1, lr_schedule=Choice("step", {"every": 1, "gamma": 0.5}))
        start = await bench.start(
            round=2, training=training, strategy=Choice("fedprox"), settings={"mu": 0.1}, evaluate=True
        )
        bench.script.tell(start)
        submission = await bench.script.hear(Submission)
        update = await bench.update(submission)

    expected = Task(training, seed=7, batch_size=16, lr=0.05)
    (task,) = bench.trainer.tasks
    assert task.correction.pull == 0.1
    assert replace(task, correction=expected.correction) == expected
    work = LinearTrainer().train(model(), DATA.train, expected, lambda *_: None)
    np.testing.assert_array_equal(update.buffer, work.params.buffer)
    assert (submission.job, submission.round, submission.attempt) == ("job-1", 2, 0)
    assert submission.weight == 40
    measured = LinearTrainer().evaluate(model(), DATA.held_out)
    assert submission.metrics == {
        "train_loss": work.metrics["loss"],
        "train_examples": 40.0,
        "eval_loss": measured["loss"],
        "eval_mse": measured["mse"],
        "eval_examples": 10.0,
        "batch_size": 16.0,
    }
    assert submission.seconds > 0


async def test_the_update_is_local_minus_global(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        bench.script.tell(start := await bench.start(value=0.5, training=Training(batch_size=5)))
        update = await bench.update(await bench.script.hear(Submission))
    work = LinearTrainer().train(model(0.5), DATA.train, Task(start.training, 7, 5, 0.1), lambda *_: None)
    np.testing.assert_array_equal(update.buffer, work.params.buffer - np.float32(0.5))
    assert bench.trainer.tasks[0].batch_size == 5


async def test_the_same_start_gives_the_same_bytes_on_every_run(tmp_path: Path) -> None:
    digests = []
    for run in ("a", "b"):
        async with a_bench(tmp_path / run) as bench:
            bench.script.tell(await bench.start())
            digests.append((await bench.script.hear(Submission)).digest)
    assert digests[0] == digests[1]


async def test_only_measures_when_that_is_the_task(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        bench.script.tell(await bench.start(task="evaluate", value=0.5))
        submission = await bench.script.hear(Submission)
    assert (submission.digest, submission.weight) == ("", 10)
    assert submission.metrics["eval_mse"] == LinearTrainer().evaluate(model(0.5), DATA.held_out)["mse"]
    assert submission.metrics.keys() == {"eval_loss", "eval_mse", "eval_examples"}
    assert bench.trainer.tasks == []


async def test_says_so_when_there_are_no_rows_to_measure_on(tmp_path: Path) -> None:
    data = Data("wards", SCHEMA, train=DATA.train, held_out=examples(0, 1))
    async with a_bench(tmp_path, data=data) as bench:
        bench.script.tell(await bench.start(task="evaluate"))
        assert (await bench.script.hear(Failure)).reason == "wards holds out no rows here to measure a model on"
        bench.script.tell(await bench.start(evaluate=True))
        assert "eval_examples" not in (await bench.script.hear(Submission)).metrics


# -- once, whatever happens to the connection --------------------------------------------------------------


async def test_the_same_start_twice_is_done_once(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        bench.trainer.gate.clear()
        bench.script.tell(start := await bench.start())
        bench.script.tell(start)
        await bench.trainer.begin()
        bench.script.tell(start)
        bench.trainer.gate.set()
        first = await bench.script.hear(Submission)
        bench.script.tell(start)
        again = await bench.script.hear(Submission, 2)
        gc.collect()  # asyncio reports a failed task that nobody awaited when it is collected
    assert again == first
    assert len(bench.trainer.tasks) == 1


async def test_one_more_attempt_at_a_round_is_handed_in_without_training_again(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        start = await bench.start()
        bench.script.tell(start)
        first = await bench.script.hear(Submission)
        bench.script.tell(msgspec.structs.replace(start, attempt=1, cohort=5))
        again = await bench.script.hear(Submission, 2)
        assert first.received > 0  # the model came with the first attempt only
        assert again == msgspec.structs.replace(first, attempt=1, received=0)  # the seconds are those of the first
        assert len(bench.trainer.tasks) == 1
        bench.script.tell(msgspec.structs.replace(start, attempt=2, seed=8))
        await bench.script.hear(Submission, 3)
        assert len(bench.trainer.tasks) == 2


async def test_training_goes_on_through_a_lost_connection(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        bench.trainer.gate.clear()
        bench.script.tell(start := await bench.start())
        await bench.trainer.begin()
        bench.link.drop()
        await bench.script.arrived(2)
        bench.script.tell(start)
        bench.trainer.gate.set()
        submission = await bench.script.hear(Submission)
        assert (await bench.update(submission)).layout == model().layout
    assert bench.trainer.ended == ["done"]


async def test_work_finished_while_the_coordinator_was_away_is_handed_in_when_it_asks_again(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        bench.trainer.gate.clear()
        bench.script.tell(start := await bench.start())
        await bench.trainer.begin()
        bench.link.fabric = None
        bench.link.drop()
        bench.trainer.gate.set()
        await bench.trainer.end()
        bench.link.fabric = bench.fabric
        await bench.script.arrived(2)
        bench.script.tell(start)
        submission = await bench.script.hear(Submission)
        assert (await bench.update(submission)).layout == model().layout
    assert len(bench.trainer.tasks) == 1


async def test_a_lost_failure_is_told_again_without_a_second_try(tmp_path: Path) -> None:
    async with a_bench(tmp_path, error=ValueError("no")) as bench:
        bench.script.tell(start := await bench.start())
        first = await bench.script.hear(Failure)
        bench.script.tell(start)
        assert await bench.script.hear(Failure, 2) == first
    assert len(bench.trainer.tasks) == 1


async def test_a_transfer_waits_for_a_coordinator_that_is_away(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        start = await bench.start()
        bench.link.fabric = None  # messages still come through, blobs do not
        bench.script.tell(start)
        await asyncio.wait_for(bench.link.fetching.wait(), 20)
        bench.link.fabric = bench.fabric
        assert (await bench.script.hear(Submission)).weight == 40
        assert bench.script.all(Failure) == []


async def test_waits_for_a_coordinator_that_is_not_there_yet(tmp_path: Path) -> None:
    async with a_bench(tmp_path, here=False) as bench:
        bench.link.fabric = bench.fabric
        await bench.script.arrived()
        bench.script.tell(await bench.start())
        await bench.script.hear(Submission)


async def test_update_is_stored_and_submitted_again_when_its_bytes_got_lost(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        bench.script.tell(await bench.start())
        first = await bench.script.hear(Submission)
        bench.script.tell(Verdict(job="job-1", round=1, attempt=0, accepted=True))
        await bench.blobs.delete(first.digest)
        bench.script.tell(Verdict(job="job-1", round=1, attempt=0, accepted=False, reason="lost", resend=True))
        assert await bench.script.hear(Submission, 2) == first
        assert (await bench.update(first)).layout == model().layout
    assert len(bench.trainer.tasks) == 1


async def test_an_update_that_is_asked_for_again_and_again_is_handed_in_more_and_more_slowly(tmp_path: Path) -> None:
    again = Verdict(job="job-1", round=1, attempt=0, accepted=False, reason="the disk is full", resend=True)
    async with a_bench(tmp_path) as bench:
        bench.script.tell(await bench.start())
        await bench.script.hear(Submission)
        began = asyncio.get_running_loop().time()
        for count in range(2, 5):
            bench.script.tell(again)
            bench.script.tell(again)  # asked twice, handed in once
            await bench.script.hear(Submission, count)
        assert asyncio.get_running_loop().time() - began >= 0.05 + 0.1 + 0.2
        assert len(bench.script.all(Submission)) == 4
        assert bench.runtime._tasks.held is not None
        assert next(bench.runtime._tasks.held.delays) > 0.3
        bench.script.tell(Verdict(job="job-1", round=1, attempt=0, accepted=True))
        bench.script.tell(again)
        await bench.script.hear(Submission, 5)
        assert next(bench.runtime._tasks.held.delays) <= 0.2  # the second delay of a new row
    assert len(bench.trainer.tasks) == 1


async def test_an_outcome_that_is_too_long_to_tell_is_a_failure_with_the_reason(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        bench.trainer.extra = {f"a metric with a long name, number {i}": 1.0 for i in range(2000)}
        bench.script.tell(start := await bench.start())
        failure = await bench.script.hear(Failure)
        bench.script.tell(start)
        assert await bench.script.hear(Failure, 2) == failure
    assert failure.reason.startswith("a message may have 65536 bytes, this Submission has ")
    assert bench.script.all(Submission) == []


async def test_words_that_cannot_be_sent_do_not_keep_the_reason_back(tmp_path: Path) -> None:
    async with a_bench(tmp_path, error=UserError("cannot read '\udcff.csv'")) as bench:
        bench.script.tell(await bench.start())
        assert (await bench.script.hear(Failure)).reason == "cannot read '?.csv'"


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit("x"), asyncio.CancelledError("x")], ids=repr)
async def test_a_model_cannot_end_the_node(tmp_path: Path, error: BaseException) -> None:
    async with a_bench(tmp_path, error=error) as bench:
        bench.script.tell(await bench.start())
        failure = await bench.script.hear(Failure)
        bench.trainer.error = None
        bench.script.tell(await bench.start(round=2))
        await bench.script.hear(Submission)
    assert failure.reason == f"{type(error).__name__}: {error}"


async def test_a_module_of_a_jobs_choice_is_refused_unless_the_owner_listed_it(tmp_path: Path) -> None:
    wanted = Choice("module", {"entry": "lib2to3.__main__:x"})
    async with a_bench(tmp_path) as bench:
        bench.script.tell(await bench.start(model=wanted))
        reason = (await bench.script.hear(Failure)).reason
    assert reason.startswith("its owner does not let jobs import module 'lib2to3.__main__': add allow_modules = [")
    async with a_bench(tmp_path / "listed", policy=Policy(allow_modules=("lib2to3.*",))) as bench:
        bench.script.tell(await bench.start(model=wanted))
        assert (
            await bench.script.hear(Failure)
        ).reason == "there is no model 'module'"  # the bench's factory was asked


async def test_a_closed_round_frees_the_update(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        bench.script.tell(await bench.start())
        submission = await bench.script.hear(Submission)
        bench.script.tell(GlobalWeights(job="job-1", round=1, weights=submission.digest))
        bench.script.tell(Verdict(job="job-1", round=1, attempt=0, accepted=False, resend=True))
        failure = await bench.script.hear(Failure)
    assert failure.reason == "asked to hand in again an update that is not kept here any more"


async def test_refused_updates_and_messages_leave_the_node_ready(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        bench.script.tell(await bench.start())
        await bench.script.hear(Submission)
        bench.script.tell(Verdict(job="job-1", round=1, attempt=0, accepted=False, reason="too late"))
        bench.script.tell(Refusal(code="bad_message", detail="what?"))
        bench.script.tell(await bench.start(round=2))
        assert (await bench.script.hear(Submission, 2)).round == 2


# -- stopping ------------------------------------------------------------------------------------------------


async def test_halt_ends_the_work_and_the_node_takes_the_next(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        bench.trainer.gate.clear()
        bench.script.tell(await bench.start())
        await bench.trainer.begin()
        bench.script.tell(Halt(job="job-1", round=1, attempt=0, reason="closed without it"))
        await bench.trainer.end()
        bench.trainer.gate.set()
        bench.script.tell(await bench.start(round=2))
        assert (await bench.script.hear(Submission)).round == 2
    assert bench.trainer.ended == ["Cancelled", "done"]


async def test_words_about_another_round_change_nothing(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        bench.trainer.gate.clear()
        bench.script.tell(await bench.start(round=2))
        await bench.trainer.begin()
        bench.script.tell(Halt(job="job-1", round=1, attempt=0, reason="another round"))
        bench.script.tell(Halt(job="job-2", round=2, attempt=0, reason="another job"))
        bench.script.tell(GlobalWeights(job="job-1", round=1, weights="0" * 64))
        bench.script.tell(Verdict(job="job-1", round=1, attempt=0, accepted=False, reason="lost", resend=True))
        assert (await bench.script.hear(Failure)).round == 1
        bench.trainer.gate.set()
        assert (await bench.script.hear(Submission)).round == 2
    assert bench.trainer.ended == ["done"]


async def test_a_new_round_replaces_the_old_one(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        bench.trainer.gate.clear()
        bench.script.tell(await bench.start())
        await bench.trainer.begin()
        bench.script.tell(await bench.start(round=2))
        await bench.trainer.end()
        bench.trainer.gate.set()
        assert (await bench.script.hear(Submission)).round == 2
        assert bench.script.all(Failure) == []
    assert bench.trainer.ended == ["Cancelled", "done"]


async def test_another_job_replaces_the_old_one_which_is_told(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        bench.trainer.gate.clear()
        bench.script.tell(await bench.start())
        await bench.trainer.begin()
        bench.script.tell(await bench.start(job="job-2"))
        failure = await bench.script.hear(Failure)
        bench.trainer.gate.set()
        assert (await bench.script.hear(Submission)).job == "job-2"
    assert (failure.job, failure.reason) == ("job-1", "given up for job job-2 round 1")


async def test_cancelling_the_node_ends_its_training(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        bench.trainer.gate.clear()
        bench.script.tell(await bench.start())
        await bench.trainer.begin()
        assert bench.node is not None
        bench.node.cancel()
        with pytest.raises(asyncio.CancelledError):
            await bench.node
        await bench.trainer.end()
        assert bench.trainer.ended == [Cancelled.__name__]


async def test_a_node_with_a_wrong_token_ends_with_the_reason(tmp_path: Path) -> None:
    fabric = LocalFabric(secret_is_right, DirectoryBlobs(tmp_path / "blobs"))
    node = NodeRuntime(
        name=NODE,
        token="guess",
        link=LocalLink(fabric),
        data=DATA,
        policy=Policy(),
        machine=SmallHost(),
        workdir=tmp_path / "node",
        trainer_for=lambda choice, schema: LinearTrainer(),
    )
    with pytest.raises(LinkRefused, match="the token of ward-3 is wrong"):
        await asyncio.wait_for(node.run(), 10)


async def test_a_fatal_refusal_ends_the_node(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        bench.expected_to_end = True
        bench.script.tell(Refusal(code="removed", detail="this node was removed", fatal=True))
        assert bench.node is not None
        with pytest.raises(LinkRefused, match="this node was removed"):
            await asyncio.wait_for(bench.node, 10)


# -- refusing, failing, staying --------------------------------------------------------------------------------


async def test_the_owners_policy_is_obeyed(tmp_path: Path) -> None:
    async with a_bench(tmp_path, policy=load_policy("min_cohort = 3")) as bench:
        bench.script.tell(await bench.start())
        failure = await bench.script.hear(Failure)
        bench.script.tell(await bench.start(cohort=3))
        await bench.script.hear(Submission)
    assert (failure.job, failure.round, failure.attempt) == ("job-1", 1, 0)
    assert failure.reason == "its owner wants cohorts of 3 or more, this one has 2"


async def test_work_ends_with_the_owners_hours(tmp_path: Path) -> None:
    async with a_bench(tmp_path, policy=load_policy('hours = "22:00-06:00"')) as bench:
        bench.trainer.gate.clear()
        bench.script.tell(await bench.start())
        await bench.trainer.begin()
        bench.clock[0] = DAY
        bench.link.drop()  # every connection begins with a heartbeat, so there is no need to wait for the next
        registration = await bench.script.arrived(2)
        failure = await bench.script.hear(Failure)
        await bench.trainer.end()
        bench.script.tell(await bench.start(round=2))
        assert (await bench.script.hear(Failure, 2)).reason == "outside its owner's hours"
    assert failure.reason == "outside its owner's hours"
    assert not registration.terms.open
    assert bench.trainer.ended == ["Cancelled"]


async def test_work_ends_when_the_battery_runs_low_and_goes_on_at_the_mains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SmallHost, "charge", 0.5)
    async with a_bench(tmp_path, policy=load_policy("min_battery = 0.3")) as bench:
        bench.trainer.gate.clear()
        bench.script.tell(await bench.start())
        await bench.trainer.begin()
        monkeypatch.setattr(SmallHost, "charge", 0.2)
        bench.link.drop()
        registration = await bench.script.arrived(2)
        assert (await bench.script.hear(Failure)).reason == "its battery is at 20%, its owner wants 30% or more"
        await bench.trainer.end()
        monkeypatch.setattr(SmallHost, "plugged", True)
        bench.trainer.gate.set()
        bench.script.tell(await bench.start(round=2))
        await bench.script.hear(Submission)
    assert not registration.terms.open


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("matrices do not fit"), "ValueError: matrices do not fit"),
        (MemoryError(), "out of memory on the node"),
        (UserError("the model expects 4 columns, the data has 3"), "the model expects 4 columns, the data has 3"),
        (RuntimeError("x" * 9999), "RuntimeError: " + "x" * 486),
        (Cancelled("by itself"), "by itself"),
    ],
)
async def test_failing_work_is_told_and_the_node_stays(tmp_path: Path, error: Exception, reason: str) -> None:
    async with a_bench(tmp_path, error=error) as bench:
        bench.script.tell(await bench.start())
        assert (await bench.script.hear(Failure)).reason == reason
        bench.trainer.error = None
        bench.script.tell(await bench.start(round=2))
        assert (await bench.script.hear(Submission)).round == 2


async def test_an_update_that_cannot_be_stored_is_a_failure(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        bench.script.tell(await bench.start())
        await bench.script.hear(Submission)
        start = await bench.start(round=2, seed=8)
        (tmp_path / "blobs" / "tmp").rename(tmp_path / "unplugged")
        bench.script.tell(start)
        failure = await bench.script.hear(Failure)
        (tmp_path / "unplugged").rename(tmp_path / "blobs" / "tmp")
        bench.script.tell(await bench.start(round=3))
        assert (await bench.script.hear(Submission, 2)).round == 3
    assert failure.round == 2
    assert str(tmp_path / "blobs") in failure.reason


async def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        bench.script.tell(await bench.start(model=Choice("cnn")))
        assert (await bench.script.hear(Failure)).reason == "there is no model 'cnn'"
        bench.script.tell(await bench.start(round=2, data=DataSchema("regression", (4,), 1)))
        assert "does not fit the job: it is regression of 3" in (await bench.script.hear(Failure, 2)).reason
        bench.script.tell(await bench.start(round=3, weights="0" * 64))
        assert (await bench.script.hear(Failure, 3)).reason.startswith("there is no blob")
    assert bench.trainer.tasks == []


async def test_diverged_training_is_not_sent(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        bench.script.tell(await bench.start(training=Training(lr=1000.0, epochs=60)))
        failure = await bench.script.hear(Failure)
    assert failure.reason == "training diverged: 4 of 4 values are not finite; lower the learning rate"
    assert bench.trainer.ended == ["done"]


async def test_metrics_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        bench.script.tell(await bench.start(value=1e30, evaluate=True, training=Training(lr=1e-9)))
        submission = await bench.script.hear(Submission)
    assert "eval_loss" not in submission.metrics
    assert submission.metrics["eval_examples"] == 10.0
    assert msgspec.json.decode(msgspec.json.encode(submission), type=Submission) == submission


# -- models ------------------------------------------------------------------------------------------------


async def test_a_corrupt_model_is_not_trained_on(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        start = await bench.start()
        stored = bench.blobs.path(start.weights)
        whole = stored.read_bytes()
        stored.chmod(0o644)
        stored.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        bench.script.tell(start)
        failure = await bench.script.hear(Failure)
        stored.write_bytes(whole)
        bench.script.tell(msgspec.structs.replace(start, attempt=1))
        await bench.script.hear(Submission)
    assert start.weights[:12] in failure.reason
    assert len(bench.trainer.tasks) == 1


async def test_a_download_that_came_damaged_is_tried_once_more(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        tries: list[str] = []
        fetch = bench.link.fetch

        async def fetch_badly_at_first(digest: str) -> Buffer:
            tries.append(digest)
            if len(tries) == 1:
                raise CorruptBlob("the part that was here had been damaged")
            return await fetch(digest)

        bench.link.fetch = fetch_badly_at_first  # type: ignore[method-assign]
        bench.script.tell(start := await bench.start())
        await bench.script.hear(Submission)
    assert tries == [start.weights, start.weights]


async def test_the_last_model_is_not_fetched_again(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        for round in (1, 2):
            bench.script.tell(start := await bench.start(round=round, value=float(round)))
            await bench.script.hear(Submission, round)
        await bench.blobs.delete(start.weights)
        bench.script.tell(msgspec.structs.replace(start, attempt=1, seed=8))
        await bench.script.hear(Submission, 3)


# -- pace --------------------------------------------------------------------------------------------------------------


async def test_progress_is_told_at_once_and_then_only_now_and_then(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        bench.trainer.gate.clear()
        bench.script.tell(await bench.start(training=Training(epochs=500)))
        first = await bench.script.hear(Progress)
        bench.trainer.gate.set()
        await bench.script.hear(Submission)
    assert (first.job, first.round, first.attempt, first.done) == ("job-1", 1, 0, 0.0)
    assert len(bench.script.all(Progress)) < 20


async def test_each_epoch_that_takes_a_while_is_told_of(tmp_path: Path) -> None:
    told: list[int] = []

    class Listened(TaskRunner):
        def _note(self, held: Assignment, done: float, epoch: int = 0, loss: float | None = None) -> None:
            told.append(epoch)
            super()._note(held, done, epoch, loss)

    seconds = count()  # a second at each look at the clock: more than an epoch need take
    async with a_bench(tmp_path) as bench:
        trainer = LinearTrainer()
        runner = Listened(
            NODE, bench.link, DATA, tmp_path / "work", lambda *_: trainer, Random(1), lambda: float(next(seconds))
        )
        runner.progress_every = 1000.0
        runner.connected.set()
        runner.take(await bench.start(training=Training(epochs=4)), batch_size=8)
        await bench.script.hear(Submission)
        runner.close()
    assert told == [0, 1, 2, 3]


async def test_a_loss_that_is_no_number_is_not_told(tmp_path: Path) -> None:
    async with a_bench(tmp_path) as bench:
        trainer = LinearTrainer()
        trainer.gate.clear()
        trainer.loss_told = float("nan")
        runner = TaskRunner(NODE, bench.link, DATA, tmp_path / "work", lambda *_: trainer, Random(1), monotonic)
        runner.progress_every = 0.0
        runner.connected.set()
        runner.take(await bench.start(), batch_size=8)
        await trainer.begin()
        async with asyncio.timeout(20):
            told = [await runner.next_progress() for _ in range(5)]
        runner.close()
    assert {progress.loss for progress in told} == {None}


def test_backoff_is_quick_at_first_bounded_later_and_the_same_for_the_same_seed() -> None:
    delays = list(islice(backoff(Random(1)), 50))
    assert delays == list(islice(backoff(Random(1)), 50))
    assert 0.05 <= delays[0] <= 0.1
    assert all(2.5 <= delay <= 5.0 for delay in delays[6:])
    assert len(set(delays)) == 50


def test_whoever_looks_for_a_successor_asks_twice_a_second_for_a_while() -> None:
    delays = list(islice(reconnects(Random(1)), 60))
    assert all(delay <= 0.5 for delay in delays[:12])
    assert 3 <= sum(delays[:12]) <= 6
    assert 0.4 <= delays[12] <= 0.8
    assert all(2.5 <= delay <= 5.0 for delay in delays[15:])
    assert all(1.0 <= turned_away(Random(seed)) <= 5.0 for seed in range(20))
