"""Models made and measured in a process of their own, which goes away when it has been idle for a while.

The coordinator stays small and its event loop free; the framework's memory is returned to the machine.
"""

import asyncio
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
import numpy as np

from tutti.adapters._imports import importable
from tutti.adapters.browser.kernel import Kernel, NotForBrowsers, Step, shape_of
from tutti.adapters.trainers.batches import batches
from tutti.core.errors import StorageError, TuttiError, UserError
from tutti.core.params import Params
from tutti.core.registry import Choice
from tutti.domain.events import Digest
from tutti.domain.modules import unlisted
from tutti.domain.nodes import DataSummary
from tutti.domain.spec import DataSchema, Metrics, mismatch
from tutti.ports.training import Data, Examples, Task, Trainer, datasets, models, normalized
from tutti.wire import tensors

log = logging.getLogger(__name__)

IDLE_SECONDS = 60.0
DEATHS = 3
"""How often in a row one request may kill the process before the request is blamed."""

T = TypeVar("T")


def end_with_parent() -> None:
    """In the worker: a coordinator that is killed leaves nothing behind."""

    def wait() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


class Place(Protocol):
    """Where the work is done."""

    async def run(self, function: Callable[[bytes, str], T], request: bytes, path: str) -> T | UserError: ...

    async def close(self) -> None: ...


class Bench:
    """ports.Workbench; `allow_modules` are glob patterns of the Python modules that jobs may have imported here."""

    def __init__(self, place: Place, allow_modules: Sequence[str] = ()) -> None:
        self._place, self._listed = place, tuple(allow_modules)

    def check(self, model: Choice) -> None:
        check_listed(model, self._listed)

    async def initial(self, model: Choice, data: DataSchema, seed: int, into: Path) -> None:
        self.check(model)
        await self._run(_initial, msgspec.json.encode((model, data, seed, self._listed)), str(into))

    async def evaluate(self, model: Choice, data: DataSchema, source: Choice, weights: Path) -> Metrics:
        self.check(model)
        return await self._run(_evaluate, msgspec.json.encode((model, data, source, self._listed)), str(weights))

    async def train(
        self, model: Choice, data: DataSchema, source: Choice, task: Task, weights: Path, into: Path
    ) -> Digest:
        self.check(model)
        request = msgspec.json.encode((model, data, source, task, str(into), self._listed))
        return await self._run(_train, request, str(weights))

    async def assign(self, source: Choice, into: Path) -> DataSummary:
        return await self._run(_assign, msgspec.json.encode(source), str(into))

    async def audit(
        self, model: Choice, data: DataSchema, claimed: DataSummary, task: Task, weights: Path, update: Path
    ) -> str | None:
        return await self._run(_audit, msgspec.json.encode((model, data, claimed, task, str(update))), str(weights))

    async def close(self) -> None:
        await self._place.close()

    async def _run(self, function: Callable[[bytes, str], T], request: bytes, path: str) -> T:
        result = await self._place.run(function, request, path)
        if isinstance(result, UserError):
            raise result
        return result


class ThisProcess:
    """For simulations and tests, where the framework is loaded anyway."""

    async def run(self, function: Callable[[bytes, str], T], request: bytes, path: str) -> T | UserError:
        return await asyncio.to_thread(_guarded, function, request, path)

    async def close(self) -> None:
        pass


class OwnProcess:
    """One spawned worker process, started when first needed.

    If it dies that is TuttiError, to be tried again; dying again and again of one request is UserError.
    """

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._turn = asyncio.Lock()  # one at a time: so it is known of which request the process died
        self._deaths: Counter[bytes] = Counter()

    async def run(self, function: Callable[[bytes, str], T], request: bytes, path: str) -> T | UserError:
        async with self._turn:
            if self._timer is not None:
                self._timer.cancel()
            if self._pool is None:
                self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=end_with_parent)
            loop = asyncio.get_running_loop()
            try:
                result = await loop.run_in_executor(self._pool, _guarded, function, request, path)
            except BrokenProcessPool:
                self._pool = None
                raise self._died_of(request) from None
            finally:
                self._timer = loop.call_later(IDLE_SECONDS, self._rest)
            del self._deaths[request]
        return result

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def _died_of(self, request: bytes) -> TuttiError:
        self._deaths[request] += 1
        if self._deaths[request] < DEATHS:
            return TuttiError("the process that builds and measures models died (out of memory?)")
        del self._deaths[request]
        return UserError(
            f"the process that builds and measures models died {DEATHS} times in a row of this job's model "
            "(out of memory?): choose a smaller model, or a larger machine"
        )

    def _rest(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False)
            self._pool = None


def check_listed(model: Choice, listed: Sequence[str]) -> None:
    """Raise UserError, saying what to do, for a model whose module the coordinator's owner has not listed."""
    if (module := unlisted(model, listed)) is not None:
        raise UserError(
            f"the coordinator's owner does not let jobs import module {module!r}: start it with "
            f"`tutti up --allow-module {module}`, or list the module in TUTTI_ALLOW_MODULES"
        )


