"""Has results judged, where what strangers have sent can do no harm, and punishes nobody for a mistake of ours."""

import logging
import secrets
from collections.abc import Callable

from tutti.core.errors import CorruptBlob, NotFound
from tutti.core.workload import Verdict, workloads
from tutti.domain.market import jobs as j
from tutti.domain.market import sealing
from tutti.domain.market.jobs import ComputeJob
from tutti.ports.apart import Apart
from tutti.services.market.desk import MarketDesk
from tutti.services.market.judging import fault_in_file, judge_files

log = logging.getLogger(__name__)

LEAST_SECONDS = 60.0
SLOWEST = 1e8
"""Floating-point operations a second that the coordinator manages at least: a check is given up by that."""


class Checking:
    """`chance` gives numbers from 0 to 1 that nobody can foresee."""

    def __init__(self, desk: MarketDesk, apart: Apart, chance: Callable[[], float]) -> None:
        self._desk, self._apart, self._chance = desk, apart, chance

    async def expose(self, job: ComputeJob, number: int, original: int) -> None:
        """Judge a commitment that was copied."""
        reason = f"its commitment is a copy of that of {job.attempt(original).worker}, attempt {original}"
        await self._desk.do(job.id, j.Judge(attempt=number, holds=False, reason=reason))

    async def judge(self, job: ComputeJob, number: int) -> None:
        attempt = job.attempt(number)
        if not sealing.opened(job, attempt):
            reason = "the result is not the one that was committed to"
            await self._desk.do(job.id, j.Judge(attempt=number, holds=False, reason=reason))
            return
        if (twin := sealing.twin(job, attempt)) is not None:
            same = j.Judge(attempt=number, holds=bool(twin.holds), reason=twin.reason, replayed=twin.replayed)
            await self._desk.do(job.id, same)
            return
        seed = secrets.randbits(48)  # drawn now that the result cannot be changed any more
        replay = sealing.doubtful(job) or self._chance() < self._desk.rules.spot
        try:
            verdict, ours = await self._check(job, attempt.result, seed, replay=replay)
        except (NotFound, CorruptBlob) as error:
            await self._desk.do(job.id, j.Release(attempt=number, reason=f"lost here: {error}"[:500], ours=True))
            return
        except Exception as error:  # a mistake of ours, or a machine that is too slow, for which nobody pays
            log.exception("compute job %s: attempt %d cannot be checked", job.id, number)
            reason = f"cannot be checked here: {type(error).__name__}: {error}"
            await self._desk.do(job.id, j.Release(attempt=number, reason=reason, ours=True))
            return
        if ours:
            log.error("compute job %s: attempt %d: %s; what is made here: %s", job.id, number, verdict.reason, ours)
            await self._desk.do(job.id, j.Conclude(reason=f"an honest result does not pass its check either: {ours}"))
            return
        command = j.Judge(
            attempt=number,
            holds=verdict.holds,
            reason=verdict.reason,
            check_seed=seed,
            measures=dict(verdict.measures),
            replayed=replay,
        )
        await self._desk.do(job.id, command)

    async def _check(self, job: ComputeJob, result: str, seed: int, *, replay: bool) -> tuple[Verdict, str]:
        """The verdict, and if it is a bad one, why what is made here does not hold either; empty if it does.

        The files are read once here first: that finds out whether they are what they should be.
        """
        asked, blobs = job.submitted, self._desk.blobs
        for digest in (asked.data, result):
            await blobs.read(digest)
        seconds = LEAST_SECONDS + workloads.build(asked.kind).work(asked.rows, asked.columns) / SLOWEST
        async with blobs.file(asked.data) as data, blobs.file(result) as file:
            verdict = await self._apart.run(judge_files, asked, data, file, seed, replay, seconds=seconds)
            if verdict.holds:
                return verdict, ""
            return verdict, await self._apart.run(fault_in_file, asked, data, seed, seconds=seconds)
