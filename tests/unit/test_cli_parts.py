"""The parts of the command line that are plain functions."""

import errno
import io
import time
from email.utils import formatdate
from pathlib import Path

import pytest

from tutti.apps.cli import text
from tutti.apps.cli.doctor import examine_clock, examine_disk, examine_version
from tutti.apps.cli.exits import Exit, exit_for
from tutti.apps.cli.live import _view
from tutti.apps.cli.progress import Progress
from tutti.apps.cli.run_job import parts_of, spec_from
from tutti.apps.client import _error_of
from tutti.core.errors import Conflict, CorruptBlob, Forbidden, NotFound, TuttiError, Unavailable, UserError
from tutti.domain.events import JobSubmitted
from tutti.domain.jobs import begin
from tutti.domain.spec import DataSchema, load_spec
from tutti.services.views import EventView, JobView, job_view

NODES = ("a", "b")


# -- progress ------------------------------------------------------------------------------------------


def job(**fields: object) -> JobView:
    spec = load_spec({"dataset": "digits", "model": "mlp", "rounds": 2, **fields})
    return job_view(begin(JobSubmitted(at=0.0, job="j", spec=spec, data=DataSchema("classification", (64,), 10))))


def events(*facts: tuple[str, float, dict]) -> list[EventView]:
    return [
        EventView(offset=i, stream="job:j", type=type, at=at, data=data)
        for i, (type, at, data) in enumerate(facts, start=1)
    ]


def opened(round: int, at: float, task: str = "train") -> tuple[str, float, dict]:
    return "RoundOpened", at, {"round": round, "task": task, "cohort": NODES}


def accepted(round: int, node: str) -> tuple[str, float, dict]:
    return "UpdateAccepted", 0.0, {"round": round, "node": node, "bytes": 1000}


def closed(round: int, at: float) -> tuple[str, float, dict]:
    return "RoundClosed", at, {"round": round, "counted": dict.fromkeys(NODES, 1)}


def measured(round: int, by: str, accuracy: float) -> tuple[str, float, dict]:
    return "ModelEvaluated", 0.0, {"round": round, "by": by, "metrics": {"accuracy": accuracy, "loss": 1.0}}


RUN = events(
    opened(1, 10.0),
    accepted(1, "a"),
    accepted(1, "b"),
    closed(1, 12.0),
    measured(0, "nodes", 0.1),
    opened(2, 12.0),
    accepted(2, "b"),
    accepted(2, "a"),
    closed(2, 12.25),
    measured(1, "nodes", 0.5),
    opened(3, 12.3, "evaluate"),
    accepted(3, "a"),
    closed(3, 12.4),
    measured(2, "nodes", 0.75),
    ("JobCompleted", 13.0, {"reason": "2 rounds done"}),
)


def test_a_round_is_told_once_its_model_is_measured():
    progress, told = Progress(job()), []
    for event in RUN:
        assert progress.see(event) is None
        told += [(event.offset, line) for line in progress.lines()]
    assert [offset for offset, _ in told] == [5, 10, 14]
    assert "accuracy  50.0%" in told[1][1]
    assert told[2][1] == "round   2/2  accuracy  75.0%  loss       1  2 of 2 nodes     2.0 kB   250 ms"
    assert progress.lines(final=True) == []


def test_rounds_that_nobody_measures_are_told_too():
    progress, told = Progress(job(rounds=4, evaluation={"nodes": False})), []
    for number in (1, 2, 3, 4):
        for event in events(opened(number, number), closed(number, number + 0.5)):
            progress.see(event)
            told += progress.lines()
    assert [line.split()[1] for line in told] == ["1/4", "2/4"]
    assert [line.split()[1] for line in progress.lines(final=True)] == ["3/4", "4/4"]


def test_what_a_person_should_know_at_once_is_remarked():
    progress = Progress(job())
    for type, data, words in (
        ("UpdateRefused", {"round": 1, "node": "a", "reason": "NaN"}, "an update of a does not count: NaN"),
        ("NodeDropped", {"round": 1, "node": "a", "reason": "silent"}, "goes on without a: silent"),
        ("RoundFailed", {"round": 1, "reason": "quorum"}, "round 1: failed and is tried again: quorum"),
        ("JobPaused", {"reason": "asked"}, "paused: asked"),
    ):
        (event,) = events((type, 1.0, data))
        assert words in progress.see(event)


