"""A world file: which nodes there are, how fast, how connected, when there, how faulty, how bad."""

import tomllib
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from tutti.core.errors import UserError
from tutti.core.registry import Choice
from tutti.domain.spec import LONGEST, Positive, Seconds
from tutti.sim.worlds.attacks import attacks
from tutti.sim.worlds.availability import traces
from tutti.sim.worlds.distributions import drawn

Share = Annotated[float, Meta(ge=0, le=1)]
Amount = Annotated[float, Meta(ge=0)]
Seed = Annotated[int, Meta(ge=0, le=2**53)]


class BadWorld(UserError):
    """The world file cannot be read as one; the message names the field, what was expected and what came."""


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a node computes with.

    Attributes:
        speed: Examples that it trains on in a second (a distribution over nodes).
        jitter: Factor on the time of each task (a distribution over tasks).
        memory: Bytes that it lends (a distribution over nodes).
        watts: What it draws while it computes, in watts.
    """

    speed: Choice = Choice("constant", {"value": 1000})
    jitter: Choice = Choice("constant", {"value": 1})
    memory: Choice = Choice("constant", {"value": 8_000_000_000})
    watts: Amount = 10.0


class Network(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a node reaches the coordinator.

    Attributes:
        latency: Seconds that a message or the first byte of a blob is on its way (a distribution over messages).
        up: Bytes a second from the node (a distribution over nodes).
        down: Bytes a second to the node (a distribution over nodes).
        duplicate: Share of messages, either way, that arrive twice.
        cut: Seconds between losses of the connection, after which the node connects again (a distribution); none if
            not given.
        joules: Energy that moving a megabyte takes, in joules.
    """

    latency: Choice = Choice("constant", {"value": 0.05})
    up: Choice = Choice("constant", {"value": 1e6})
    down: Choice = Choice("constant", {"value": 4e6})
    duplicate: Share = 0.0
    cut: Choice | None = None
    joules: Amount = 1.0


class Faults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What breaks.

    Attributes:
        seed: Of what breaks and how long messages take; the world's, if not given. Another one is the same fleet on
            another day.
        drop_out: Share of tasks in the middle of which the node dies.
        away: Seconds that it then takes to come back (a distribution).
        crash: Seconds from one crash of the coordinator to the next (a distribution); it never crashes if not given.
            Only a simulation can obey: in a deployment the coordinator is a process of its own.
        outage: Seconds until a crashed coordinator is back, or another one takes over (a distribution).
        stall: Seconds from one time to the next that the coordinator is cut off from its log, so that another takes
            over (a distribution); simulation only, likewise.
        overlap: Seconds for which both then believe that the jobs are theirs (a distribution).
        skew: Seconds by which a coordinator's clock is ahead of the world's (a distribution over its processes).
        disk: Seconds that a write of the coordinator takes (a distribution); simulation only, likewise.
        relay: Seconds from one death of a relay to the next (a distribution); it is back after an `outage`, and its
            nodes connect to another replica.
        post: Share of what replicas tell each other that is lost; as much comes twice.
        store: Share of relays whose store fails: of what they keep they can read nothing, or give no sum, or none in
            time.
    """

    seed: Seed | None = None
    drop_out: Share = 0.0
    away: Choice = Choice("constant", {"value": 60})
    crash: Choice | None = None
    outage: Choice = Choice("constant", {"value": 5})
    stall: Choice | None = None
    overlap: Choice = Choice("constant", {"value": 1})
    skew: Choice = Choice("constant", {"value": 0})
    disk: Choice = Choice("constant", {"value": 0})
    relay: Choice | None = None
    post: Share = 0.0
    store: Share = 0.0


class Byzantine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bad nodes: the first `share` of all, in an order drawn by the seed, do `attack`."""

    share: Share = 0.0
    attack: Choice = Choice("sign_flip")


