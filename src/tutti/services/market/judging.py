"""What is computed on the coordinator: checks of results, and what measures a worker's machine."""

from pathlib import Path

from tutti.core import challenge
from tutti.core.errors import TuttiError
from tutti.core.registry import Choice
from tutti.core.workload import LARGEST_RESULT, BadTable, Floats, Verdict, verify, workloads
from tutti.domain.market.events import ComputeSubmitted
from tutti.wire.messages import Measure, Measured
from tutti.wire.tables import Data, decode, decode_table
from tutti.wire.tensors import BadTensors

WRITTEN_AROUND = 64 * 1024
"""Bytes of a result that are not its numbers, at most."""


def admit(kind: Choice, data: Data) -> tuple[int, int]:
    """Rows and columns of a table that this kind of job can be done on; raises UserError with the reason if not."""
    table, workload = decode_table(data), workloads.build(kind)
    workload.admit(table)
    if (size := workload.largest(table)) > LARGEST_RESULT - WRITTEN_AROUND:
        raise BadTable(
            f"the result may take {size / 2**20:.0f} MiB, and {LARGEST_RESULT >> 20} are taken: ask for fewer rows, "
            "clusters or iterations"
        )
    return len(table.x), table.x.shape[1]


def solve(kind: Choice, data: Data, seed: int) -> dict[str, Floats]:
    """What an honest worker does."""
    workload, table = workloads.build(kind), decode_table(data)
    workload.admit(table)
    return dict(workload.solve(table, seed))


def judge(job: ComputeSubmitted, data: Data, result: Data, check_seed: int, *, replay: bool) -> Verdict:
    """Whether a result holds. Anything may come as a result; nothing in it is executed."""
    try:
        arrays = decode(result)
    except BadTensors as error:
        return Verdict(False, f"not a result: {error}")
    return verify(workloads.build(job.kind), decode_table(data), arrays, job.seed, check_seed, replay=replay)


def fault_of_the_job(job: ComputeSubmitted, data: Data, check_seed: int) -> str:
    """Why a result that is made here, honestly, does not hold either; empty if it does.

    Then the job's data, or a check, are at fault, and nobody may be punished.
    """
    try:
        table, workload = decode_table(data), workloads.build(job.kind)
        workload.admit(table)
        verdict = verify(workload, table, workload.solve(table, job.seed), job.seed, check_seed, replay=True)
    except (TuttiError, ArithmeticError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "" if verdict.holds else verdict.reason


def judge_files(job: ComputeSubmitted, data: Path, result: Path, check_seed: int, replay: bool) -> Verdict:
    """`judge`, in another process."""
    return judge(job, data.read_bytes(), result.read_bytes(), check_seed, replay=replay)


def fault_in_file(job: ComputeSubmitted, data: Path, check_seed: int) -> str:
    """`fault_of_the_job`, in another process."""
    return fault_of_the_job(job, data.read_bytes(), check_seed)


def speed(asked: Measure, answer: Measured, check_seed: int, seconds: float) -> float:
    """GFLOP/s of a machine that answered after so many seconds; 0 if the answer is none, or wrong."""
    if not challenge.holds(answer.answer, asked.seed, asked.steps, check_seed):
        return 0.0
    return challenge.operations(asked.steps) / max(seconds, 1e-6) / 1e9
