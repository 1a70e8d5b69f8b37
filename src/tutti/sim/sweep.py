"""One job many times: every combination of some settings, each with several seeds, and what came of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import isfinite, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import TypeAlias

import msgspec

from tutti.adapters._imports import extra
from tutti.core.errors import UserError
from tutti.sim.baselines import Baselines, final
from tutti.sim.history import History, RoundRecord, flat

Settings: TypeAlias = Mapping[str, str]
"""Values by field, as they were written."""

LEVEL = 0.95

_T975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""Student's t, 97.5 %, for 1 to 30 degrees of freedom."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of a sweep."""

    settings: Settings
    seed: int

    @property
    def label(self) -> str:
        return ", ".join(f"{field}={value}" for field, value in self.settings.items())


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a trial, and what it is put beside, if anything."""

    trial: Trial
    history: History
    baselines: Baselines | None = None


def grid(varied: Iterable[tuple[str, str]], seeds: Iterable[int]) -> list[Trial]:
    """Every combination of the fields' values, each with every seed. Values of the same field are alternatives."""
    values: dict[str, dict[str, None]] = {}
    for field, value in varied:
        values.setdefault(field, {})[value] = None
    combinations = [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]
    return [Trial(settings, seed) for settings in combinations for seed in seeds]


@dataclass(frozen=True, slots=True)
class Point:
    """A mean over `runs` with its 95 % confidence interval; without a second run, there is none."""

    round: int
    mean: float
    low: float
    high: float
    runs: int


def point(round: int, values: Sequence[float]) -> Point:
    mean, runs = fmean(values), len(values)
    half = student(runs - 1) * stdev(values) / sqrt(runs) if runs > 1 else 0.0
    return Point(round, mean, mean - half, mean + half, runs)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t distribution; above 30 degrees by Cornish and Fisher's expansion."""
    if freedom <= len(_T975):
        return _T975[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def curves(runs: Iterable[tuple[Trial, Sequence[RoundRecord]]], metric: str) -> dict[str, list[Point]]:
    """By setting, how a metric went over rounds, wherever at least one of its runs measured it."""
    found: dict[str, dict[int, list[float]]] = {}
    for trial, records in runs:
        by_round = found.setdefault(trial.label, {})
        for record in records:
            value = final(record).get(metric)
            if value is not None and isfinite(value):
                by_round.setdefault(record.round, []).append(value)
    return {
        label: [point(round, values) for round, values in sorted(rounds.items())] for label, rounds in found.items()
    }


def to_json(runs: Sequence[Run]) -> str:
    plain = [
        {"settings": run.trial.settings, "seed": run.trial.seed, **run.history.plain(run.baselines)} for run in runs
    ]
    return msgspec.json.format(msgspec.json.encode({"runs": plain}), indent=2).decode()


def write(runs: Sequence[Run], file: Path) -> None:
    """As .json, or as .parquet: a row a run and round, with `run`, `seed` and the varied fields as columns."""
    if file.suffix == ".json":
        file.write_text(to_json(runs), encoding="utf-8")
        return
    if file.suffix != ".parquet":
        raise UserError(f"expected a file name that ends in .json or .parquet, came {str(file)!r}")
    with extra("data", "writing Parquet"):
        import pyarrow
        from pyarrow import parquet
    rows = [
        {"run": number, **run.trial.settings, "seed": run.trial.seed, **flat(record)}
        for number, run in enumerate(runs)
        for record in run.history.rounds
    ]
    columns = dict.fromkeys(name for row in rows for name in row)
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in columns})
    headers = msgspec.json.encode([run.history.header for run in runs])
    parquet.write_table(table.replace_schema_metadata({"tutti": headers}), file)
