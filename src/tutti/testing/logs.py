"""What every EventLog must do. Inherit, and say how to make an empty one:

    class TestMyLog(LogSuite):
        @pytest.fixture
        async def log(self) -> AsyncIterator[EventLog]:
            log = await MyLog.open()
            yield log
            await log.close()

Needs pytest-asyncio in its auto mode.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import get_args

import pytest

from tutti.core.errors import StorageError, TuttiError
from tutti.core.registry import Choice
from tutti.domain import events as e
from tutti.domain.contributions import Contribution
from tutti.domain.events import AnyEvent
from tutti.domain.market import events as m
from tutti.domain.sessions import ColumnReport, PeerPart, PeerTraining, SessionEnded, SessionStarted
from tutti.domain.signing import Domain, Signed
from tutti.domain.spec import DataSchema, JobSpec
from tutti.ports.log import EventLog, Recorded, Trimmed, VersionConflict

DEADLINE = 30.0
"""Seconds after which something that should happen at once is taken for broken."""

SIGNED = Signed(
    key="a" * 128, round=1, base="b" * 64, samples=360, nonce=2, signature="c" * 128, domain=Domain(1, "0x" + "1" * 40)
)

EVENTS: tuple[AnyEvent, ...] = (
    e.JobSubmitted(
        at=1.5,
        job="digits-1",
        spec=JobSpec(dataset="digits", model=Choice("mlp", {"hidden": 32}), seed=2**53),
        data=DataSchema("classification", (8, 8), 10),
        by="müller",
    ),
    e.JobInitialised(at=2.0, model="a" * 64, state="b" * 64, parameters=1_663_370),
    e.RoundOpened(
        at=3.0,
        round=1,
        attempt=0,
        task="train",
        model="a" * 64,
        cohort=("n1", "n2"),
        wanted=2,
        quorum=1,
        deadline=63.25,
        left_out={"n3": "not drawn"},
        settings={"proximal_mu": 0.1},
    ),
    e.UpdateAccepted(at=4.0, round=1, node="n1", digest="c" * 64, weight=360, metrics={"loss": 0.1 + 0.2}, bytes=6),
    e.UpdateAccepted(at=4.0, round=1, node="n2", digest="d" * 64, weight=360, signed=SIGNED),
    e.UpdateRefused(at=4.0, round=1, node="n2", reason="a NaN in layer1.weight\x00", final=True),
    e.UpdateLost(at=4.0, round=1, node="n1", reason="damaged"),
    e.NodeDropped(at=4.0, round=1, node="n2", reason="no progress for 120 s"),
    e.RoundExtended(at=4.0, round=1, deadline=90.0, reason="the coordinator was away"),
    e.RoundClosed(at=5.0, round=1, attempt=0, reason="all", model="d" * 64, state="e" * 64, counted={"n1": 360}),
    e.RoundFailed(at=5.0, round=1, attempt=0, reason="no quorum"),
    e.ModelEvaluated(at=6.0, round=1, by="nodes", metrics={"accuracy": 1e-300}),
    e.JobPaused(at=7.0),
    e.JobResumed(at=8.0),
    e.JobStopped(at=9.0),
    e.JobCompleted(at=9.0, reason="all rounds", model="d" * 64, best_round=1),
    e.JobFailed(at=9.0, reason="no nodes"),
    e.InviteIssued(at=0.0, token="f" * 64, uses=1, expires=86400.0),
    e.NodeJoined(at=0.5, node="n1", invite="f" * 64, secret="0" * 64),
    e.NodeRemoved(at=9.0, node="n1"),
    e.NodeKeyed(at=3.0, node="n2", key="a" * 128),
    e.NodeEquivocated(at=3.5, node="n2", job="digits-1", digests=("d" * 64, "e" * 64), signed=(SIGNED, SIGNED)),
    e.NodeDrained(at=9.25, node="n1", by="ada"),
    e.NodeUndrained(at=9.5, node="n1"),
    e.MaintenanceBegan(at=9.6, reason="new disks", by="ada"),
    e.MaintenanceEnded(at=9.7, by="ada"),
    e.NodeConnected(at=1.0, node="n1", cpus=2, memory=2**40, examples=360, dataset="digits"),
    e.NodeDisconnected(at=2.0, node="n1", reason="lost"),
    e.NodeTurnedAway(at=2.0, node="n9", reason="no token"),
    e.CoordinatorStarted(at=0.0, version="0.1.0"),
    e.JobArchived(at=9.0, archive="a" * 64, events=12, snapshot='{"id":"größe"}'),
    e.AuditsCommitted(at=0.5, job="digits-1", commitment="c" * 64),
    e.ContributionsScored(
        at=8.0,
        job="digits-1",
        round=1,
        base="a" * 64,
        model="d" * 64,
        data=Choice("digits", {"split": "test"}),
        rows="9" * 64,
        seed=2**53,
        pool=1000,
        contributions=(Contribution(job="digits-1", round=1, node="n1", digest="c" * 64, weight=360, before=0),),
        root="8" * 64,
    ),
    e.RewardsSettled(at=9.0, job="digits-1"),
    SessionStarted(
        at=1.0,
        session="0123456789abcdef",
        by="ada",
        peers={"p1": PeerPart("a" * 64, 100, "b" * 64, PeerTraining(lr=0.1 + 0.2))},
        spec=JobSpec(dataset="session-0123456789abcdef", model=Choice("mlp", {"hidden": [32, 16]})),
        report=(ColumnReport("größe", "category", "a column for each", 3, ("", "L", "S")),),
        rows=100,
        dropped=2,
    ),
    SessionEnded(at=2.0, session="0123456789abcdef", status="COMPLETED", reason="all rounds"),
    m.WorkerRegistered(at=1.0, worker="w1", stake=100, owner="ada", gpu="none", claimed=0.1 + 0.2, kinds=("pca",)),
    m.WorkerMeasured(at=2.0, worker="w1", gflops=1e-300),
    m.ClientRegistered(at=3.0, client="müller", by="ada"),
    m.CoordinationStopped(at=4.0, by="ada"),
    m.CoordinationStarted(at=5.0, by="ada"),
    m.ComputeSubmitted(
        at=6.0,
        job="c1",
        client="müller",
        kind=Choice("pca", {"components": 2}),
        data="a" * 64,
        rows=10,
        columns=3,
        seed=2**53,
        reward=30,
    ),
    m.ComputeFunded(at=7.0),
    m.ComputeAssigned(at=8.0, slot=0, attempt=1, worker="w1", owner="ada", bond=10, share=0.25, explored=True),
    m.ComputeCommitted(at=9.0, attempt=1, commitment="b" * 64),
    m.ComputeSealed(at=9.5),
    m.ComputeRevealed(at=10.0, attempt=1, result="c" * 64, nonce="d" * 32),
    m.ComputeJudged(at=11.0, attempt=1, holds=False, reason="a\x00b", check_seed=2**53, measures={"error": 0.1 + 0.2}),
    m.ComputeReleased(at=12.0, attempt=1, reason="gone", ours=True),
    m.ComputeDisputed(at=13.0, by="ada", reason="no"),
    m.ComputeVerified(at=14.0, attempt=1),
    m.ComputeFailed(at=15.0, reason="nobody"),
    m.ComputeSettled(at=16.0),
)
"""One event of every type, with values that are easily spoiled on the way."""


def news(count: int, first: int = 0) -> list[AnyEvent]:
    """Events that can be told apart by their round."""
    return [e.NodeDropped(at=0.0, round=first + i, node="n", reason="") for i in range(count)]


def events_of(recorded: Sequence[Recorded]) -> list[AnyEvent]:
    return [each.event for each in recorded]


async def gather(batches: AsyncIterator[list[Recorded]], count: int) -> list[Recorded]:
    """The next `count` events that a follower sees."""
    seen: list[Recorded] = []
    async with asyncio.timeout(DEADLINE):
        while len(seen) < count:
            seen += await anext(batches)
    return seen


class LogSuite:
    @pytest.fixture
    def log(self) -> EventLog:
        raise NotImplementedError("yield an empty log, and close it afterwards")

    async def test_empty(self, log: EventLog) -> None:
        assert await log.read() == []
        assert await log.append("a", 0, []) == []
        assert await log.read(5, stream="a") == []

    async def test_what_is_appended_can_be_read(self, log: EventLog) -> None:
        first, second = news(2), news(1, first=2)
        recorded = [*await log.append("a", 0, first), *await log.append("b", 0, second)]
        assert recorded == [
            Recorded(1, "a", 1, first[0]),
            Recorded(2, "a", 2, first[1]),
            Recorded(3, "b", 1, second[0]),
        ]
        assert await log.read() == recorded

    async def test_every_type_of_event_comes_back_equal(self, log: EventLog) -> None:
        assert {type(event) for event in EVENTS} == set(get_args(AnyEvent))
        appended = await log.append("a", 0, EVENTS)
        assert events_of(appended) == list(EVENTS)
        assert await log.read() == appended

    async def test_read_after_an_offset_of_one_stream_up_to_a_limit(self, log: EventLog) -> None:
        for i in range(6):
            await log.append("odd" if i % 2 else "even", i // 2, news(1, first=i))
        assert [r.offset for r in await log.read(4)] == [5, 6]
        assert [r.offset for r in await log.read(1, limit=2)] == [2, 3]
        assert [(r.offset, r.version) for r in await log.read(stream="odd")] == [(2, 1), (4, 2), (6, 3)]
        assert [r.offset for r in await log.read(2, stream="odd", limit=1)] == [4]
        assert await log.read(6) == await log.read(stream="none") == []

    @pytest.mark.parametrize("version", [0, 1, 3])
    async def test_another_version_is_refused(self, log: EventLog, version: int) -> None:
        before = await log.append("a", 0, news(2))
        with pytest.raises(VersionConflict, match=str(version)):
            await log.append("a", version, news(2, first=2))
        assert await log.read() == before
        await log.append("a", 2, news(1))

    async def test_of_rivals_at_one_version_one_wins(self, log: EventLog) -> None:
        rivals = [log.append("a", 0, news(2, first=i)) for i in range(0, 40, 2)]
        outcomes = await asyncio.gather(*rivals, return_exceptions=True)
        (won,) = [outcome for outcome in outcomes if isinstance(outcome, list)]
        assert sum(isinstance(outcome, VersionConflict) for outcome in outcomes) == 19
        assert await log.read() == won

    async def test_appends_at_once_stay_whole(self, log: EventLog) -> None:
        outcomes = await asyncio.gather(*(log.append(f"s{i}", 0, news(3)) for i in range(600)))
        for recorded in outcomes:
            first = recorded[0].offset
            assert [(r.offset, r.version) for r in recorded] == [(first, 1), (first + 1, 2), (first + 2, 3)]
        assert await log.read(limit=1800) == sorted((r for each in outcomes for r in each), key=lambda r: r.offset)

    async def test_appends_of_one_caller_keep_their_order(self, log: EventLog) -> None:
        pending = [asyncio.ensure_future(log.append("a", i, news(1, first=i))) for i in range(50)]
        await asyncio.gather(*pending)
        assert events_of(await log.read()) == news(50)

    @pytest.mark.parametrize("loss", [float("nan"), float("inf")])
    async def test_what_cannot_be_read_back_is_not_written(self, log: EventLog, loss: float) -> None:
        bad = e.ModelEvaluated(at=0.0, round=1, by="nodes", metrics={"loss": loss})
        with pytest.raises(TuttiError, match="finite"):
            await log.append("a", 0, [*news(1), bad])
        assert await log.read() == []
        await log.append("a", 0, news(1))

    async def test_a_later_change_of_an_event_does_not_reach_the_log(self, log: EventLog) -> None:
        metrics = {"loss": 0.5}
        await log.append("a", 0, [e.ModelEvaluated(at=0.0, round=1, by="nodes", metrics=metrics)])
        metrics["loss"] = 0.0
        (recorded,) = await log.read()
        assert recorded.event == e.ModelEvaluated(at=0.0, round=1, by="nodes", metrics={"loss": 0.5})

    async def test_follow_tells_the_past_then_the_present(self, log: EventLog) -> None:
        await log.append("a", 0, news(3))
        batches = log.follow(1)
        assert [r.offset for r in await gather(batches, 2)] == [2, 3]
        waiting = asyncio.ensure_future(gather(batches, 3))
        await log.append("b", 0, news(1))
        await log.append("a", 3, news(2))
        assert await waiting == await log.read(3)

    async def test_followers_miss_nothing_and_see_nothing_twice(self, log: EventLog) -> None:
        total = 3000
        followers = [asyncio.ensure_future(gather(log.follow(after), total - after)) for after in (0, 0, 1000)]
        for i in range(0, total, 100):
            await asyncio.gather(*(log.append(f"s{i + j}", 0, news(10)) for j in range(10)))
        late = gather(log.follow(0), total)
        for after, follower in zip((0, 0, 1000, 0), (*followers, late), strict=True):
            assert [r.offset for r in await follower] == list(range(after + 1, total + 1))

    async def test_follow_from_anywhere(self, log: EventLog) -> None:
        await log.append("a", 0, news(1100))
        for after in range(1100):
            (first, *_) = await gather(log.follow(after), 1)
            assert first.offset == after + 1

    async def test_follow_ahead_of_the_log_waits(self, log: EventLog) -> None:
        waiting = asyncio.ensure_future(gather(log.follow(2), 1))
        await log.append("a", 0, news(3))
        assert [r.offset for r in await waiting] == [3]

    async def test_after_close(self, log: EventLog) -> None:
        last = asyncio.ensure_future(log.append("a", 0, news(1)))
        batches = log.follow(0)
        await gather(batches, 1)
        waiting = asyncio.ensure_future(anext(batches, None))
        await log.close()
        await log.close()
        assert len(await last) == 1
        assert await waiting is None
        with pytest.raises(StorageError, match="closed"):
            await log.append("a", 1, news(1))
        with pytest.raises(StorageError, match="closed"):
            await log.read()


class TrimmedLogSuite(LogSuite):
    """What a log that can be trimmed keeps as well."""

    async def test_what_is_trimmed_is_gone_and_all_else_keeps_its_place(self, log: EventLog) -> None:
        assert isinstance(log, Trimmed)
        for i in range(3):
            await log.append("a", 2 * i, news(2, first=2 * i))
            await log.append("b", i, news(1, first=i))
        whole = await log.read()
        for _ in range(2):
            await log.trim("a", 6)
            kept = [each for each in whole if each.stream == "b" or each.version == 6]
            assert await log.read() == kept
            assert await log.read(1) == await log.read()
            assert await log.read(stream="a") == kept[-2:-1]
        with pytest.raises(VersionConflict):
            await log.append("a", 5, news(1))
        (more,) = await log.append("a", 6, news(1))
        assert (more.offset, more.version) == (10, 7)
        assert (await gather(log.follow(9), 1))[0] == more
