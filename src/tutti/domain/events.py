"""Events: facts about jobs and nodes, in the past tense, written to the log once and never changed.

They are all that is needed to rebuild the state after a crash; REST resources, live streams, metrics and
the audit are readers of them. Events carry digests, never tensors. `at` is seconds since the epoch.
"""

from typing import Literal, TypeAlias

from tutti.core.registry import Choice
from tutti.domain.contributions import Contribution
from tutti.domain.event import Digest as Digest
from tutti.domain.event import Event as Event
from tutti.domain.event import NodeId as NodeId
from tutti.domain.market.events import MarketEvent as MarketEvent
from tutti.domain.sessions import SessionEvent as SessionEvent
from tutti.domain.signing import Signed
from tutti.domain.spec import DataSchema, JobSpec, Metrics

# -- a job, stream `job:<id>` ------------------------------------------------------------------------


class JobSubmitted(Event, frozen=True, kw_only=True):
    job: str
    spec: JobSpec
    data: DataSchema
    by: str = ""


class JobInitialised(Event, frozen=True, kw_only=True):
    """The initial model exists: the seed's draw, or the one the job was told to start from."""

    model: Digest
    state: Digest
    parameters: int


class RoundOpened(Event, frozen=True, kw_only=True):
    """A cohort was drawn; `model` is what round `round - 1` made (0: the initial one), its base.

    An evaluation round comes after the last training round and makes no model of its own. `left_out` says of
    the other known nodes why they were not asked; of a large fleet it names a hundred, those with rare reasons
    first, and `left_out_more` counts the others by reason. `candidates` could have been drawn; `state` is the blob
    that nodes fetch, if the strategy shares its whole state with them. With `overlaps`, nodes that have not answered
    when the round closes work on, into the next; `carried` are those of the cohort that do so from rounds before.
    `less` is the share of the local work that slow nodes were asked for; the others do all of it. `drawn` says why of
    the nodes that are in the cohort by more than chance.
    """

    round: int
    attempt: int
    task: Literal["train", "evaluate"]
    model: Digest
    cohort: tuple[NodeId, ...]
    wanted: int
    quorum: int
    deadline: float
    left_out: dict[NodeId, str] = {}
    left_out_more: dict[str, int] = {}
    candidates: int = 0
    settings: dict[str, float] = {}
    state: Digest = ""
    overlaps: bool = False
    carried: tuple[NodeId, ...] = ()
    less: dict[NodeId, float] = {}
    drawn: dict[NodeId, str] = {}

    @property
    def fetched(self) -> Digest:
        """The blob that nodes need."""
        return self.state or self.model


class UpdateAccepted(Event, frozen=True, kw_only=True):
    """This update counts, unless its blob is lost before the round closes. `weight` is after the cap; `codec` is how
    the `bytes` came, which a node with `auto` chose.

    `facts` are the numbers that the strategy asked for; `base` is the round whose model was trained, if it is not
    this round's. `received`: the bytes of the model that the node was sent for this, if it said so. `signed`: its own
    signature, if it has a key.
    """

    round: int
    node: NodeId
    digest: Digest
    weight: int
    base: int | None = None
    facts: Metrics = {}
    metrics: Metrics = {}
    seconds: float = 0.0
    bytes: int = 0
    codec: str = ""
    received: int | None = None
    signed: Signed | None = None

    @property
    def staleness(self) -> int:
        """How many rounds ago its base was opened."""
        return 0 if self.base is None else self.round - self.base


class UpdateRefused(Event, frozen=True, kw_only=True):
    """A submission that does not count. `final`: the node has no further say in this round."""

    round: int
    node: NodeId
    reason: str
    final: bool = False


class UpdateLost(Event, frozen=True, kw_only=True):
    """An accepted update's bytes are gone or damaged; the node is asked for it again."""

    round: int
    node: NodeId
    reason: str


class NodeDropped(Event, frozen=True, kw_only=True):
    """The round goes on without this node."""

    round: int
    node: NodeId
    reason: str


class RoundExtended(Event, frozen=True, kw_only=True):
    """The coordinator was away; the cohort gets the time back."""

    round: int
    deadline: float
    reason: str


class RoundClosed(Event, frozen=True, kw_only=True):
    """The updates of `counted` made `model` from the round's base; an evaluation round keeps the model.

    `shares` are theirs of the result, where the reducer weighed them anew: 0 is who was left out. `step` is a blob that
    leads from the base to the model, for nodes that hold the base.
    """

    round: int
    attempt: int
    reason: str
    model: Digest
    state: Digest
    counted: dict[NodeId, int]
    shares: dict[NodeId, float] = {}
    step: Digest = ""
    metrics: Metrics = {}
    aggregation_seconds: float = 0.0


class RoundFailed(Event, frozen=True, kw_only=True):
    round: int
    attempt: int
    reason: str


class ModelEvaluated(Event, frozen=True, kw_only=True):
    """The model that round `round` made (0: the initial one) was measured."""

    round: int
    by: Literal["nodes", "coordinator"]
    metrics: Metrics


