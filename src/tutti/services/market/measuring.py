"""How fast workers are: each is given problems made for the occasion when it comes, and now and then later on.

A problem is given with eight times the work as long as that takes less than four times as long: then most of the time
went into getting there and back, not into the machine. Whatever is slow on the way makes a worker look slower, nothing
faster.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tutti.core.errors import NotFound
from tutti.domain.events import NodeId
from tutti.domain.market import events as e
from tutti.ports.apart import Apart, GivenUp
from tutti.services.market.desk import MarketDesk
from tutti.services.market.judging import speed
from tutti.wire.messages import CoordinatorMessage, Measure, Measured

log = logging.getLogger(__name__)

STEPS = (6, 48, 384, 3072)
"""0.2 to 103 GFLOP; a core takes some 5 ms for the first."""

MORE, ENOUGH = 8, 4.0
DEADLINE = 30.0
"""Seconds after which an answer counts as none."""

EVERY = 600.0
"""Seconds after which a worker that has nothing to do is measured again."""

FASTER = 0.2
"""A new measurement of a worker is noted if it differs by more than this share."""


@dataclass(slots=True)
class Given:
    """A problem that a worker has. `before`: seconds that the one before took; `best`: GFLOP/s that it showed."""

    asked: Measure
    at: float
    before: float = 0.0
    best: float = 0.0
    answered: float | None = None


class Measuring:
    """`say` sends a message to a node, `apart` is where answers are looked at."""

    def __init__(self, desk: MarketDesk, say: Callable[[NodeId, CoordinatorMessage], None], apart: Apart) -> None:
        self._desk, self._say, self._apart = desk, say, apart
        self._given: dict[NodeId, Given] = {}
        self._done: dict[NodeId, float] = {}
        self._gpus: set[NodeId] = set()
        self.idle = asyncio.Event()
        """Set while nobody is being measured."""
        self.idle.set()

    def begin(self, node: NodeId, *, gpu: bool) -> None:
        """Measure a worker that has come; one that has changed its offer only was measured before."""
        if node in self._given or node in self._done:
            return
        (self._gpus.add if gpu else self._gpus.discard)(node)
        self._give(node, gpu=False)

    def forget(self, node: NodeId) -> None:
        self._take(node)
        self._done.pop(node, None)

    def _take(self, node: NodeId) -> None:
        self._given.pop(node, None)
        if not self._given:
            self.idle.set()

    def _give(self, node: NodeId, *, gpu: bool, level: int = 0, before: float = 0.0, best: float = 0.0) -> None:
        asked = Measure(id=secrets.token_hex(8), seed=secrets.randbits(48), steps=STEPS[level], gpu=gpu)
        self._given[node] = Given(asked, self._desk.clock(), before, best)
        self.idle.clear()
        self._say(node, asked)

    def stop_clock(self, node: NodeId, answer: Measured) -> None:
        """An answer is here: what it waits for from now on is not the worker's time."""
        given = self._given.get(node)
        if given is not None and given.asked.id == answer.id and given.answered is None:
            given.answered = self._desk.clock()

    async def hear(self, node: NodeId, answer: Measured) -> None:
        given = self._given.get(node)
        if given is None or given.asked.id != answer.id or given.answered is None:
            return
        asked, seconds, check_seed = given.asked, given.answered - given.at, secrets.randbits(48)
        try:
            found = await self._apart.run(speed, asked, answer, check_seed, seconds, seconds=DEADLINE)
        except GivenUp as error:
            log.error("what %s answered could not be looked at: %s", node, error)
            found = 0.0
        if self._given.get(node) is not given:  # it has left, or come anew
            return
        late, level = seconds > DEADLINE, STEPS.index(asked.steps)
        best = max(given.best, 0.0 if late else found) if found else 0.0
        if not level and best:  # work can be given by this already
            await self._note(node, best, asked.gpu, first=True)
        slow = seconds * MORE > DEADLINE / 2 or (level and seconds > ENOUGH * given.before)
        if found and not slow and level + 1 < len(STEPS):
            self._give(node, gpu=asked.gpu, level=level + 1, before=seconds, best=best)
            return
        await self._note(node, best, asked.gpu)
        await self._next(node, given)

    async def _next(self, node: NodeId, given: Given) -> None:
        if not given.asked.gpu and node in self._gpus:
            self._give(node, gpu=True)
            return
        self._take(node)
        self._done[node] = self._desk.clock()

    async def _note(self, node: NodeId, gflops: float, gpu: bool, *, first: bool = False) -> None:
        """Write down what was found, if it is news; what is found `first`, only if nothing was known."""
        try:
            worker = self._desk.worker(node)
        except NotFound:
            return
        known = worker.gpu_gflops if gpu else worker.gflops
        if not (known and first) and abs(gflops - known) > FASTER * known:
            event = e.WorkerMeasured(at=self._desk.clock(), worker=node, gflops=round(gflops, 3), gpu=gpu)
            await self._desk.note(event)

    async def again(self, free: Callable[[], Sequence[NodeId]]) -> None:
        """Until cancelled: measure those again who have nothing to do, and give up on those who do not answer."""
        while True:
            await asyncio.sleep(DEADLINE)
            await self.look(free())

    async def look(self, free: Sequence[NodeId]) -> None:
        now = self._desk.clock()
        for node, given in list(self._given.items()):
            if given.answered is None and now - given.at > DEADLINE:
                await self._note(node, given.best, given.asked.gpu)
                await self._next(node, given)
        for node in free:
            if node in self._done and now - self._done[node] > EVERY:
                del self._done[node]
                self._give(node, gpu=False)
