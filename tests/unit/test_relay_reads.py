"""How often a relay reads the log for what its nodes hand in: once for what is new, however many they are."""

import asyncio
from pathlib import Path

from tutti.adapters.blobs.scratch import ScratchBlobs
from tutti.adapters.logs.memory import MemoryLog
from tutti.domain.events import CoordinatorStarted
from tutti.ports.log import Recorded
from tutti.services.journal import Journal
from tutti.services.summing import RelaySums
from tutti.wire.messages import Submission

STREAM, NODES = "nodes", 100


class Counted(MemoryLog):
    reads = 0

    async def read(self, after: int = 0, *, stream: str | None = None, limit: int = 1000) -> list[Recorded]:
        self.reads += 1
        await asyncio.sleep(0)
        return await super().read(after, stream=stream, limit=limit)


def handed_in(digest: str) -> Submission:
    return Submission(job="toy-1", round=1, attempt=0, weight=1, digest=digest)


async def test_what_is_not_kept_is_passed_on_without_the_log(tmp_path: Path) -> None:
    log = Counted()
    journal, blobs = Journal(log, lambda: 0.0), ScratchBlobs(tmp_path / "blobs")
    sums = RelaySums(journal, blobs, blobs)

    async def all_hand_in(digest: str) -> None:
        await asyncio.gather(*(sums.examine(f"n{number}", handed_in(digest)) for number in range(NODES)))

    await all_hand_in("a" * 64)  # as of a robust job; nothing was heard of
    assert log.reads == 0
    (recorded,) = await log.append(STREAM, 0, [CoordinatorStarted(at=0.0, version="1")])
    sums.heard(recorded.offset)
    await all_hand_in("")  # an evaluation
    assert (log.reads, journal.offset) == (0, 0)
    await all_hand_in("a" * 64)
    assert (log.reads, journal.offset) == (2, recorded.offset)  # what is new, and that there is no more
    await all_hand_in("a" * 64)
    assert log.reads == 2
