"""Who gets a job: drawn among all who can do it, with weights, so that nobody can count on getting any.

The weight is reputation^2 x free stake x thrift. Splitting a stake over several names gains nothing, for each of them
begins without a reputation. Thrift is how often the price that a worker asks goes into what the job pays, up to
`Rules.thrift`: of two that are alike, the one that asks half is drawn twice as often. Who can do the work in the time
that is left is told before, by measured speed. Of small jobs, some are drawn without regard to reputation, so that
newcomers can earn one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tutti.core.workload import workloads
from tutti.domain.market.jobs import ComputeJob
from tutti.domain.market.rules import Rules
from tutti.domain.market.standing import Market, Worker

SPARE = 2.0
"""How much longer than by its measured speed a worker may be expected to take."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A worker, with the chance that it had among so many candidates."""

    worker: Worker
    bond: int
    candidates: int
    share: float
    explored: bool


def why_not(worker: Worker, job: ComputeJob, slot: int, stake: int, rules: Rules, now: float) -> str:
    """Why a worker cannot be given this; empty if it can. `stake` is all that it has staked, locked or not."""
    submitted, offer = job.submitted, worker.offer
    if stake < rules.min_stake:
        return f"has {stake} tokens at stake, the least is {rules.min_stake}"
    if worker.gflops <= 0:
        return "has not been measured yet"
    if submitted.gpu and worker.gpu_gflops < rules.gpu:
        return "has no GPU that was measured"
    if offer.kinds and submitted.kind.name not in offer.kinds:
        return f"does not take {submitted.kind.name}"
    if offer.price > job.share(slot):
        return f"asks {offer.price} tokens, this pays {job.share(slot)}"
    if worker.owner == submitted.client:
        return "belongs to the client"
    if any((a.owner == worker.owner or a.worker == worker.name) and not a.lost for a in job.attempts):
        return "has had a part in this job, or its owner has"
    work = workloads.build(submitted.kind).work(submitted.rows, submitted.columns)
    left = min(job.patience(rules), job.expires - now)
    if SPARE * work / (1e9 * worker.gflops) > left:
        return f"takes more than the {left:g} s that are left, by its measured speed"
    return ""


def demand(job: ComputeJob, slot: int, rules: Rules, now: float) -> tuple[object, ...]:
    """What decides who can be given a slot: if nobody can be given one, then nobody any other with the same demand."""
    s, patience = job.submitted, job.patience(rules)
    owners = frozenset((a.worker, a.owner, a.lost) for a in job.attempts)
    left = patience if job.expires - now >= patience else job.expires - now
    return str(s.kind), job.share(slot), s.gpu, s.client, s.rows, s.columns, left, owners


def why_nobody(
    market: Market, job: ComputeJob, slot: int, names: Iterable[str], stakes: Mapping[str, int], now: float
) -> str:
    """What most of these workers have against a slot; empty if one could do it, now or after other work."""
    bond = _bond(market.rules, job, slot)
    found: dict[str, list[str]] = {}
    for name in names:
        stake = stakes.get(name, 0)
        why = why_not(market.workers[name], job, slot, stake, market.rules, now)
        if not why and stake >= bond:
            return ""
        found.setdefault(why or f"has {stake} tokens at stake, this needs {bond}", []).append(name)
    if not found:
        return "no worker is connected"
    most = max(found, key=lambda why: len(found[why]))
    return f"no connected worker can do it: {found[most][0]} {most}"


def _bond(rules: Rules, job: ComputeJob, slot: int) -> int:
    return rules.bond(job.share(slot), workloads.build(job.submitted.kind).detection)


def draw(
    market: Market,
    job: ComputeJob,
    slot: int,
    free: Sequence[str],
    stakes: Mapping[str, int],
    chance: Callable[[], float],
    now: float,
) -> Drawn | None:
    """A worker of `free` for a slot, or none that can. `chance` gives numbers from 0 to 1 that nobody can foresee."""
    rules = market.rules
    bond = _bond(rules, job, slot)
    able: list[Worker] = []
    spares: list[int] = []
    for name in free:
        worker, stake = market.workers[name], stakes.get(name, 0)
        spare = stake - market.locked.get(name, 0)
        if spare >= bond and not why_not(worker, job, slot, stake, rules, now):
            able.append(worker)
            spares.append(spare)
    if not able:
        return None
    if again := {a.worker for a in job.attempts} & {worker.name for worker in able}:  # others first
        kept = [at for at, worker in enumerate(able) if worker.name not in again] or range(len(able))
        able, spares = [able[at] for at in kept], [spares[at] for at in kept]
    explored = job.share(slot) <= rules.small and chance() < rules.exploration
    bounds = [1.0 if explored else worker.record(job.submitted.kind.name).bound for worker in able]
    thrifts = [min(rules.thrift, job.share(slot) / max(1, worker.offer.price)) for worker in able]
    cumulated = np.cumsum(np.array(bounds) ** rules.esteem * np.array(spares) * np.array(thrifts))
    at = min(int(np.searchsorted(cumulated, chance() * cumulated[-1], side="right")), len(able) - 1)
    share = float((cumulated[at] - (cumulated[at - 1] if at else 0)) / cumulated[-1])
    return Drawn(able[at], bond, len(able), share, explored)
