"""How often a relay reads the log for what its nodes hand in: once for what is new, however many they are."""

import asyncio
from pathlib import Path

from support.worlds import SCHEMA, toy_spec
from tutti.adapters.blobs.scratch import ScratchBlobs
from tutti.adapters.logs.memory import MemoryLog
from tutti.domain import commands
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


async def test_an_update_of_a_round_that_is_news_here_is_not_left_to_the_owner(tmp_path: Path) -> None:
    """The node still owes the round before, as far as this replica has read: that is no reason not to read on."""
    log, blobs = MemoryLog(), ScratchBlobs(tmp_path / "blobs")
    owner, journal = Journal(log, lambda: 0.0), Journal(log, lambda: 0.0)
    sums = RelaySums(journal, blobs, blobs)
    await owner.submit("toy-1", toy_spec(nodes=1), SCHEMA, by="", paused=False)
    await owner.job("toy-1", commands.Initialise(model="m", state="m", parameters=4))
    await owner.job("toy-1", commands.Open(candidates=("n1",)))
    await journal.load()
    assert sums.takes("n1")
    digest = "a" * 64
    update = commands.SubmitUpdate(round=1, attempt=0, node="n1", digest=digest, weight=1, metrics={})
    await owner.job("toy-1", update)
    await owner.job("toy-1", commands.Close(round=1, attempt=0, counted={"n1": 1}, model="m2", state="m2"))
    await owner.job("toy-1", commands.Open(candidates=("n1",)))
    sums.heard(owner.offset)
    await sums.examine("n1", Submission(job="toy-1", round=2, attempt=0, weight=1, digest=digest))
    assert journal.jobs == owner.jobs
