"""What came of a simulation: a record of every round, as values, JSON and Parquet."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from tutti.adapters._imports import extra
from tutti.core.errors import UserError
from tutti.core.params import Params
from tutti.domain.events import Digest, JobEvent, NodeId
from tutti.domain.history import RoundSummary, attempts_at
from tutti.domain.jobs import Job
from tutti.domain.rounds import Part, Round
from tutti.domain.spec import DataSchema, JobSpec, Metrics
from tutti.services.views import described
from tutti.wire import tensors

OTHERS_FIRST = "enough others came first"


class RoundRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A training round and the model it made; round 0 is the initial model.

    Attributes:
        seconds: From drawing the cohort to the new model, without measuring it.
        cohort: Who was asked, and how many of them were counted.
        dropped: Who did not count, and why.
        shares: Of each counted node in the model's step, where the reducer weighed updates anew: 0 was left out.
        train: The nodes' training metrics, averaged by their examples.
        evaluated: What the model measures, by who measured: `nodes`, `coordinator`.
    """

    round: int
    model: Digest
    seconds: float = 0.0
    cohort: tuple[NodeId, ...] = ()
    counted: int = 0
    dropped: dict[NodeId, str] = {}
    shares: dict[NodeId, float] = {}
    train: Metrics = {}
    evaluated: dict[str, Metrics] = {}


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """A simulation as a whole. `model` is the digest of the resulting model, `best` the best measured round."""

    spec: JobSpec
    engine: str
    batch_size: int
    nodes: int
    parameters: int
    status: str
    outcome: str
    model: Digest
    best: int | None
    seconds: float


class History(msgspec.Struct, frozen=True, kw_only=True):
    """A simulation's result. `params` are those of the model that the header names; it takes rows like `data`."""

    header: Header
    rounds: tuple[RoundRecord, ...]
    params: Params
    data: DataSchema

    @property
    def model(self) -> Digest:
        return self.header.model

    @property
    def result(self) -> RoundRecord:
        """The round that made the resulting model: the last, or the best."""
        return next(record for record in reversed(self.rounds) if record.model == self.model)

    def plain(self, baselines: object = None) -> dict[str, object]:
        """Header and rounds, and what the run is put beside, if anything; the parameters are left out."""
        return {"header": self.header, "rounds": self.rounds, **({"baselines": baselines} if baselines else {})}

    def to_json(self, baselines: object = None) -> str:
        return msgspec.json.format(msgspec.json.encode(self.plain(baselines)), indent=2).decode()

    def write_model(self, file: Path) -> None:
        """The model as a safetensors file that says what it is, as if it had been pulled from a job."""
        says = described(self.header.spec, self.data, self.model, self.rounds[-1].round)
        file.write_bytes(tensors.encode(self.params, says))

    def write(self, file: Path) -> None:
        """As .json, or as .parquet: one row a round, metrics as columns such as `coordinator_accuracy`."""
        if file.suffix == ".json":
            file.write_text(self.to_json(), encoding="utf-8")
        elif file.suffix == ".parquet":
            self._write_parquet(file)
        else:
            raise UserError(f"expected a file name that ends in .json or .parquet, came {str(file)!r}")

    def _write_parquet(self, file: Path) -> None:
        with extra("data", "writing Parquet"):
            import pyarrow
            from pyarrow import parquet
        rows = [flat(record) for record in self.rounds]
        columns = dict.fromkeys(name for row in rows for name in row)
        table = pyarrow.table({name: [row.get(name) for row in rows] for name in columns})
        described = table.replace_schema_metadata({"tutti": msgspec.json.encode(self.header)})
        parquet.write_table(described, file)


def flat(record: RoundRecord) -> dict[str, object]:
    groups: Mapping[str, Metrics] = {"train": record.train, **record.evaluated}
    metrics = {f"{group}_{name}": value for group, found in groups.items() for name, value in found.items()}
    plain = {"round": record.round, "model": record.model, "seconds": record.seconds, "counted": record.counted}
    return {**plain, "cohort": list(record.cohort), "dropped": sorted(record.dropped), **metrics}


def records(job: Job, events: Iterable[JobEvent], seconds: Mapping[int, float]) -> tuple[RoundRecord, ...]:
    """The initial model and every closed training round of a job, from all its events; `seconds` by round.

    The job's state alone will not do: of its older rounds it does not know who took part.
    """
    first = RoundRecord(round=0, model=job.initial_model, evaluated=_evaluated(job, 0))
    closed = [past for past in attempts_at(events, range(1, job.rounds_done + 1)) if past.made_model]
    return (first, *(record(job, past, seconds.get(past.round.number, 0.0)) for past in closed))


def record(job: Job, past: RoundSummary, seconds: float) -> RoundRecord:
    opened = past.round.opened
    return RoundRecord(
        round=opened.round,
        model=past.model,
        seconds=seconds,
        cohort=opened.cohort,
        counted=len(past.counted),
        dropped=_dropped(past.round),
        shares=dict(past.shares),
        train=dict(past.metrics),
        evaluated=_evaluated(job, opened.round),
    )


def measured(job: Job, record: RoundRecord) -> RoundRecord:
    """The record with all that was measured of its model so far."""
    return msgspec.structs.replace(record, evaluated=_evaluated(job, record.round))


def _dropped(round: Round) -> dict[NodeId, str]:
    """Who did not count, and why; in overlapping rounds, those who have not handed in yet go on."""
    out = {Part.REFUSED, Part.DROPPED} if round.opened.overlaps else {Part.REFUSED, Part.DROPPED, Part.ASSIGNED}
    return {node: member.reason or OTHERS_FIRST for node, member in round.members.items() if member.part in out}


def _evaluated(job: Job, round: int) -> dict[str, Metrics]:
    return {str(by): metrics for by, metrics in job.evaluations.get(round, {}).items()}
