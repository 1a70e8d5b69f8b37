"""Where an interrupted simulation goes on: its events, and the numbers that they name.

The file is one line of JSON, then a server state, models and what nodes keep to themselves as safetensors files,
whose lengths the line gives.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tutti.core.errors import UserError
from tutti.core.local import Memory
from tutti.core.params import Params
from tutti.core.strategy import ServerState
from tutti.domain.events import Digest, JobEvent, NodeId
from tutti.domain.spec import JobSpec
from tutti.wire import tensors


class BadCheckpoint(UserError):
    """A file that is no checkpoint, or one of another simulation."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What must be the same for a run to go on."""

    job: JobSpec
    federation: Digest
    batch_size: int


@dataclass(frozen=True, slots=True, eq=False)
class Progress:
    """A simulation between two rounds. `seconds` by round; `elapsed` in all."""

    identity: Identity
    events: list[JobEvent]
    seconds: dict[int, float]
    elapsed: float
    server: ServerState | None
    models: dict[Digest, Params]
    memory: dict[NodeId, Memory] = field(default_factory=dict)


class _Line(msgspec.Struct, frozen=True):
    identity: Identity
    events: list[JobEvent]
    seconds: dict[int, float]
    elapsed: float
    state: int  # bytes of the server state; 0 if there is none yet
    models: dict[Digest, int]
    memory: dict[NodeId, int] = {}


def save(file: Path, progress: Progress) -> None:
    """Write a checkpoint, whole or not at all."""
    state = b"" if progress.server is None else tensors.encode_state(progress.server)
    models = {digest: tensors.encode(params) for digest, params in progress.models.items()}
    memory = {node: tensors.encode(Params.from_arrays(kept)) for node, kept in progress.memory.items()}
    line = _Line(
        progress.identity,
        progress.events,
        progress.seconds,
        progress.elapsed,
        len(state),
        {digest: len(model) for digest, model in models.items()},
        {node: len(kept) for node, kept in memory.items()},
    )
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    with partial.open("wb") as opened:
        opened.writelines([msgspec.json.encode(line), b"\n", state, *models.values(), *memory.values()])
    partial.replace(file)


def load(file: Path, identity: Identity) -> Progress:
    """Read a checkpoint; raises BadCheckpoint if it is damaged, or was made by another simulation."""
    with file.open("rb") as opened:
        try:
            line = msgspec.json.decode(opened.readline(), type=_Line)
            server = tensors.decode_state(opened.read(line.state)) if line.state else None
            models = {digest: tensors.decode(opened.read(length)) for digest, length in line.models.items()}
            memory: dict[NodeId, Memory] = {
                node: {entry.name: values for entry, values in tensors.decode(opened.read(length)).items()}
                for node, length in line.memory.items()
            }
        except (msgspec.MsgspecError, UnicodeDecodeError, tensors.BadTensors) as error:
            raise BadCheckpoint(f"{file} is no checkpoint of a simulation, or damaged: {error}") from None
    if line.identity != identity:
        raise BadCheckpoint(
            f"{file} is the checkpoint of another simulation ({_difference(line.identity, identity)} differs): "
            "delete it, or name another file"
        )
    return Progress(identity, line.events, line.seconds, line.elapsed, server, models, memory)


def _difference(found: Identity, wanted: Identity) -> str:
    for name in JobSpec.__struct_fields__:
        if getattr(found.job, name) != getattr(wanted.job, name):
            return name
    return "the batch size" if found.batch_size != wanted.batch_size else "the data or their partition"
