"""What happens on the market: stream `market` of who takes part, stream `compute:<job>` of each compute job."""

from typing import TypeAlias

from tutti.core.registry import Choice
from tutti.domain.event import Digest, Event, NodeId

# -- who takes part, stream `market` -------------------------------------------------------------------


class WorkerRegistered(Event, frozen=True, kw_only=True):
    """A worker offers its machine, or changes its offer. What was known of it before stays.

    `gpu` and `claimed` (its capacity in GFLOP/s) are what it claims: shown, never believed. `price`: the least reward
    it works for; `kinds`: the kinds of job it takes, empty for all. `owner` is whose machine it says it is.
    """

    worker: NodeId
    stake: int
    owner: str = ""
    gpu: str = ""
    claimed: float = 0.0
    price: int = 1
    kinds: tuple[str, ...] = ()
    by: str = ""


class WorkerMeasured(Event, frozen=True, kw_only=True):
    """The worker solved a problem made for the occasion, and the solution held: so fast it is, or faster.

    On its GPU, with `gpu`. 0: it gave none in time, or a wrong one.
    """

    worker: NodeId
    gflops: float
    gpu: bool = False


class ClientRegistered(Event, frozen=True, kw_only=True):
    """`by` is who may spend its tokens."""

    client: str
    by: str = ""


class CoordinationStopped(Event, frozen=True, kw_only=True):
    """No job is assigned until coordination starts again; what is assigned goes on."""

    by: str = ""


class CoordinationStarted(Event, frozen=True, kw_only=True):
    by: str = ""


# -- a compute job, stream `compute:<job>` -------------------------------------------------------------


class ComputeSubmitted(Event, frozen=True, kw_only=True):
    """A client asks for work. `reward` is for all replicas together, which are paid alike.

    `gpu`: only for workers whose GPU was measured. `seconds`: after so many without a result the job fails. `window`:
    for so many seconds after it was verified, the result can be disputed; only then is it paid.
    """

    job: str
    client: str
    kind: Choice
    data: Digest
    rows: int
    columns: int
    seed: int
    reward: int
    replicas: int = 1
    gpu: bool = False
    seconds: float = 3600.0
    window: float = 0.0
    by: str = ""


class ComputeFunded(Event, frozen=True, kw_only=True):
    """The reward lies in escrow."""


class ComputeAssigned(Event, frozen=True, kw_only=True):
    """A worker was drawn from `candidates` for a slot (one for each replica), with the chance `share`.

    `explored`: drawn without regard to reputation. `bond` is the part of its stake that is at risk.
    """

    slot: int
    attempt: int
    worker: NodeId
    owner: str
    bond: int
    candidates: int = 0
    share: float = 0.0
    explored: bool = False


class ComputeCommitted(Event, frozen=True, kw_only=True):
    """The worker has a result, and says its hash: from now on it cannot take another's."""

    attempt: int
    commitment: str


class ComputeSealed(Event, frozen=True, kw_only=True):
    """The job's time is up: it goes on with the attempts that have committed, and nobody else is looked for."""


class ComputeRevealed(Event, frozen=True, kw_only=True):
    """The result is stored here; `nonce` opens the commitment."""

    attempt: int
    result: Digest
    nonce: str


class ComputeJudged(Event, frozen=True, kw_only=True):
    """The result was checked, with a seed drawn after it was committed to. `replayed`: all of the work was redone."""

    attempt: int
    holds: bool
    reason: str = ""
    check_seed: int = 0
    measures: dict[str, float] = {}
    replayed: bool = False


class ComputeReleased(Event, frozen=True, kw_only=True):
    """This attempt ends without a result. `ours`: through no fault of the worker."""

    attempt: int
    reason: str
    ours: bool = False


class ComputeDisputed(Event, frozen=True, kw_only=True):
    """Somebody doubts the result: a further worker makes it again, and all of them are replayed in full."""

    by: str
    reason: str = ""


class ComputeVerified(Event, frozen=True, kw_only=True):
    """`attempt` made the job's result."""

    attempt: int


class ComputeFailed(Event, frozen=True, kw_only=True):
    """There is no result, and the client has its tokens back."""

    reason: str


class ComputeSettled(Event, frozen=True, kw_only=True):
    """Everything that follows is in the ledger."""


StandingEvent: TypeAlias = (
    WorkerRegistered | WorkerMeasured | ClientRegistered | CoordinationStopped | CoordinationStarted
)
ComputeEvent: TypeAlias = (
    ComputeSubmitted
    | ComputeFunded
    | ComputeAssigned
    | ComputeCommitted
    | ComputeSealed
    | ComputeRevealed
    | ComputeJudged
    | ComputeReleased
    | ComputeDisputed
    | ComputeVerified
    | ComputeFailed
    | ComputeSettled
)
MarketEvent: TypeAlias = StandingEvent | ComputeEvent
