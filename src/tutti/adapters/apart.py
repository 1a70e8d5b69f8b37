"""ports.Apart: in processes of their own, which are killed when their time is up; or in threads, for simulations."""

import asyncio
import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TypeVar

from tutti.adapters.workbench import end_with_parent
from tutti.core.errors import TuttiError
from tutti.ports.apart import GivenUp

T = TypeVar("T")

AT_ONCE = 2
IDLE_SECONDS = 60.0
MEMORY = 2 << 30
"""Bytes that a process may take beside its code: a table and a result have 64 MiB at most."""


class Threads:
    """For simulations and tests: nothing is given up."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="apart")

    async def run(self, function: Callable[..., T], *given: object, seconds: float) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: function(*given))

    async def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class Processes:
    """AT_ONCE at a time; started when first needed, gone when idle for a while, and killed when they take too long."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="apart")
        self._idle: list[_Child] = []
        self._busy: set[_Child] = set()
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, function: Callable[..., T], *given: object, seconds: float) -> T:
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
        try:
            return await loop.run_in_executor(self._threads, self._run, function, given, seconds)
        finally:
            if not self._closed:
                self._timer = loop.call_later(IDLE_SECONDS, self._rest)

    def _run(self, function: Callable[..., T], given: tuple[object, ...], seconds: float) -> T:
        child = self._take() or _Child()
        self._busy.add(child)
        try:
            found, failed = child.do(function, given, seconds)
        except BaseException:
            child.kill()
            raise
        finally:
            self._busy.discard(child)
        if self._closed:
            child.kill()
        else:
            self._idle.append(child)
        if failed is not None:
            raise failed
        return found  # type: ignore[return-value]  # what the function gives

    async def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for child in (*self._idle, *self._busy):
            child.kill()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _take(self) -> "_Child | None":
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _rest(self) -> None:
        while (child := self._take()) is not None:
            child.kill()


class _Child:
    def __init__(self) -> None:
        context = get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there,), daemon=True)
        self._process.start()
        there.close()

    def do(
        self, function: Callable[..., object], given: tuple[object, ...], seconds: float
    ) -> tuple[object, Exception | None]:
        """What it gives, or raises; raises GivenUp itself. Blocks."""
        try:
            self._here.send((function, given))
            if not self._here.poll(seconds):
                raise GivenUp(f"{function.__name__.replace('_', ' ')} took more than {seconds:g} s")
            answer: tuple[object, Exception | None] = self._here.recv()
        except (EOFError, OSError):
            raise GivenUp(f"the process died that did {function.__name__.replace('_', ' ')}") from None
        return answer

    def kill(self) -> None:
        self._process.kill()


def _serve(there: Connection) -> None:
    """In the process: until nobody asks any more."""
    end_with_parent()
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    while True:
        try:
            function, given = there.recv()
        except EOFError:
            return
        try:
            there.send((function(*given), None))
        except MemoryError:
            there.send((None, GivenUp(f"it wants more than {MEMORY >> 20} MiB of memory")))
        except Exception as error:  # whatever it is, it is told; what cannot be, as its words
            its = error if isinstance(error, TuttiError | ArithmeticError | ValueError) else TuttiError(repr(error))
            there.send((None, its))
