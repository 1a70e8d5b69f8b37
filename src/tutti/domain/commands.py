"""What a job can be told (commands, in the imperative; they may be refused) and what it asks for (instructions)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from tutti.domain.events import Digest, NodeId, UpdateAccepted
from tutti.domain.signing import Signed
from tutti.domain.spec import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Initialise:
    model: Digest
    state: Digest
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Open the next round with these connected, eligible nodes. `left_out` may name any number of others.

    `settings`, `shares_state`, `in_turn` and `buffer` are what the strategy wants (see core.strategy).
    """

    candidates: Iterable[NodeId]
    left_out: Mapping[NodeId, str] = field(default_factory=dict)
    settings: Mapping[str, float] = field(default_factory=dict)
    shares_state: bool = False
    in_turn: bool = False
    buffer: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitUpdate:
    """A node hands in its work. `fault` is what the shell found wrong with the bytes, if anything.

    `codec` is how they came; `received`, if it is known, how many bytes of the model the node was sent for this.
    """

    round: int
    attempt: int
    node: NodeId
    digest: Digest
    weight: int
    metrics: Metrics
    facts: Metrics = field(default_factory=dict)
    seconds: float = 0.0
    received: int | None = None
    bytes: int = 0
    codec: str = ""
    fault: str | None = None
    signed: Signed | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RefuseUpdate:
    """Record a submission that belonged nowhere, in the round that the node should have worked on."""

    node: NodeId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoseUpdate:
    node: NodeId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    node: NodeId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Extend:
    """Give the open round its full time again, because the coordinator was away."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """The aggregate of `counted`, in these `shares`, is stored as `model`; `state` is the strategy's checkpoint.

    `step` leads there from the model before, where the job's models have a codec.
    """

    round: int
    attempt: int
    counted: Mapping[NodeId, int]
    model: Digest
    state: Digest
    shares: Mapping[NodeId, float] = field(default_factory=dict)
    step: Digest = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordEvaluation:
    round: int
    metrics: Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class SkipEvaluation:
    """Complete the job although nobody is there to measure its final model."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    reason: str = "asked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    reason: str = "asked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time has passed."""


Command: TypeAlias = (
    Initialise
    | Open
    | SubmitUpdate
    | RefuseUpdate
    | LoseUpdate
    | Drop
    | Extend
    | Close
    | RecordEvaluation
    | SkipEvaluation
    | Pause
    | Resume
    | Stop
    | Fail
    | Tick
)


# -- instructions: what the shell must do; the only way out ------------------------------------------


@dataclass(frozen=True, slots=True)
class MakeInitialModel:
    pass


@dataclass(frozen=True, slots=True)
class EvaluateModel:
    round: int
    model: Digest


@dataclass(frozen=True, slots=True)
class GatherCohort:
    """Find the eligible nodes and try to open the round."""

    task: Literal["train", "evaluate"]
    round: int


@dataclass(frozen=True, slots=True)
class Assign:
    """These nodes owe an update; tell each of them that is connected, once per connection."""

    nodes: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Fold exactly these updates and close the round."""

    updates: tuple[UpdateAccepted, ...]


Instruction: TypeAlias = MakeInitialModel | EvaluateModel | GatherCohort | Assign | Aggregate
