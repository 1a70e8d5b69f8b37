"""What stands on the chain."""

from collections.abc import Mapping

from tutti.domain.contributions import Proof
from tutti.domain.ledger import AnyOperation
from tutti.services.views.base import View


class ChainView(View, frozen=True, kw_only=True):
    """The chain that this coordinator uses. `error`: why it is not connected, if so; `waiting`: calls not made yet.

    `sessions`: of the registry, whoever opened them. The addresses of `roles` hold the contracts' powers.
    """

    connected: bool
    error: str = ""
    node: str = ""
    chain_id: int | None = None
    block: int | None = None
    contracts: Mapping[str, str] = {}
    roles: Mapping[str, str] = {}
    sessions: int | None = None
    waiting: int = 0
    minted: int | None = None
    staked: int | None = None
    owed: int | None = None
    escrowed: int | None = None


class ChainSessionView(View, frozen=True, kw_only=True):
    """A job as the TrainingRegistry has it. Times in seconds since the epoch; `recorded`: rounds with a root."""

    job: str
    session: str
    coordinator: str
    opened_at: int
    closed_at: int | None
    rounds: int
    spec: str
    data: str
    model: str | None
    recorded: list[int]


class RecordedView(View, frozen=True, kw_only=True):
    """A round as the ContributionTracker has it: the root over its `count` contributions."""

    job: str
    round: int
    root: str
    model: str
    count: int
    at: int


class ProvenView(View, frozen=True, kw_only=True):
    """A contribution with its path, and whether the contract finds it among those of the round."""

    proof: Proof
    verified: bool


class ClaimView(View, frozen=True, kw_only=True):
    """What an account can claim, and the arguments of `RewardDistributor.claim`, which anybody may send for it."""

    account: str
    address: str
    owed: int
    contract: str
    coordinator: str
    round: int
    total: int
    proof: list[str]


class TransactionView(View, frozen=True, kw_only=True):
    """A transaction of this coordinator's that is on the chain: signed, in hex, and what it is for.

    `failed`: it is in a block, where the contract refused it, so that it has done nothing.
    `operation`: of the ledger, if it moves tokens of accounts; `accounts`: the addresses of those that it names.
    """

    seq: int
    key: str
    hash: str
    raw: str
    failed: bool = False
    operation: AnyOperation | None = None
    accounts: Mapping[str, str] = {}


class BlockView(View, frozen=True, kw_only=True):
    """A block of an embedded chain, which holds one transaction: all that it takes to execute it again."""

    number: int
    time: int
    transaction: str
    raw: str
