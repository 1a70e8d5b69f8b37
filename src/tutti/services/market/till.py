"""The market's till: every movement of a compute job's tokens, as its state demands.

All orders have keys made of job, slot and attempt, so they may be posted again after a crash; which have been since the
start is remembered, so that a job that is looked at often costs the ledger nothing.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable

from tutti.core.errors import NotFound
from tutti.domain.ledger import InsufficientFunds, Order
from tutti.domain.market import jobs as j
from tutti.domain.market import money
from tutti.domain.market.jobs import Attempt, ComputeJob
from tutti.services.market.desk import MarketDesk

log = logging.getLogger(__name__)


class Till:
    """`lost` hears of each attempt that has lost its bond."""

    def __init__(self, desk: MarketDesk, lost: Callable[[ComputeJob, Attempt], None]) -> None:
        self._desk, self._lost = desk, lost
        self._posted: defaultdict[str, set[str]] = defaultdict(set)

    async def fund(self, job: ComputeJob) -> bool:
        """Set the reward aside, and after a dispute what the further worker gets."""
        if job.failed:
            return True
        try:
            await self._post(job, money.funding(job))
        except InsufficientFunds as error:
            log.warning("compute job %s: %s", job.id, error)
            return bool(job.funded)  # a dispute whose deposit is gone: the replay decides alone
        return True

    async def secure(self, job: ComputeJob) -> bool:
        """See to the bonds, attempt by attempt: bound before its work is judged, let go or taken once it has ended.

        True if something came of it, so that the job has to be looked at again.
        """
        fresh = False
        for attempt in job.attempts:
            try:
                bound = await self._bind(job, attempt)
            except InsufficientFunds as error:
                reason = f"its bond is not there: {error}"
                await self._desk.do(job.id, j.Release(attempt=attempt.number, reason=reason, ours=True))
                return True
            end = money.bond_end(job, attempt)
            if not bound or end is None or end.key in self._posted[job.id]:
                continue
            await self._post(job, [end])
            fresh = True
            if attempt.holds is False:
                await self._desk.raise_stake(attempt.worker)
                self._lost(job, attempt)
        return fresh

    async def _bind(self, job: ComputeJob, attempt: Attempt) -> bool:
        """Whether the attempt has its bond, which it gets now if it goes on."""
        order, posted = money.bond(job, attempt), self._posted[job.id]
        never = f"{order.key} never"
        if order.key in posted or never in posted:
            return order.key in posted
        if attempt.over and await self._desk.ledger.known(order.key) is None:
            posted.add(never)  # it ended before it had one
            return False
        try:
            await self._post(job, [order])
        except NotFound:  # after a dispute whose deposit is gone: nothing is paid for this slot
            posted.add(never)
        return order.key in posted

    async def settle(self, job: ComputeJob) -> None:
        """Pay what is due, give back the rest, and say so in the log."""
        for order in money.settlement(job):
            try:
                await self._post(job, [order])
            except NotFound:
                if not money.may_lack(job, order):  # what was set aside is gone: nobody is told that all is paid
                    raise
        await self._desk.do(job.id, j.Settle())
        self._posted.pop(job.id, None)

    async def _post(self, job: ComputeJob, orders: Iterable[Order]) -> None:
        posted = self._posted[job.id]
        for order in orders:
            if order.key not in posted:
                await self._desk.ledger.post(order)
                posted.add(order.key)
