"""Work beside whatever a coordinator is asked for, of which nothing may die unnoticed."""

import asyncio
import logging
from collections.abc import Coroutine

from tutti.core.errors import TuttiError
from tutti.ports import LogLost

log = logging.getLogger(__name__)


class BackgroundFailure(TuttiError):
    """Background work of the coordinator died of something unforeseen; what is recorded is sound: start it again."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"the coordinator ended, for a part of it died ({what}): "
            "what is recorded is sound, start it again and it goes on; please report the lines above"
        )


class Background:
    """Tasks that end with the coordinator; make it within a running event loop."""

    def __init__(self) -> None:
        self.failed: asyncio.Future[BackgroundFailure | LogLost] = asyncio.get_running_loop().create_future()
        """Done once a task has died, or the log has another owner: end this process and start anew."""
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work, name=getattr(work, "__qualname__", None))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def close(self) -> None:
        """End all of it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if not isinstance(error, LogLost):
                log.critical("a background task of the coordinator died", exc_info=error)
                error = BackgroundFailure(f"{task.get_name()}: {type(error).__name__}: {error}")
            if not self.failed.done():
                self.failed.set_result(error)
