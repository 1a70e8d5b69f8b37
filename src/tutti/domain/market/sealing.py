"""Commit, then reveal: how the replicas of a job are kept from copying one another (docs/adr/0029-sealed-replicas.md).

    WORKING --commits--> SEALED --the set is closed--> ASKED --shows--> SHOWN --> judged: holds, or wrong

A worker first hands in a *commitment*: a hash of its result, its name and a nonce. The *set* of a job is closed once no
slot wants a worker and every attempt that goes on has committed, or once the job's time is up (`ComputeSealed`), with
those that have. Only then is anybody asked to show a result; who has not committed by then cannot any more.

Nothing is judged before all of the set is shown, and who shows nothing is left behind. A result that does not open its
commitment is wrong. So is a commitment that is another's, as soon as that one is opened: it was copied, and which of
two came first says nothing, for who overhears one may be quicker than who made it.
"""

from enum import StrEnum
from hashlib import sha256
from typing import TYPE_CHECKING

from tutti.domain.market.rules import Rules

if TYPE_CHECKING:
    from tutti.domain.market.jobs import Attempt, ComputeJob

DOMAIN = "tutti market commitment 1"


class Phase(StrEnum):
    """Where an attempt that goes on stands."""

    WORKING = "working"
    SEALED = "sealed"
    ASKED = "asked"
    SHOWN = "shown"


def commitment_of(job: str, attempt: int, worker: str, result: str, nonce: str) -> str:
    """What a worker says before it shows its result: bound to its name, so that it is worth nothing to another.

    None of the parts has a line break in it (the wire sees to that), so the lines tell them apart; the first line keeps
    the hash from meaning anything elsewhere.
    """
    return sha256("\n".join((DOMAIN, job, str(attempt), worker, result, nonce)).encode()).hexdigest()


def opened(job: "ComputeJob", attempt: "Attempt") -> bool:
    """Whether what an attempt has shown is what it committed to."""
    shown = commitment_of(job.id, attempt.number, attempt.worker, attempt.result, attempt.nonce)
    return bool(attempt.result) and shown == attempt.commitment


def closed(job: "ComputeJob", rules: Rules) -> bool:
    """Whether the set of a job takes no further commitment."""
    return not job.open_slots(rules) and all(attempt.commitment for attempt in job.live)


def phase(job: "ComputeJob", attempt: "Attempt", rules: Rules) -> Phase:
    if attempt.result:
        return Phase.SHOWN
    if not attempt.commitment:
        return Phase.WORKING
    return Phase.ASKED if closed(job, rules) and not job.final else Phase.SEALED


def to_reveal(job: "ComputeJob", rules: Rules) -> list[int]:
    """Attempts whose workers are to show their results now."""
    return [attempt.number for attempt in job.live if phase(job, attempt, rules) is Phase.ASKED]


def to_judge(job: "ComputeJob", rules: Rules) -> list[int]:
    """Attempts to judge now: of a set that is all shown, those not judged, or not since a dispute.

    A slot that wants a worker again because what it showed was wrong does not keep the others waiting.
    """
    shown = {attempt.slot for attempt in job.attempts if attempt.result}
    awaited = [slot for slot in job.open_slots(rules) if slot not in shown]
    if job.final or awaited or not all(attempt.result for attempt in job.live):
        return []
    return [attempt.number for attempt in job.live if attempt.holds is None]


def copied(job: "ComputeJob") -> dict[int, int]:
    """Attempts that committed to what another has opened as its own, and whose it was."""
    if job.final:
        return {}
    owners = {a.commitment: a for a in job.attempts if opened(job, a)}
    found = [(a, owners.get(a.commitment)) for a in job.live if a.commitment and a.holds is None]
    return {a.number: owner.number for a, owner in found if owner is not None and owner.number != a.number}


def doubtful(job: "ComputeJob") -> bool:
    """Whether what is shown has to be replayed in full: it is disputed, it differs, or replicas are missing."""
    shown = [attempt.result for attempt in job.live if attempt.result]
    return bool(job.disputed) or len(set(shown)) > 1 or len(shown) < len(job.slots)


def twin(job: "ComputeJob", attempt: "Attempt") -> "Attempt | None":
    """An attempt with the same result, bit by bit, that was judged: what holds of one holds of the other."""
    same = [a for a in job.attempts if a.result == attempt.result and a.holds is not None and opened(job, a)]
    return same[0] if same and not job.disputed else None
