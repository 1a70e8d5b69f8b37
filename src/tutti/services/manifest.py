"""Manifests: what a run was made of, so that it can be made again, to the bit, by whoever has the same data."""

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import msgspec

from tutti.core.codec import AUTO
from tutti.core.errors import UserError
from tutti.domain.events import Digest, NodeConnected, NodeId
from tutti.domain.history import RoundSummary
from tutti.domain.jobs import NOT_DRAWN, Job
from tutti.domain.rounds import Part
from tutti.domain.spec import DataSchema, JobSpec
from tutti.services.views import View

PACKAGES = ("tutti", "numpy", "torch", "scikit-learn")


class BadManifest(UserError):
    """A file that is no manifest, or one whose run cannot be made again here."""


class Holding(View, frozen=True, kw_only=True, omit_defaults=True):
    """What a node held: the digest of its rows and, if anybody can have them, the source to load them from."""

    digest: Digest
    examples: int
    held_out: int
    source: str = ""
    versions: dict[str, str] = msgspec.field(default_factory=dict)


class Division(View, frozen=True, kw_only=True):
    """How one source was divided among simulated nodes."""

    source: str
    nodes: int
    partition: str
    seed: int
    held_out: float


class Manifest(View, frozen=True, kw_only=True):
    """A run as a whole.

    Attributes:
        run: The job's id; the name, for a simulation.
        engine: Of a simulation; nodes compute as the sequential one does.
        batch_size: What nodes chose where the job leaves it to them; 0: not known, or not the same everywhere.
        threads: With which every node computed; sums are split alike only with as many.
        nodes: Who held what.
        division: How the nodes' data came about, if they are parts of one source.
        versions: Of the software that simulated; for a job, each node's holding has its own.
        model: Digest of the result.
        incidents: What no second run would go through alike, such as a node that dropped out.
    """

    run: str
    kind: Literal["job", "simulation"]
    spec: JobSpec
    data: DataSchema
    engine: str
    batch_size: int
    threads: int
    nodes: dict[NodeId, Holding]
    division: Division | None
    versions: dict[str, str]
    status: str
    outcome: str
    rounds: int
    model: Digest
    incidents: list[str] = msgspec.field(default_factory=list)
    format: int = 1


def versions() -> dict[str, str]:
    """Of Python and of the packages that compute; absent ones are left out."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def threads() -> int:
    """With how many threads this process computes."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdecimal() and int(said) else os.cpu_count() or 1


def manifest_of_job(job: Job, attempts: Sequence[RoundSummary], arrivals: Iterable[NodeConnected]) -> Manifest:
    """From a job's finished attempts in full, and everybody's connections so far."""
    trained = [attempt for attempt in attempts if attempt.task == "train"]
    drawn_from = {node for attempt in trained for node in _candidates(attempt)}
    came: dict[NodeId, list[NodeConnected]] = {node: [] for node in sorted(drawn_from)}
    for arrival in arrivals:
        if arrival.node in came and arrival.dataset == job.spec.dataset:
            came[arrival.node].append(arrival)
    holdings = {node: _held(connections, job) for node, connections in came.items() if connections}
    sizes = _batch_sizes(attempts)
    return Manifest(
        run=job.id,
        kind="job",
        spec=job.spec,
        data=job.data,
        engine="sequential",
        batch_size=job.spec.training.batch_size or (sizes.pop() if len(sizes) == 1 else 0),
        threads=1,
        nodes=holdings,
        division=None,
        versions=versions(),
        status=str(job.status),
        outcome=job.outcome,
        rounds=job.rounds_done,
        model=job.model,
        incidents=[*_changes(came), *_irregular(trained, drawn_from), *_codecs(job), *_shares(job)],
    )


def _codecs(job: Job) -> list[str]:
    return ["its nodes chose codecs by how fast their links were"] if job.spec.codec == AUTO else []


def _shares(job: Job) -> list[str]:
    rules = job.spec.cohort
    return [
        *(["slow nodes were asked for less work"] if rules.by_speed else []),
        *(["cohorts were drawn by how fast nodes had been"] if rules.prefer_fast else []),
    ]


def _held(connections: Sequence[NodeConnected], job: Job) -> Holding:
    """What a node held when it last connected before the job was over, which is when it last changed."""
    over = job.past[-1].closed_at if job.past else job.submitted_at
    last = next((each for each in reversed(connections) if each.at <= over), connections[0])
    return Holding(
        digest=last.digest,
        examples=last.examples,
        held_out=last.held_out,
        source=last.source,
        versions=last.versions,
    )


def _batch_sizes(attempts: Iterable[RoundSummary]) -> set[int]:
    metrics = (update.metrics for attempt in attempts if attempt.made_model for update in attempt.round.accepted)
    return {int(each["batch_size"]) for each in metrics if "batch_size" in each}


def _changes(came: Mapping[NodeId, Sequence[NodeConnected]]) -> list[str]:
    return [
        f"{node} came with other data meanwhile" for node, each in came.items() if len({c.digest for c in each}) > 1
    ]


def _candidates(attempt: RoundSummary) -> set[NodeId]:
    """The nodes out of which the cohort was drawn."""
    round = attempt.round
    return {*round.members, *(node for node, reason in round.opened.left_out.items() if reason == NOT_DRAWN)}


def _irregular(attempts: Iterable[RoundSummary], nodes: set[NodeId]) -> list[str]:
    """Rounds that went otherwise than all nodes being there and answering, which time and chance decide."""
    found = []
    for attempt in attempts:
        if attempt.round.opened.left_out_more:
            found.append(f"round {attempt.number} had more candidates than are recorded")
        left_out = attempt.round.opened.left_out
        found += [
            f"round {attempt.number} could not ask {node}: {left_out.get(node, 'not connected')}"
            for node in sorted(nodes - _candidates(attempt))
        ]
        if not attempt.succeeded:
            found.append(f"round {attempt.number}, attempt {attempt.attempt + 1} failed: {attempt.reason}")
            continue
        members = attempt.round.members.items()
        found += [
            f"round {attempt.number} went on without {node}: {member.reason or 'it was not waited for'}"
            for node, member in members
            if member.part is not Part.ACCEPTED
        ]
    return found


def read_manifest(file: Path) -> Manifest:
    """Raises BadManifest for any other file."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadManifest(f"{file} is no manifest of a run: {error}") from None


def write_manifest(manifest: Manifest, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