class JobPaused(Event, frozen=True, kw_only=True):
    reason: str = "asked"


class JobResumed(Event, frozen=True, kw_only=True):
    pass


class JobStopped(Event, frozen=True, kw_only=True):
    reason: str = "asked"


class JobCompleted(Event, frozen=True, kw_only=True):
    reason: str
    model: Digest
    best_round: int


class JobFailed(Event, frozen=True, kw_only=True):
    reason: str


class JobArchived(Event, frozen=True, kw_only=True):
    """The job is long over: its `events` so far are in the blob `archive`, and may be gone from the log.

    `snapshot` is the job as it stands, in JSON, without what a reader can rebuild from the archive.
    """

    archive: Digest
    events: int
    snapshot: str


JobEvent: TypeAlias = (
    JobSubmitted
    | JobInitialised
    | RoundOpened
    | UpdateAccepted
    | UpdateRefused
    | UpdateLost
    | NodeDropped
    | RoundExtended
    | RoundClosed
    | RoundFailed
    | ModelEvaluated
    | JobPaused
    | JobResumed
    | JobStopped
    | JobCompleted
    | JobFailed
)


# -- the register of nodes, stream `nodes` -----------------------------------------------------------


class InviteIssued(Event, frozen=True, kw_only=True):
    """A join token: only its hash is kept. `uses` joins, until `expires`."""

    token: str
    uses: int
    expires: float
    by: str = ""


class NodeJoined(Event, frozen=True, kw_only=True):
    """A node took up an invitation; `secret` is the hash of the token it will show from now on."""

    node: NodeId
    invite: str
    secret: str


class NodeRemoved(Event, frozen=True, kw_only=True):
    node: NodeId
    reason: str = "asked"


class NodeKeyed(Event, frozen=True, kw_only=True):
    """The node signs its updates with this key from now on, until it is removed."""

    node: NodeId
    key: str


class NodeEquivocated(Event, frozen=True, kw_only=True):
    """The node has signed two different updates under one number: `digests` are theirs, in the order of `signed`."""

    node: NodeId
    job: str
    digests: tuple[Digest, Digest]
    signed: tuple[Signed, Signed]


class NodeDrained(Event, frozen=True, kw_only=True):
    """The node finishes what it does and is given no more work, until it is undrained.

    `forged`: what an audit found wrong with its update, if that is why.
    """

    node: NodeId
    by: str = ""
    forged: str = ""


class NodeUndrained(Event, frozen=True, kw_only=True):
    node: NodeId
    by: str = ""


class MaintenanceBegan(Event, frozen=True, kw_only=True):
    """Nothing new begins from now on; what is under way goes on to the end of its round."""

    reason: str
    by: str = ""


class MaintenanceEnded(Event, frozen=True, kw_only=True):
    by: str = ""


class NodeConnected(Event, frozen=True, kw_only=True):
    node: NodeId
    cpus: int = 0
    memory: int = 0
    gpus: int = 0
    examples: int = 0
    dataset: str = ""
    version: str = ""
    held_out: int = 0
    digest: Digest = ""
    source: str = ""
    versions: dict[str, str] = {}


class NodeDisconnected(Event, frozen=True, kw_only=True):
    node: NodeId
    reason: str


class NodeTurnedAway(Event, frozen=True, kw_only=True):
    """Somebody without a valid token, or with an unusable registration, wanted in under this name."""

    node: str
    reason: str


class CoordinatorStarted(Event, frozen=True, kw_only=True):
    version: str


NodeEvent: TypeAlias = (
    InviteIssued
    | NodeJoined
    | NodeRemoved
    | NodeKeyed
    | NodeEquivocated
    | NodeDrained
    | NodeUndrained
    | MaintenanceBegan
    | MaintenanceEnded
    | NodeConnected
    | NodeDisconnected
    | NodeTurnedAway
    | CoordinatorStarted
)


# -- what a job's nodes earn, stream `rewards:<job>` -------------------------------------------------


class AuditsCommitted(Event, frozen=True, kw_only=True):
    """The rounds of a job that are audited will be drawn by a secret with this hash."""

    job: str
    commitment: str


class ContributionsScored(Event, frozen=True, kw_only=True):
    """What each update that counted did for the model: see `tutti.domain.contributions` for the rule.

    `root` is that of the Merkle tree over the contributions. `seed` draws the rows of `data` that were used; `rows` is
    the digest of all of them. `note` says what kept a score from being measured.
    """

    job: str
    round: int
    base: Digest
    model: Digest
    data: Choice
    rows: Digest
    seed: int
    pool: int
    contributions: tuple[Contribution, ...]
    root: str
    note: str = ""


class RewardsSettled(Event, frozen=True, kw_only=True):
    """All rounds are paid, and what was left of the pool went back to the sponsor. `secret` drew the audits, in hex."""

    job: str
    secret: str = ""


RewardEvent: TypeAlias = AuditsCommitted | ContributionsScored | RewardsSettled
AnyEvent: TypeAlias = JobEvent | JobArchived | NodeEvent | RewardEvent | MarketEvent | SessionEvent
