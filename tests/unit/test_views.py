"""Views of a hand-written history: one failed attempt, then a round with every fate that a node can meet."""

import msgspec
import pytest

from tutti.adapters.blobs.scratch import ScratchBlobs
from tutti.adapters.logs.memory import MemoryLog
from tutti.domain import events as e
from tutti.domain.history import KEPT_IN_FULL, attempts_at
from tutti.domain.jobs import Job, replay
from tutti.domain.nodes import Capabilities, DataSummary, Register
from tutti.domain.spec import DataSchema, load_spec
from tutti.ports import Recorded
from tutti.services import views
from tutti.services.history import attempts_of
from tutti.services.journal import Journal
from tutti.services.members import NodeStatus
from tutti.services.presence import Presence
from tutti.wire.messages import Heartbeat, Progress, Registration

DATA = DataSchema("classification", (64,), 10)
SPEC = load_spec({"dataset": "digits", "model": "mlp:hidden=8", "rounds": 2, "cohort": {"min_nodes": 2}})


def opened(at: float, attempt: int, cohort: tuple[str, ...], **fields) -> e.RoundOpened:
    rest = {"task": "train", "model": "m0", "wanted": len(cohort), "quorum": 2, "deadline": at + 100}
    return e.RoundOpened(at=at, round=1, attempt=attempt, cohort=cohort, **{**rest, **fields})


def accepted(at: float, node: str, weight: int) -> e.UpdateAccepted:
    return e.UpdateAccepted(
        at=at, round=1, node=node, digest=f"u-{node}", weight=weight, metrics={"train_loss": 1.0}, seconds=2.0, bytes=50
    )


BEFORE_ROUND = [
    e.JobSubmitted(at=1.0, job="job-1", spec=SPEC, data=DATA, by="me"),
    e.JobInitialised(at=2.0, model="m0", state="s0", parameters=7),
]
FAILED_ATTEMPT = [
    opened(10.0, 0, ("ada", "bob")),
    accepted(12.0, "ada", 30),
    e.RoundFailed(at=110.0, round=1, attempt=0, reason="deadline: 1 updates, quorum is 2; silent: bob"),
]
SECOND_ATTEMPT = [
    opened(
        120.0,
        1,
        ("ada", "bob", "cyd", "dan", "eve"),
        wanted=2,
        left_out={"fay": "not connected"},
        left_out_more={"busy": 7},
    ),
    accepted(121.0, "ada", 30),
    e.UpdateRefused(at=122.0, round=1, node="cyd", reason="not finite", final=True),
    e.UpdateRefused(at=122.5, round=1, node="mallory", reason="mallory was not asked in round 1"),
    e.NodeDropped(at=123.0, round=1, node="dan", reason="disconnected for 20 s"),
]
CLOSING = [
    accepted(125.0, "bob", 10),
    e.RoundClosed(
        at=126.0, round=1, attempt=1, reason="2 of 5 came first", model="m1", state="s1", counted={"ada": 30, "bob": 10}
    ),
    e.ModelEvaluated(at=126.0, round=0, by="nodes", metrics={"accuracy": 0.1, "loss": 2.3}),
    e.ModelEvaluated(at=126.5, round=1, by="nodes", metrics={"accuracy": 0.8, "loss": 0.7}),
]
HISTORY = [*BEFORE_ROUND, *FAILED_ATTEMPT, *SECOND_ATTEMPT, *CLOSING]


@pytest.fixture
def job() -> Job:
    return replay(HISTORY)


def node(name: str, dataset: str = "digits", connected: bool = True) -> NodeStatus:
    registration = Registration(
        protocol=1,
        node=name,
        token="secret",
        capabilities=Capabilities(cpus=4, memory=8_000, gpus=("A",)),
        data=DataSummary(dataset, DATA, examples=100, held_out=20),
    )
    return NodeStatus(node=name, connected=connected, joined_at=3.0, last_seen=5.0, registration=registration)