def _guarded(function: Callable[[bytes, str], T], request: bytes, path: str) -> T | UserError:
    """The function's result. A model is somebody else's code: whatever it raises, SystemExit too, is its mistake."""
    try:
        return function(request, path)
    except UserError as error:
        return error
    except (TuttiError, KeyboardInterrupt):
        raise
    except BaseException as error:
        log.exception("a model cannot be used")
        return UserError(f"the model cannot be used: {type(error).__name__}: {str(error)[:500]}")


def _initial(request: bytes, into: str) -> None:
    model, data, seed, listed = msgspec.json.decode(request, type=tuple[Choice, DataSchema, int, tuple[str, ...]])
    with importable(listed):
        encoded = tensors.encode(models.build(model, data=data).init(seed))
    with _disk(into):
        Path(into).write_bytes(encoded)


def _evaluate(request: bytes, weights: str) -> Metrics:
    types = tuple[Choice, DataSchema, Choice, tuple[str, ...]]
    model, schema, source, listed = msgspec.json.decode(request, type=types)
    rows = rows_of_own("evaluation.data", source, schema)
    with _disk(weights):
        stored = Path(weights).read_bytes()
    with importable(listed):
        return models.build(model, data=schema).evaluate(tensors.decode(stored), rows)


def _train(request: bytes, weights: str) -> Digest:
    types = tuple[Choice, DataSchema, Choice, Task, str, tuple[str, ...]]
    model, schema, source, task, into, listed = msgspec.json.decode(request, type=types)
    rows = rows_of_own("the coordinator's own data set", source, schema)
    with _disk(weights):
        params = tensors.decode(Path(weights).read_bytes())
    with importable(listed):
        delta = own_update(models.build(model, data=schema), params, rows, task)
    with _disk(into):
        Path(into).write_bytes(tensors.encode(delta))
    return _digest(msgspec.json.encode(source))


def _assign(source: bytes, into: str) -> DataSummary:
    data = _load(source)
    named = str(msgspec.json.decode(source, type=Choice))
    summary = DataSummary(data.name, data.schema, len(data.train), len(data.held_out), _digest(source), named)
    arrays = {
        f"{kind}.{axis}": getattr(rows, axis)
        for kind, rows in (("train", data.train), ("held_out", data.held_out))
        for axis in "xy"
    }
    encoded = tensors.encode(Params.from_arrays(arrays), {"summary": msgspec.json.encode(summary).decode()})
    with _disk(into):
        Path(into).write_bytes(encoded)
    return summary


def _audit(request: bytes, weights: str) -> str | None:
    types = tuple[Choice, DataSchema, DataSummary, Task, str]
    model, schema, claimed, task, update = msgspec.json.decode(request, type=types)
    source = msgspec.json.encode(Choice.parse(claimed.source))
    if _digest(source) != claimed.digest:
        return f"its rows are not those of {claimed.source}"
    with _disk(weights):
        params, given = (tensors.decode(Path(file).read_bytes()) for file in (weights, update))
    rows = normalized(_load(source).train, schema)
    if len(rows) != claimed.examples:
        return f"it says that it has {claimed.examples} rows to train on, {claimed.source} has {len(rows)}"
    try:
        shape = shape_of(model, schema)
    except NotForBrowsers as error:
        return str(error)
    kernel, step = Kernel(), Step(task.lr, task.training.momentum, task.training.weight_decay, task.correction.pull)
    order = [chosen for _, chosen in batches(len(rows), task)]
    again = kernel.train(shape, step, params, rows, order, len(order)).delta
    differing = int((again.view(np.uint32) != given.buffer.view(np.uint32)).sum())
    return f"computed again, {differing} of {len(again)} values are others" if differing else None


def own_update(trainer: Trainer, params: Params, rows: Examples, task: Task) -> Params:
    """By how much the coordinator's own training changes a model: local minus global."""
    trained = trainer.train(params, rows, task, lambda done, epoch, loss: None).params
    return Params(params.layout, trained.buffer - params.buffer)


@contextmanager
def _disk(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot use {path}: {error.strerror or error}") from error


def rows_of_own(field: str, source: Choice, schema: DataSchema) -> Examples:
    """Every row of a data set that the coordinator reads itself; raises UserError if they are unlike the job's."""
    data = _load(msgspec.json.encode(source))
    if (difference := mismatch(schema, data.schema)) is not None:
        raise UserError(f"{field} {source} has other rows than the job: {difference}")
    return normalized(data.everything(), schema)


@lru_cache(maxsize=4)
def _load(source: bytes) -> Data:
    return datasets.build(msgspec.json.decode(source, type=Choice)).load()


@lru_cache(maxsize=4)
def _digest(source: bytes) -> Digest:
    return _load(source).digest()
