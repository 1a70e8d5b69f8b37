"""Maintenance: nothing new begins while somebody works on machines or stores; jobs pause, and go on after it."""

from collections.abc import Awaitable, Callable

from tutti.core.errors import Conflict
from tutti.domain import commands, nodes
from tutti.domain.commands import Command
from tutti.domain.jobs import Job
from tutti.services.journal import Journal

PAUSED = "maintenance: "
"""How the reason begins for which a job is paused; whoever resumes such a job by hand has it go on."""


class Maintenance:
    """The log says whether it is on, so that it outlives the process. `steer` carries out a command on a job."""

    def __init__(self, journal: Journal, steer: Callable[[str, Command], Awaitable[Job]]) -> None:
        self._journal, self._steer = journal, steer

    def check(self) -> None:
        """Raise Conflict while nothing new may begin."""
        if reason := self._journal.register.maintenance:
            raise Conflict(f"maintenance: {reason}; nothing new begins until it is over, try again later")

    async def begin(self, reason: str, *, by: str = "") -> None:
        await self._journal.nodes(nodes.Maintain(reason=reason, by=by))
        await self.settle()

    async def end(self, *, by: str = "") -> None:
        await self._journal.nodes(nodes.Maintain(reason="", by=by))
        await self.settle()

    async def settle(self) -> None:
        """Pause what is to be paused, and resume what was: all of it may be done twice, as after a crash."""
        reason = self._journal.register.maintenance
        for job in [job for job in self._journal.jobs.values() if not job.final]:
            if reason and job.paused is None:
                await self._steer(job.id, commands.Pause(reason=PAUSED + reason))
            elif not reason and job.paused is not None and job.paused.startswith(PAUSED):
                await self._steer(job.id, commands.Resume())