def test_a_failed_run_does_not_tell_of_a_round_that_never_closed_and_the_last_measurement_is_no_round():
    progress = Progress(job())
    for event in events(opened(1, 1.0), ("JobFailed", 2.0, {"reason": "quorum"})):
        progress.see(event)
    assert progress.lines(final=True) == []
    progress = Progress(job())
    dropped = ("NodeDropped", 2.0, {"round": 3, "node": "a", "reason": "silent"})
    opening, dropping = events(opened(3, 1.0, "evaluate"), dropped)
    progress.see(opening)
    assert progress.see(dropping) == "final evaluation: goes on without a: silent"


def test_the_live_view_shows_every_round_and_who_is_waited_for():
    from rich.console import Console

    progress = Progress(job())
    for event in RUN[:7]:
        progress.see(event)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(_view(progress, 3.0))
    shown = console.export_text()
    assert [line.split()[0] for line in shown.splitlines()[1:4]] == ["0", "1", "2"]
    assert "1/2" in shown.splitlines()[3]
    assert "job: 1 of 2 rounds, 3.0 s, trains, waits for a" in shown


# -- the job of `tutti run` ----------------------------------------------------------------------------


def test_options_override_the_file_and_set_overrides_options(tmp_path: Path):
    file = tmp_path / "job.toml"
    file.write_text('dataset = "digits"\nrounds = 3\n[training]\nlr = 0.5\nepochs = 2\n')
    raw = spec_from(file, {"rounds": 7, "lr": None, "nodes": 4}, ("training.epochs=5", "model=mlp:hidden=8"))
    expected = {"lr": 0.5, "epochs": 5}
    assert raw == {
        "dataset": "digits",
        "rounds": 7,
        "training": expected,
        "cohort": {"min_nodes": 4},
        "model": "mlp:hidden=8",
    }


def test_a_source_is_divided_among_nodes():
    assert parts_of("digits", 2, "iid", 7) == [
        "digits:part=0/2,partition=iid,seed=7",
        "digits:part=1/2,partition=iid,seed=7",
    ]
    (part,) = parts_of("csv:path=a.csv,target=y", 1, "dirichlet:alpha=0.3,minimum=5", 0)
    assert part == "csv:path=a.csv,target=y,part=0/1,partition=dirichlet:alpha=0.3;minimum=5,seed=0"


# -- text, exit codes, the doctor ----------------------------------------------------------------------


def test_values_as_people_write_them():
    assert [text.size(n) for n in (0, 999, 1000, 4_321_000, 2e12)] == ["0 B", "999 B", "1.0 kB", "4.3 MB", "2.0 TB"]
    assert [text.duration(s) for s in (0.0421, 4.21, 150, 7300)] == ["42 ms", "4.2 s", "2 min 30 s", "2 h 1 min"]
    assert (text.share(0.1234), text.share(None), text.number(1234.5678), text.moment(None)) == (
        "12.3%",
        "-",
        "1235",
        "-",
    )


def test_a_table_aligns_numbers_to_the_right():
    table = text.table(("name", "n"), [("a", 1), ("long", 100)])
    assert table.splitlines() == ["name    n", "a       1", "long  100"]
    assert text.table(("name",), []) == "name"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFound(""), Exit.USAGE),
        (Forbidden(""), Exit.REFUSED),
        (Conflict(""), Exit.CONFLICT),
        (CorruptBlob(""), Exit.STORAGE),
        (Unavailable(""), Exit.UNAVAILABLE),
        (_error_of(503, b'{"detail": "no chain answers"}'), Exit.UNAVAILABLE),
        (UserError(""), Exit.USAGE),
        (TuttiError(""), Exit.BUG),
        (KeyError(""), Exit.BUG),
        (OSError(errno.ENOSPC, "full"), Exit.STORAGE),
        (OSError(errno.EADDRINUSE, "busy"), Exit.CONFLICT),
        (FileNotFoundError(errno.ENOENT, "gone", "a.csv"), Exit.USAGE),
    ],
)
def test_every_error_has_its_exit_code(error, code):
    assert exit_for(error) is code


def test_the_doctor_compares_clocks():
    now = time.time()
    assert examine_clock(formatdate(now, usegmt=True), now).ok
    wrong = examine_clock(formatdate(now - 3600, usegmt=True), now)
    assert (wrong.ok, "ahead of" in wrong.said, wrong.code) == (False, True, Exit.CONFLICT)
    assert "behind" in examine_clock(formatdate(now + 60, usegmt=True), now).said
    assert not examine_clock("", now).ok


def test_the_doctor_compares_versions():
    from tutti import __version__

    assert examine_version(__version__).ok
    assert not examine_version("99.0.0").ok


def test_the_doctor_looks_at_a_disk_where_the_folder_will_be(tmp_path):
    finding = examine_disk(tmp_path / "not" / "yet")
    assert str(tmp_path) in finding.said
