"""The numbers of the market, in one place."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Tokens are whole units, times seconds.

    Attributes:
        min_stake: What an identity costs: a worker with less at risk gets no work.
        bond_floor: The least part of a stake that is at risk with an attempt.
        lease: How long a worker may give no sign of its work; each sign renews it.
        away: How long a worker may be away before its work is given to another.
        attempts: Attempts at one replica of a job before it is given up.
        spot: The share of results that are replayed in full, drawn after they were committed to.
        exploration: The share of small jobs that go to anybody who can do them, whatever the reputation.
        small: Up to which reward for one replica a job is small.
        esteem: The power of the reputation in the weight with which workers are drawn.
        thrift: How many times as often a worker is drawn at most for asking less than a job pays.
        earnest: What a result has to be paid to count in full for a reputation; one that is paid less counts less.
        lost: How much of a failure it is not to deliver.
        gpu: GFLOP/s (float32) by which a machine shows that it has a GPU: more than processors do on this problem.
        supports: What part of a claimed capacity has to be measured for the claim to be called supported.
        queue: Jobs of one client that may go on at a time.
    """

    min_stake: int = 100
    bond_floor: int = 10
    lease: float = 30.0
    away: float = 10.0
    attempts: int = 5
    spot: float = 0.1
    exploration: float = 0.1
    small: int = 100
    esteem: float = 2.0
    thrift: float = 4.0
    earnest: int = 10
    lost: float = 0.25
    gpu: float = 500.0
    supports: float = 0.5
    queue: int = 10_000

    def bond(self, share: int, detection: float) -> int:
        """What must be at risk so that cheating on a reward does not pay: S / R > 1 / p - 1 (docs/market.md).

        `detection` is the least chance with which a check of this kind finds a wrong result; spot checks add theirs.
        """
        found = 1 - (1 - detection) * (1 - self.spot)
        return max(self.bond_floor, share, -int(-share * (1 / found - 1) // 1))


RULES = Rules()
