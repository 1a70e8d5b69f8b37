"""Which orders to the ledger follow from where a compute job stands. Each has a key of its own, so it is done once.

Rewards lie in one escrow for each slot, and to it the bond of each attempt at it is bound in turn. A wrong result costs
the bond: the client gets what the slot was worth for its lost time (its reward it has back anyway, or a good result for
it), the rest is burned; nothing goes to who decides.
"""

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from tutti.domain.ledger import Bond, Escrow, Order, Penalise, Refund, Release, Reward
from tutti.domain.market.jobs import Attempt, ComputeJob

ClientName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$(?!\n)")]

TableDigest = Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?$(?!\n)")]


def worker_account(worker: str) -> str:
    """A node's account, into which its contributions to training are paid too."""
    return f"node:{worker}"


def client_account(client: str) -> str:
    return f"client:{client}"


def escrow_of(job: str, slot: int) -> str:
    return f"{job}/{slot}"


def funding(job: ComputeJob) -> list[Order]:
    """The reward, and after a dispute what the further worker gets, out of the client's account."""
    payer = client_account(job.submitted.client)
    return [
        Order(
            f"market/{job.id}/escrow/{slot}",
            Escrow(escrow=escrow_of(job.id, slot), payer=payer, amount=job.share(slot)),
        )
        for slot in job.slots
        if job.share(slot)
    ]


def bond(job: ComputeJob, attempt: Attempt) -> Order:
    """What a worker puts at risk with its attempt."""
    operation = Bond(
        escrow=escrow_of(job.id, attempt.slot), account=worker_account(attempt.worker), amount=attempt.bond
    )
    return Order(f"market/{job.id}/bond/{attempt.number}", operation)


def bond_end(job: ComputeJob, attempt: Attempt) -> Order | None:
    """What becomes of the bond of an attempt that has ended; that of a good result is free once the job is paid."""
    escrow = escrow_of(job.id, attempt.slot)
    if attempt.over:
        return Order(f"market/{job.id}/release/{attempt.number}", Release(escrow=escrow))
    if attempt.holds is not False:
        return None
    reason = f"compute job {job.id}: {attempt.reason}"[:500]
    compensation = min(attempt.bond // 2, job.share(attempt.slot))
    wrong = Penalise(escrow=escrow, reason=reason, compensation=compensation)
    return Order(f"market/{job.id}/penalty/{attempt.number}", wrong)


def settlement(job: ComputeJob) -> list[Order]:
    """Where every escrow of a job that is over goes: to the worker whose result held, or back."""
    return list(_settlement(job))


def may_lack(job: ComputeJob, order: Order) -> bool:
    """Whether there may be no escrow for an order of `settlement`: none was set aside, or not for a dispute."""
    return not job.funded or order.key == f"market/{job.id}/end/{job.submitted.replicas}"


def _settlement(job: ComputeJob) -> Iterator[Order]:
    for slot in job.slots:
        if not job.share(slot):
            continue
        escrow, attempt = escrow_of(job.id, slot), job.at(slot)
        paid = job.verified is not None and attempt is not None and attempt.holds
        operation = (
            Reward(escrow=escrow, to=worker_account(attempt.worker)) if paid and attempt else Refund(escrow=escrow)
        )
        yield Order(f"market/{job.id}/end/{slot}", operation)
