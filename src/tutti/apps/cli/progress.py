"""How a job goes, from its events: rows for a table, and remarks worth a line of their own."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tutti.apps.cli import text
from tutti.services.views import EventView, JobView


@dataclass(frozen=True, slots=True)
class Row:
    """A round: its model's quality (None: not measured yet), who was counted, what they sent, how long it took."""

    round: int
    score: float | None = None
    loss: float | None = None
    counted: int = 0
    cohort: int = 0
    bytes: int = 0
    seconds: float = 0.0
    closed: bool = False


class Progress:
    """Takes a job's events one by one. `rows` are its rounds, 0 being the initial model."""

    def __init__(self, job: JobView) -> None:
        self.job = job
        self.rows: dict[int, Row] = {}
        self.waiting_for: set[str] = set()
        self.state = "waits for nodes" if job.open_round is None else "trains"
        self.measure = "accuracy" if job.data.task == "classification" else "r2"
        self._steering = "coordinator" if job.spec.evaluation.data else "nodes"
        self._task = "train"
        self._opened_at = 0.0
        self._printed = 0
        self._settled = -1  # the last round whose model nobody will measure any more

    def see(self, event: EventView) -> str | None:
        """Take in an event; returns a remark if a person should know at once."""
        data = event.data
        match event.type:
            case "RoundOpened":
                self._open(event)
            case "UpdateAccepted":
                self.waiting_for.discard(data["node"])
                if self._task == "train":
                    row = self._row(data["round"])
                    self.rows[row.round] = replace(row, bytes=row.bytes + data.get("bytes", 0))
            case "UpdateRefused":
                return f"{self._where(data)}: an update of {data['node']} does not count: {data['reason']}"
            case "NodeDropped":
                self.waiting_for.discard(data["node"])
                return f"{self._where(data)}: goes on without {data['node']}: {data['reason']}"
            case "UpdateLost" | "RoundExtended" | "RoundFailed":
                return f"{self._where(data)}: {_IN_WORDS[event.type]}: {data['reason']}"
            case "RoundClosed":
                self._close(event)
            case "ModelEvaluated":
                self._measured(event)
            case "JobPaused":
                self.state = "paused"
                return f"paused: {data['reason']}"
            case "JobResumed":
                self.state = "waits for nodes"
                return "resumed"
            case "JobCompleted" | "JobStopped" | "JobFailed":
                self.state = event.type.removeprefix("Job").lower()
        return None

    def lines(self, *, final: bool = False) -> list[str]:
        """Rows that are complete and were not returned before; with `final`, all that is left."""
        ready = []
        if final:  # a round that was never closed says nothing
            self.rows = {number: row for number, row in self.rows.items() if row.closed}
        for number, row in sorted(self.rows.items()):
            if number < self._printed:
                continue
            if not (final or row.score is not None or number <= self._settled):
                break
            ready.append(self.line(row))
            self._printed = number + 1
        return ready

    def line(self, row: Row) -> str:
        cells = [f"round {row.round:>3}/{self.job.rounds}", f"{self.measure} {self.score(row):>6}"]
        cells.append(f"loss {text.number(row.loss):>7}")
        if row.round > 0:
            cells.append(f"{row.counted} of {row.cohort} nodes")
            cells.append(f"{text.size(row.bytes):>9}  {text.duration(row.seconds):>7}")
        return "  ".join(cells)

    def score(self, row: Row) -> str:
        return text.share(row.score) if self.measure == "accuracy" else text.number(row.score)

    def _where(self, data: Mapping[str, Any]) -> str:
        return "final evaluation" if self._task == "evaluate" else f"round {data['round']}"

    def _row(self, round: int) -> Row:
        return self.rows.get(round, Row(round))

    def _open(self, event: EventView) -> None:
        data = event.data
        self._task, self._opened_at = data["task"], event.at
        self.waiting_for = set(data["cohort"])
        self.state = "trains" if self._task == "train" else "measures"
        if self._task == "train":
            row = self._row(data["round"])
            self.rows[row.round] = replace(row, cohort=len(data["cohort"]), bytes=0)
            self._settled = row.round - 2  # the nodes measured it before they trained on, in the round between

    def _close(self, event: EventView) -> None:
        self.state, self.waiting_for = "between rounds", set()
        if self._task == "train":
            row = self._row(event.data["round"])
            counted, seconds = len(event.data["counted"]), event.at - self._opened_at
            self.rows[row.round] = replace(row, counted=counted, seconds=seconds, closed=True)

    def _measured(self, event: EventView) -> None:
        if event.data["by"] == self._steering:
            row, metrics = self._row(event.data["round"]), event.data["metrics"]
            self.rows[row.round] = replace(row, score=metrics.get(self.measure), loss=metrics.get("loss"), closed=True)


_IN_WORDS = {
    "UpdateLost": "an accepted update was lost and is asked for again",
    "RoundExtended": "has its time back",
    "RoundFailed": "failed and is tried again",
}
