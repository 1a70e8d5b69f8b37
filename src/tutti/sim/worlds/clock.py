"""Virtual time: an event loop whose clock stands still while code runs, and jumps to the next timer when all wait.

Coordinator and nodes run on it as they are. There is one thread: what they give to an executor runs at once, with a
clock of its own that starts at the present and that the work itself moves on (`spend`); its result arrives, and what
it says to the loop is heard, when that clock says so. The order of everything then follows from the program alone.
"""

import asyncio
import contextvars
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

RESOLUTION = 1e-6
"""Seconds between timers that count as the same moment; more than the spacing of floats for a hundred years."""

T = TypeVar("T")


class Standstill(AssertionError):
    """Everything waits, and no timer will ever end it: our own mistake."""


class _NoInput(selectors.SelectSelector):
    """Waits for no file: waiting moves the loop's clock."""

    loop: "VirtualLoop"

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Standstill("everything waits, and no timer is set")
        self.loop.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Seconds of virtual time count from 0. It has no input or output, and never sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self._ahead = 0.0
        selector = _NoInput()
        selector.loop = self
        super().__init__(selector)
        self._clock_resolution = RESOLUTION

    def time(self) -> float:
        """The present, as whoever asks sees it: within an executor's work, its own."""
        return self.now + self._ahead

    def spend(self, seconds: float) -> None:
        """Within an executor's work: it takes so long."""
        self._ahead += seconds

    def run_in_executor(self, executor: object, func: Callable[..., T], *args: object) -> "asyncio.Future[T]":
        future: asyncio.Future[T] = self.create_future()
        outer, self._ahead = self._ahead, 0.0
        result: T | None = None
        error: Exception | None = None
        try:
            result = func(*args)
        except Exception as raised:
            error = raised
        finally:
            spent, self._ahead = self._ahead, outer
        if spent:
            self.call_at(self.now + spent, _settle, future, result, error)
        else:
            self.call_soon(_settle, future, result, error)
        return future

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        if self._ahead:
            return self.call_at(self.time(), callback, *args, context=context)
        return self.call_soon(callback, *args, context=context)


def _settle(future: "asyncio.Future[Any]", result: object, error: Exception | None) -> None:
    if future.done():  # cancelled meanwhile
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Like asyncio.run, on virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