def test_why_tells_every_nodes_fate(job):
    why = views.why_view(job, 1, attempts_at(HISTORY, (1,)))
    assert why is not None
    assert (why.base, why.model, len(why.attempts)) == ("m0", "m1", 2)
    last = why.attempts[-1]
    assert {part.node: part.outcome for part in last.nodes} == {
        "ada": "counted",
        "bob": "counted",
        "cyd": "refused",
        "dan": "dropped",
        "eve": "unanswered",
        "fay": "left out",
    }
    assert last.left_out_more == {"busy": 7}
    ada, bob, *_ = last.nodes
    assert (ada.weight, ada.share, ada.arrived, ada.seconds, ada.bytes) == (30, 0.75, 1.0, 2.0, 50)
    assert bob.share == 0.25
    assert {part.node: part.reason for part in last.nodes if part.reason} == {
        "cyd": "not finite",
        "dan": "disconnected for 20 s",
        "eve": "had not answered when the round ended",
        "fay": "not connected",
    }
    assert [(r.node, r.selected, r.final) for r in last.refusals] == [("cyd", True, True), ("mallory", False, False)]


def test_why_keeps_the_failed_attempt(job):
    why = views.why_view(job, 1, attempts_at(HISTORY, (1,)))
    assert why is not None
    failed = why.attempts[0]
    assert (failed.round.status, failed.round.reason) == ("failed", "deadline: 1 updates, quorum is 2; silent: bob")
    assert [(part.node, part.outcome, part.share) for part in failed.nodes] == [
        ("ada", "accepted", 0.0),
        ("bob", "unanswered", 0.0),
    ]


async def test_attempts_that_the_state_has_forgotten_come_from_the_log(job, tmp_path):
    blobs = ScratchBlobs(tmp_path)
    log = MemoryLog()
    later = [
        msgspec.structs.replace(event, **({"round": number} if hasattr(event, "round") else {}))
        for number in range(2, KEPT_IN_FULL + 2)
        for event in (*SECOND_ATTEMPT, *CLOSING[:2])
    ]
    other = [msgspec.structs.replace(HISTORY[0], job="other"), *HISTORY[1:]]
    await log.append("job:job-1", 0, [*HISTORY, *later[:-3]])
    await log.append("job:other", 0, other)
    await log.append("job:job-1", len(HISTORY) + len(later) - 3, later[-3:])
    grown = replay([*HISTORY, *later])
    journal = Journal(log, lambda: 0.0)
    await journal.load()
    assert grown.past[0].detail is None
    found = await attempts_of(journal, blobs, grown, (1,))
    assert found == attempts_at(HISTORY, (1,)) == list(job.past)
    assert await attempts_of(journal, blobs, job, (1,)) == found
    assert await attempts_of(journal, blobs, grown, (KEPT_IN_FULL + 1,)) == [grown.past[-1]]
    assert views.why_view(grown, 1, found) == views.why_view(job, 1, job.past)
    (model,) = views.model_views(grown, (1,), found)
    assert [part.node for part in model.made_from] == ["ada", "bob"]


def test_why_of_a_round_that_has_not_come(job):
    assert views.why_view(job, 2, ()) is None


def test_an_open_round_says_whom_it_waits_for():
    job = replay([*BEFORE_ROUND, *FAILED_ATTEMPT, *SECOND_ATTEMPT])
    current = views.round_views(job)[-1]
    assert (current.status, current.reason, current.accepted, current.counted) == ("open", "waits for bob, eve", 1, 0)
    why = views.why_view(job, 1, job.past)
    assert why is not None
    assert why.attempts[-1].nodes[-2].outcome == "assigned"
    assert views.job_view(job).open_round == current


def test_rounds_carry_durations_bytes_and_measurements(job):
    failed, closed = views.round_views(job)
    assert (failed.seconds, failed.evaluations, failed.model) == (100.0, {}, "")
    assert (closed.seconds, closed.bytes, closed.cohort, closed.counted) == (6.0, 100, 5, 2)
    assert closed.evaluations == {"nodes": {"accuracy": 0.8, "loss": 0.7}}


def test_a_job_shows_its_latest_steering_evaluation(job):
    presence = Presence(0.0)
    for seen in (node("ada"), node("bob", "mnist"), node("cyd"), node("dan")):
        presence.arrived(seen.node, seen.registration, 1.0)
    presence.left("cyd", 2.0, took_leave=False)
    shown = views.job_view(job, presence.offers(but=["dan", "eve"]))
    assert (shown.accuracy, shown.loss, shown.best_round) == (0.8, 0.7, 1)
    assert (shown.model, shown.rounds_done, shown.parameters, shown.by) == ("mlp:hidden=8", 1, 7, "me")
    assert (shown.nodes_needed, shown.nodes_ready) == (2, 1)
    assert shown.reason == "waits for nodes: 2 are needed, 1 are ready"
    assert views.job_view(job, presence.offers(), "the disk is full").reason == "the disk is full"
    assert views.job_view(job, presence.offers()).nodes_ready == 2


