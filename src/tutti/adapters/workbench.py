"""Models made and measured in a process of their own, which goes away when it has been idle for a while.

The coordinator stays small and its event loop free; the framework's memory is returned to the machine.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from tutti.core.errors import TuttiError, UserError
from tutti.core.registry import Choice
from tutti.domain.spec import DataSchema, Metrics
from tutti.ports.training import Data, Examples, datasets, models
from tutti.wire import tensors

IDLE_SECONDS = 60.0
T = TypeVar("T")


class ProcessWorkbench:
    """ports.Workbench on one spawned worker process, started when first needed."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._running = 0

    async def initial(self, model: Choice, data: DataSchema, seed: int, into: Path) -> None:
        await self._run(_initial, msgspec.json.encode((model, data, seed)), str(into))

    async def evaluate(self, model: Choice, data: DataSchema, source: Choice, weights: Path) -> Metrics:
        return await self._run(_evaluate, msgspec.json.encode((model, data, source)), str(weights))

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self, function: Callable[[bytes, str], T | UserError], request: bytes, path: str) -> T:
        if self._timer is not None:
            self._timer.cancel()
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        loop = asyncio.get_running_loop()
        self._running += 1
        try:
            result = await loop.run_in_executor(self._pool, function, request, path)
        except BrokenProcessPool:
            self._pool = None
            raise TuttiError("the process that builds and measures models died (out of memory?)") from None
        finally:
            self._running -= 1
            self._timer = loop.call_later(IDLE_SECONDS, self._rest)
        if isinstance(result, UserError):
            raise result
        return result

    def _rest(self) -> None:
        if not self._running and self._pool is not None:
            self._pool.shutdown(wait=False)
            self._pool = None


class ThreadWorkbench:
    """ports.Workbench in this process, for simulations and tests, where the framework is loaded anyway."""

    async def initial(self, model: Choice, data: DataSchema, seed: int, into: Path) -> None:
        await self._run(_initial, msgspec.json.encode((model, data, seed)), str(into))

    async def evaluate(self, model: Choice, data: DataSchema, source: Choice, weights: Path) -> Metrics:
        return await self._run(_evaluate, msgspec.json.encode((model, data, source)), str(weights))

    async def close(self) -> None:
        pass

    async def _run(self, function: Callable[[bytes, str], T | UserError], request: bytes, path: str) -> T:
        result = await asyncio.to_thread(function, request, path)
        if isinstance(result, UserError):
            raise result
        return result


def _initial(request: bytes, into: str) -> UserError | None:
    try:
        model, data, seed = msgspec.json.decode(request, type=tuple[Choice, DataSchema, int])
        params = models.build(model, data=data).init(seed)
        Path(into).write_bytes(tensors.encode(params))
    except UserError as error:
        return error
    return None


def _evaluate(request: bytes, weights: str) -> Metrics | UserError:
    try:
        model, schema, source = msgspec.json.decode(request, type=tuple[Choice, DataSchema, Choice])
        data = _load(msgspec.json.encode(source))
        if data.schema != schema:
            raise UserError(f"evaluation.data {source} has other rows than the job: {data.schema}, expected {schema}")
        params = tensors.decode(Path(weights).read_bytes())
        return models.build(model, data=schema).evaluate(params, _all_rows(data))
    except UserError as error:
        return error


@lru_cache(maxsize=4)
def _load(source: bytes) -> Data:
    return datasets.build(msgspec.json.decode(source, type=Choice)).load()


def _all_rows(data: Data) -> Examples:
    """Training and held-out rows together: the coordinator never trains on its evaluation source."""
    if len(data.held_out) == 0:
        return data.train
    return Examples(np.concatenate([data.train.x, data.held_out.x]), np.concatenate([data.train.y, data.held_out.y]))