class World(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything about the nodes that a job does not say. The same file drives simulation and deployment.

    Attributes:
        nodes: How many there are.
        seed: The same world, job and seed give the same events at the same times.
        data: What the nodes divide among them.
        partition: How.
        held_out: Share of its rows that a node measures models on.
        train: Whether nodes really train; if not, they send back the model with a small constant added.
        examples: Rows that a node holds (a distribution over nodes), where they do not train.
        availability: When nodes are there.
        start: When the job is submitted, in seconds since the first midnight.
        longest: Seconds of world time after which a simulation gives up.
        heartbeat: Seconds between two heartbeats of a node.
        relays: Replicas of the coordinator that have nodes too, and work for it; simulation only.
    """

    nodes: Positive = 100
    seed: Seed = 0
    data: Choice = Choice("digits")
    partition: str = "iid"
    held_out: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    train: bool = True
    examples: Choice = Choice("constant", {"value": 100})
    availability: Choice = Choice("always")
    start: Annotated[float, Meta(ge=0, le=LONGEST)] = 0.0
    longest: Annotated[float, Meta(gt=0)] = 30 * 86_400.0
    heartbeat: Seconds = 15.0
    relays: Annotated[int, Meta(ge=0, le=100)] = 0
    machine: Machine = Machine()
    network: Network = Network()
    faults: Faults = Faults()
    byzantine: Byzantine = Byzantine()

    def name(self, number: int) -> str:
        return f"node-{number}"


class Purpose(IntEnum):
    """What a stream of chance is for: what one node draws for one thing changes nothing else."""

    MACHINE = 1
    AVAILABILITY = 2
    MESSAGES = 3
    TASKS = 4
    BYZANTINE = 5
    COORDINATOR = 6
    REPLICAS = 7


BREAKING = frozenset({Purpose.MESSAGES, Purpose.TASKS, Purpose.COORDINATOR, Purpose.REPLICAS})


def rng_for(world: World, purpose: Purpose, *numbers: int) -> np.random.Generator:
    breaks = world.faults.seed if purpose in BREAKING else None
    seed = world.seed if breaks is None else breaks
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, purpose, *numbers])))


def read_world(file: Path) -> World:
    """Raises BadWorld."""
    try:
        return load_world(tomllib.loads(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadWorld(f"cannot read the world file {file}: {error}") from None


def load_world(raw: Mapping[str, Any]) -> World:
    """A world from plain data; choices may be written short: `lognormal:median=800,sigma=0.5`. Raises BadWorld."""
    try:
        world = msgspec.convert(_expand(raw, World), World)
    except msgspec.ValidationError as error:
        raise BadWorld(f"world: {error}; choose from the fields in docs/worlds.md") from None
    _check(world)
    return world


def _expand(raw: Any, struct: type[msgspec.Struct]) -> Any:
    """Choices written short, and plain numbers where a distribution is expected."""
    if not isinstance(raw, Mapping):
        return raw
    kinds = {field.name: field.type for field in msgspec.structs.fields(struct)}
    return {name: _field(value, kinds.get(name)) for name, value in raw.items()}


def _field(value: Any, kind: Any) -> Any:
    if kind in (Choice, Choice | None):
        if isinstance(value, str):
            return msgspec.to_builtins(Choice.parse(value))
        if isinstance(value, int | float) and not isinstance(value, bool):
            return {"name": "constant", "options": {"value": value}}
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind is not Choice:
        return _expand(value, kind)
    return value


def _check(world: World) -> None:
    """Build what is chosen once, so that a mistake shows before anything starts."""
    machine, network, faults = world.machine, world.network, world.faults
    for choice in (machine.speed, machine.jitter, machine.memory, network.latency, network.up, network.down,
                   network.cut, faults.away, faults.crash, faults.outage, faults.disk, faults.stall, faults.overlap,
                   faults.skew, faults.relay, world.examples):  # fmt: skip
        if choice is not None:
            drawn(choice)
    traces.build(world.availability)
    attacks.build(world.byzantine.attack)