@pytest.mark.parametrize(
    ("history", "status", "reason"),
    [
        (BEFORE_ROUND, "waiting", "waits for nodes: 2 are needed, 0 are ready"),
        ([*BEFORE_ROUND, e.JobPaused(at=3.0, reason="asked by me")], "paused", "asked by me"),
        ([*BEFORE_ROUND, opened(3.0, 0, ("ada",)), e.JobPaused(at=3.5)], "pausing", "asked"),
        ([*BEFORE_ROUND, e.JobPaused(at=3.0), e.JobStopped(at=4.0, reason="enough")], "stopped", "enough"),
    ],
)
def test_status_and_reason(history, status, reason):
    shown = views.job_view(replay(history))
    assert (shown.status, shown.reason) == (status, reason)


def test_metric_history_has_a_point_for_every_model(job):
    points = views.metric_points(job)
    assert [(p.round, p.nodes.get("accuracy"), p.bytes) for p in points] == [(0, 0.1, 0), (1, 0.8, 100)]
    assert views.metric_points(replay(BEFORE_ROUND[:1])) == []


def test_lineage_names_the_updates_that_made_a_model(job):
    first, second = views.model_views(job, views.rounds_with_model(job), job.past)
    assert (first.round, first.digest, first.base, first.made_from) == (0, "m0", "", [])
    assert (second.digest, second.base, second.current, second.best) == ("m1", "m0", True, True)
    assert [(i.node, i.digest, i.weight, i.share) for i in second.made_from] == [
        ("ada", "u-ada", 30, 0.75),
        ("bob", "u-bob", 10, 0.25),
    ]


def test_contributions_count_only_what_was_counted(job):
    ada, bob = views.contribution_views(job)
    assert (ada.node, ada.updates, ada.weight, ada.share, ada.bytes, ada.first_at) == ("ada", 1, 30, 0.75, 50, 121.0)
    assert (bob.node, bob.share) == ("bob", 0.25)


def test_a_node_without_a_connection_and_one_at_work():
    away = views.node_view(NodeStatus(node="ada", connected=False, joined_at=3.0))
    assert (away.dataset, away.machine, away.cpu, away.done) == ("", None, None, None)
    status = node("bob")
    busy = NodeStatus(
        **{name: getattr(status, name) for name in ("node", "connected", "joined_at", "last_seen", "registration")},
        heartbeat=Heartbeat(cpu=0.5, memory=0.25),
        progress=Progress(job="job-1", round=1, attempt=0, done=0.4),
        task="job-1/1",
    )
    shown = views.node_view(busy)
    assert (shown.dataset, shown.examples, shown.held_out, shown.cpu, shown.memory_used) == (
        "digits",
        100,
        20,
        0.5,
        0.25,
    )
    assert (shown.task, shown.done) == ("job-1/1", 0.4)


def test_events_show_every_field_but_secrets():
    event = e.NodeJoined(at=5.0, node="ada", invite="hash", secret="hash")
    shown = views.event_view(Recorded(9, "nodes", 3, event))
    assert (shown.offset, shown.stream, shown.type, shown.at, shown.data) == (
        9,
        "nodes",
        "NodeJoined",
        5.0,
        {"node": "ada"},
    )


def test_all_views_survive_json(job):
    for view in [
        views.job_view(job),
        views.why_view(job, 1, attempts_at(HISTORY, (1,))),
        *views.model_views(job, views.rounds_with_model(job), job.past),
        *views.round_views(job),
    ]:
        assert msgspec.json.decode(msgspec.json.encode(view), type=type(view)) == view


def test_status_counts_jobs_and_connections(job):
    shown = views.status_view(
        [job],
        [node("ada"), node("bob", connected=False)],
        Register(maintenance="new disks", maintained=("oz", 3.0)),
        version="1",
        now=7.0,
        offset=12,
    )
    assert (shown.status, shown.nodes, shown.nodes_connected, shown.jobs) == ("waiting", 2, 1, {"waiting": 1})
    assert (shown.maintenance, shown.maintenance_by, shown.maintenance_since) == ("new disks", "oz", 3.0)
    assert views.status_view([], [], Register(), version="1", now=7.0, offset=0).status == "idle"
