"""What strategies earn on the compute market: owners with equal stakes, drawn by the market's own rules.

Simulated is only who does which job and what its check finds; assignment, bonds and reputation are the real ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tutti.core.registry import Choice
from tutti.domain.market import events as e
from tutti.domain.market.assignment import draw
from tutti.domain.market.rules import RULES, Rules
from tutti.domain.market.standing import Market

REWARD, COST = 10, 3
"""Tokens that a job pays, and what it costs a worker in electricity and wear to do it honestly."""


@dataclass(slots=True)
class Owner:
    """`cheats`: the share of its jobs that it does not do; `own_jobs`: a round that it pays for itself, to shine, each
    with `own_reward` (a job for less than REWARD is tiny, and costs nothing to do); `renews`: below which reputation it
    begins anew under another name."""

    name: str
    stake: int
    names: int = 1
    cheats: float = 0.0
    own_jobs: int = 0
    own_reward: int = REWARD
    renews: int = 0
    earned: int = 0
    spent: int = 0
    slashed: int = 0
    costs: int = 0
    identities: list[str] = field(default_factory=list)

    @property
    def profit(self) -> int:
        """Rewards less the cost of work, what was slashed, and what it paid others for jobs of its own."""
        return self.earned - self.costs - self.slashed - self.spent


class Economy:
    """Rounds of so many jobs from outside. An owner has one machine, which does one job a round, whatever its names."""

    def __init__(self, owners: Sequence[Owner], seed: int, rules: Rules = RULES) -> None:
        self.owners, self.rules = owners, rules
        self.market, self._rng = Market(rules), np.random.Generator(np.random.PCG64(seed))
        self._stakes: dict[str, int] = {}
        self._owner_of: dict[str, Owner] = {}
        self._jobs = 0
        for owner in owners:
            for _ in range(owner.names):
                self._register(owner, owner.stake // owner.names)

    def _register(self, owner: Owner, stake: int) -> None:
        name = f"{owner.name}-{len(owner.identities)}"
        owner.identities.append(name)
        self._owner_of[name], self._stakes[name] = owner, stake
        self.market.apply(e.WorkerRegistered(at=0, worker=name, stake=stake))
        self.market.apply(e.WorkerMeasured(at=0, worker=name, gflops=1.0))

    def run(self, rounds: int, jobs: int) -> Mapping[str, int]:
        """The profit of each owner."""
        for _ in range(rounds):
            payers: list[Owner | None] = [None] * jobs
            for owner in self.owners:
                payers += [owner] * owner.own_jobs
            self._rng.shuffle(payers)
            free = list(self._stakes)
            for payer in payers:
                if (worker := self._do(payer, free)) is not None:  # its machine has enough to do now
                    free = [name for name in free if self._owner_of[name] is not self._owner_of[worker]]
            self._renew()
        return {owner.name: owner.profit for owner in self.owners}

    def _do(self, payer: Owner | None, free: Sequence[str]) -> str | None:
        """One job; whoever does it is paid by the client, from outside or one of the owners."""
        job_id, reward = f"job-{self._jobs}", payer.own_reward if payer else REWARD
        self._jobs += 1
        asked = e.ComputeSubmitted(
            at=0, job=job_id, client="c", kind=Choice("pca"), data="", rows=10, columns=2, seed=0, reward=reward
        )
        self.market.apply(asked)
        self.market.apply(e.ComputeFunded(at=0), job_id)
        found = draw(self.market, self.market.jobs[job_id], 0, free, self._stakes, self._rng.random, 0.0)
        if found is None:
            self.market.apply(e.ComputeFailed(at=0, reason="nobody"), job_id)
            self.market.apply(e.ComputeSettled(at=0), job_id)
            return None
        worker, owner = found.worker.name, self._owner_of[found.worker.name]
        assigned = e.ComputeAssigned(at=0, slot=0, attempt=1, worker=worker, owner=worker, bond=found.bond)
        self.market.apply(assigned, job_id)
        cheated = self._rng.random() < owner.cheats and payer is not owner
        if cheated:  # and found out, as linear regression and PCA always are
            owner.slashed += found.bond
            self._stakes[worker] -= found.bond
        else:
            owner.earned += reward
            owner.costs += COST if reward >= REWARD else 0
        if payer is not None and not cheated:
            payer.spent += reward
        self.market.apply(e.ComputeJudged(at=0, attempt=1, holds=not cheated), job_id)
        over = e.ComputeFailed(at=0, reason="wrong") if cheated else e.ComputeVerified(at=0, attempt=1)
        self.market.apply(over, job_id)
        self.market.apply(e.ComputeSettled(at=0), job_id)
        del self.market.jobs[job_id]
        return worker

    def _renew(self) -> None:
        for owner in self.owners:
            for name in owner.identities:
                known = name in self._stakes
                if known and owner.renews and self.market.workers[name].overall.score < owner.renews:
                    self._register(owner, self._stakes.pop(name))


HONEST = 6

STRATEGIES: Mapping[str, Callable[[], Owner]] = {
    "honest": lambda: Owner("it", 600),
    "many names": lambda: Owner("it", 600, names=6),
    "deals with itself": lambda: Owner("it", 600, own_jobs=1),
    "deals with itself for a token": lambda: Owner("it", 600, own_jobs=3, own_reward=1),
    "deals with itself under many names": lambda: Owner("it", 600, names=3, own_jobs=3, own_reward=1),
    "cheats at a tenth": lambda: Owner("it", 600, cheats=0.1),
    "cheats always, under ever new names": lambda: Owner("it", 600, cheats=1.0, renews=50),
}


def compare(strategy: str, seed: int, rounds: int = 300, jobs: int = 4) -> tuple[int, float]:
    """The profit of one owner with a strategy among HONEST others of the same stake, and the mean of those."""
    others = [Owner(f"honest-{number}", 600) for number in range(HONEST)]
    its = STRATEGIES[strategy]()
    Economy([its, *others], seed).run(rounds, jobs)
    return its.profit, sum(owner.profit for owner in others) / HONEST
