"""What nodes hand in, in the order in which it came: bounded for each node and in all, dealt with by a few workers."""

import asyncio
import logging
from collections import Counter
from typing import Protocol, TypeAlias

from tutti.domain.events import NodeId
from tutti.ports import Fabric, Kept
from tutti.services.background import Background
from tutti.wire.messages import Failure, Submission, Verdict

log = logging.getLogger(__name__)

WORKERS = 32
SUBMISSIONS_OF_ONE = 4
"""Submissions of one node that wait for a verdict; an honest node has one or, after a reconnect, two."""

HELD_BYTES = 64 << 20
"""Bytes of updates that came with submissions and wait for a verdict; a node with one more is asked again."""

HandedIn: TypeAlias = Submission | Failure


def answer(
    fabric: Fabric, node: NodeId, said: Submission, *, accepted: bool = False, reason: str = "", resend: bool = False
) -> None:
    """Tell a node what became of its submission."""
    verdict = Verdict(
        job=said.job, round=said.round, attempt=said.attempt, accepted=accepted, reason=reason, resend=resend
    )
    fabric.send(node, verdict)


class Deal(Protocol):
    """What is done with one of them, and takes its time."""

    async def __call__(self, node: NodeId, message: HandedIn, blob: bytes, kept: Kept | None) -> None: ...


class Inbox:
    """Never makes the sender wait: what is too much is answered at once, and to be sent again."""

    def __init__(self, fabric: Fabric, deal: Deal) -> None:
        self._fabric = fabric
        self._deal = deal
        self._waiting: Counter[NodeId] = Counter()
        self._queue: asyncio.Queue[tuple[NodeId, HandedIn, bytes, Kept | None]] = asyncio.Queue()
        self._held = 0  # bytes of updates in the queue and in the hands of the workers

    def start(self, background: Background) -> None:
        for _ in range(WORKERS):
            background.spawn(self._work())

    def put(self, node: NodeId, message: HandedIn, blob: bytes, kept: Kept | None = None) -> None:
        if isinstance(message, Submission) and self._held + len(blob) > HELD_BYTES:
            answer(self._fabric, node, message, reason="too many updates wait here: send it again", resend=True)
        elif self._waiting[node] < SUBMISSIONS_OF_ONE:
            self._waiting[node] += 1
            self._held += len(blob)
            self._queue.put_nowait((node, message, blob, kept))
        elif isinstance(message, Submission):
            reason = f"{SUBMISSIONS_OF_ONE} submissions already wait for a verdict"
            answer(self._fabric, node, message, reason=reason)

    async def _work(self) -> None:
        while True:
            node, message, blob, kept = await self._queue.get()
            try:
                await self._deal(node, message, blob, kept)
            except Exception:
                log.exception("%s of %s", type(message).__name__, node)
                if isinstance(message, Submission):
                    answer(self._fabric, node, message, reason="the coordinator failed to deal with it")
            finally:
                self._held -= len(blob)
                self._waiting[node] -= 1
                if not self._waiting[node]:
                    del self._waiting[node]
